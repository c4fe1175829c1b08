"""The pages of the documentation that are made from the code: experiment files, methods, benchmarks, attacks, commands.

`make docs` builds the site; hook.py hands these pages to MkDocs.
"""
