"""Documents that people write, in YAML: read, changed by `--set`, checked against a pydantic schema.

Every mistake in one is a UserError of one line that names the place and the nearest valid name. Knows nothing of what
the documents are about.
"""

from __future__ import annotations

import contextlib
import difflib
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from engine.errors import UserError


def read_yaml(path: Path, expected: str) -> dict[str, Any]:
    """The mapping in a YAML file, which should hold `expected`. UserError where it does not."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}: not YAML{where}; see examples/ for complete experiment files") from error
    if not isinstance(document, dict):
        raise UserError(f"{path}: expected {expected}; found {type(document).__name__}")
    return document


def known(name: str, valid: Any, where: str, lister: str) -> None:
    """UserError with the nearest valid name unless `name` is one of `valid`."""
    if name not in valid:
        raise UserError(f"{where}: unknown {name!r}{_nearest(name, valid)}; `{lister}` lists all")


def validated(schema: type[BaseModel], values: Any, where: str) -> Any:
    """`schema` filled with `values`; its first mistake as a UserError that names the key and the nearest valid one."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            valid = _fields_at(schema, first["loc"][:-1])
            message = f"unknown key {key!r}{_nearest(str(first['loc'][-1]), valid)}"
        elif first["type"] == "missing":
            message = f"key {key!r} is missing"
        else:
            reason = first["msg"].removeprefix("Value error, ")
            message = f"{key}: {reason}, found {str(first['input'])[:60]!r}" if key else reason
        raise UserError(f"{where}: {' '.join(message.split())}") from error


def _fields_at(schema: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location` below `schema`."""
    for part in location:
        if isinstance(part, int):
            continue
        field = schema.model_fields.get(part)
        if field is None:
            break
        candidates = [field.annotation, *typing.get_args(field.annotation)]
        sections = [each for each in candidates if isinstance(each, type) and issubclass(each, BaseModel)]
        if not sections:
            break
        schema = sections[0]
    return list(schema.model_fields)


def _nearest(name: str, valid: Any) -> str:
    near = difflib.get_close_matches(name, [str(each) for each in valid], n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else f" (valid: {', '.join(sorted(str(each) for each in valid))})"


def override(document: dict[str, Any], change: str) -> None:
    """Set one `key.path=value` in the parsed file; list items by their index."""
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise UserError(f"--set {change}: expected key.path=value, for example --set train.lr=1e-5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"--set {change}: the value is not YAML") from error
    if isinstance(value, str):
        with contextlib.suppress(ValueError):  # YAML reads 1e-5 as text
            value = float(value)
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
        raise UserError(f"--set {change}: there is no {path} in the experiment") from error
