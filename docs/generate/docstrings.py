"""Docstrings as the Python reference shows them: what they say of each parameter or field becomes a list.

The house style is `name: text; name, name: text` (docs/generate/options.py). Mkdocstrings calls the extension with what
it has read of the sources.
"""

from __future__ import annotations

from typing import Any

from griffe import Class, Extension, Function, Object

from docs.generate.options import labelled


class Labels(Extension):
    """Makes lists of the labelled texts of docstrings."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        _list_labels(func, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: Class, **_: Any) -> None:
        _list_labels(cls, set(cls.attributes))


def _list_labels(owner: Object, names: set[str]) -> None:
    if owner.docstring is None or not names:
        return
    owner.docstring.value = "\n\n".join(_listed(part, names) for part in owner.docstring.value.split("\n\n"))


def _listed(paragraph: str, names: set[str]) -> str:
    """A paragraph, with its labels as items; code stays as it is."""
    if paragraph.startswith("    "):
        return paragraph
    (_, before), *labels = labelled(paragraph, names)
    return "\n".join([before, "", *(f"- `{name}`: {words}" for name, words in labels)]).strip()
