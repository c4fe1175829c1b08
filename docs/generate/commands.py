"""The reference page of the command line: every command with its arguments, from the parsers that read them.

Nothing comes in but the code itself; Markdown comes out.
"""

from __future__ import annotations

import argparse
import html
import re

from engine.cli import COMMANDS, EPILOG, build_parser

TEXT = """\
# The command line

Every command, made from the parsers that read it; `leakatk COMMAND --help` shows the same. Commands that produce
numbers take `--json`: the result alone on stdout.

```text
{epilog}
```

"""


def command_page() -> str:
    return TEXT.format(epilog=EPILOG.strip()) + "\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    parser = parser_of(name)
    usage = " ".join(parser.format_usage().removeprefix("usage: ").split())
    arguments = "\n".join(_argument(name, each) for each in parser._actions if each.dest != "help")
    epilog = f"```text\n{parser.epilog.strip()}\n```\n" if parser.epilog else ""
    return f"## {name}\n\n{_prose(parser.description or '')}\n\n```text\n{usage}\n```\n\n{arguments}\n{epilog}"


def parser_of(name: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    (commands,) = (each for each in build_parser(name)._actions if isinstance(each, argparse._SubParsersAction))
    parser: argparse.ArgumentParser = commands.choices[name]
    return parser


def _argument(command: str, action: argparse.Action) -> str:
    """One argument as an item of a definition list."""
    value = action.metavar or (f"{{{','.join(map(str, action.choices))}}}" if action.choices else action.dest.upper())
    if not action.option_strings:
        shown = str(value)
    elif action.nargs == 0:
        shown = ", ".join(action.option_strings)
    else:
        shown = f"{', '.join(action.option_strings)} {value}"
    anchor = f"{command}.{action.dest}"
    remarks = ["required"] if action.required and action.option_strings else []
    remarks += ["may be repeated"] if isinstance(action, argparse._AppendAction) else []
    words = _prose((action.help or "") % {"default": action.default, "prog": command})
    return f"[`{shown}`](#{anchor}){{ #{anchor} .key }} {', '.join(remarks)}\n:   {words}\n"


def _prose(text: str) -> str:
    """A help text as Markdown: what stands in backticks is code, all else as it is."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        each if each.startswith("`") else re.sub(r"([*_\[\]])", r"\\\1", html.escape(each)) for each in parts
    )
