"""Tables on the terminal, in one style for all commands."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def wide_console(width: int = 200) -> Console:
    """stdout; `width` columns where it is no terminal: a pipe has no width of its own, and no row is wrapped there."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else width)


def plain_table(title: str | None = None) -> Table:
    """A table with a line below its headings alone."""
    from rich import box
    from rich.table import Table

    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)
