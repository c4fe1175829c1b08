"""The experiment files and search spaces that ship with the package, by name.

`examples` and `tune_spaces` beside this module are links to the folders of these names at the top of the repository; a
wheel holds what is in them. Knows nothing of what the files say.
"""

from __future__ import annotations

from pathlib import Path

from engine.errors import UserError, known

_EXAMPLES = Path(__file__).with_name("examples")
_SPACES = Path(__file__).with_name("tune_spaces")


def example_files() -> dict[str, Path]:
    """The experiment files, by name."""
    return _by_name(_EXAMPLES)


def data_files(example: str) -> list[Path]:
    """The data that come with an example, which reads them from a folder of its name."""
    return sorted((_EXAMPLES / example).glob("*"))


def space_files() -> dict[str, Path]:
    """The search spaces, by name: a method's, or `<example>-<method>` where a benchmark wants a space of its own."""
    return _by_name(_SPACES)


def space_path(given: Path | str) -> Path:
    """The file of a search space: a path, or the name of one that ships ("npo"). UserError where it is neither."""
    path, spaces = Path(given), space_files()
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    known(str(given), spaces, "search space", "leakatk tune --help")
    return spaces[str(given)]


def _by_name(folder: Path) -> dict[str, Path]:
    found = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if not found:
        raise UserError(f"{folder}: the files that ship with leakatk are not there; install it again")
    return found
