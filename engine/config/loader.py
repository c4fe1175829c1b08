"""Documents that people write, in YAML: read, and changed by `--set`.

Every mistake in one is a UserError of one line that names the place and the nearest valid name. Knows nothing of what
the documents are about.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError

Overrides = Sequence[str] | Mapping[str, object]
BOOLEAN = "tag:yaml.org,2002:bool"


class Loader(yaml.SafeLoader):
    """YAML whose booleans are true and false alone, as YAML 1.2 has it; to PyYAML `on` and `no` are booleans too."""


Loader.yaml_implicit_resolvers = {
    first: [each for each in resolvers if each[0] != BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(BOOLEAN, re.compile("(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def parsed(text: str) -> Any:
    """What a text of YAML holds. Raises yaml.YAMLError."""
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def read_yaml(path: Path, expected: str) -> dict[str, object]:
    """The mapping in a YAML file, which should hold `expected`. UserError where it does not."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        document = parsed(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not YAML{where}; `leakatk init` writes a complete experiment file") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected {expected}; found {type(document).__name__}")
    return document


def apply_overrides(document: dict[str, object], overrides: Overrides) -> None:
    """Set keys of a parsed file: `key.path=value` texts with the value in YAML, or values by key path."""
    if isinstance(overrides, Mapping):
        for path, value in overrides.items():
            put(document, path, value, f"set {path}")
        return
    for change in overrides:
        override(document, change)


def override(document: dict[str, object], change: str) -> None:
    """Set one `key.path=value` in the parsed file."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"--set {change}: expected key.path=value, for example --set train.lr=1e-5")
    try:
        value = parsed(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {change}: the value is not YAML") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML reads 1e-5 as text
            value = float(value)
    put(document, path, value, f"--set {change}")


def put(document: dict[str, object], path: str, value: object, where: str) -> None:
    """Set the key at a path such as `methods.0.beta`, list items by their index; `where` names the change in errors."""
    node: Any = document
    *parents, last = path.split(".")
    try:
        for part in parents:
            if isinstance(node, list):
                node = node[int(part)]
            else:
                if node.get(part) is None:
                    node[part] = {}
                node = node[part]
        if isinstance(node, list):
            node[int(last)] = value
        else:
            node[last] = value
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{where}: there is no {path} in the experiment") from error
