"""The keys of a pydantic model as a page shows them: name, kind of value, default, what it is.

A model comes in, Markdown comes out. What a key is stands in the docstring of its class, or of one that this inherits
from, as `key: text`, several as `key, key: text`, up to the next key. Knows nothing of experiments.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

Schema = Mapping[str, Any]  # JSON schema
LONGEST = 60  # characters of a default
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
KINDS = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false", "object": "mapping"}


@dataclasses.dataclass(frozen=True)
class Key:
    """One key: what values it takes and what it is where it is not given, in words; what it says, empty where no
    docstring tells; the models of its sections, if any, and what their paths have after the key's name: [] in a list,
    .NAME in a mapping."""

    name: str
    kind: str
    default: str
    text: str
    sections: tuple[type[BaseModel], ...]
    suffix: str


def keys_of(model: type[BaseModel]) -> list[Key]:
    """The keys of a model, in their order."""
    schema = model.model_json_schema()
    definitions, required = schema.get("$defs", {}), schema.get("required", [])
    texts = descriptions(model)
    found = []
    for field_name, field in model.model_fields.items():
        name = field.alias or field_name
        given = schema["properties"][name]
        default = "required" if name in required else _default(given.get("default"))
        kind = _kind(given, definitions)
        suffix = "[]" if kind.startswith("list") else ".NAME" if kind == "mapping" else ""
        found.append(Key(name, kind, default, texts.get(name, ""), tuple(_models(field.annotation)), suffix))
    return found


def descriptions(model: type[BaseModel]) -> dict[str, str]:
    """What each key is, by its name: from the nearest class that says it."""
    names = _names(model)
    found: dict[str, str] = {}
    for owner in model.__mro__:
        found = {name: words for name, words in labelled(owner.__doc__ or "", names) if name} | found
    return found


def labelled(docstring: str, names: set[str]) -> list[tuple[str, str]]:
    """The texts of a docstring by name: "lr: peak learning rate; gamma, alpha: weights" gives three. First comes what
    stands before them, which has the name "". A name of several at once has its text repeated."""
    text = " ".join(docstring.split())
    name = "|".join(sorted(map(re.escape, names), key=len, reverse=True))
    label = re.compile(rf"(?:^|(?<=[;.] ))((?:{name})(?:, (?:{name}))*): ")
    starts = list(label.finditer(text)) if names else []
    found = [("", text[: starts[0].start()] if starts else text)]
    for start, after in itertools.zip_longest(starts, starts[1:]):
        words = text[start.end() : after.start() if after else len(text)].strip().rstrip(";.")
        found += [(each, words) for each in start[1].split(", ")]
    return found


def introduction(model: type[BaseModel]) -> str:
    """What the docstring of a model says before its first key."""
    return " ".join(words for name, words in labelled(model.__doc__ or "", _names(model)) if not name)


def definition_list(keys: list[Key], prefix: str = "", place: str | None = None) -> str:
    """The keys as a Markdown definition list. prefix: stands before each name; place: before each name in its anchor,
    the prefix where it is None."""
    parts = []
    for key in keys:
        anchor = (prefix if place is None else place).replace("[]", "") + key.name
        about = "; ".join(filter(None, [key.kind, key.default]))
        below = f" ([its keys](#section-{anchor}))" if key.sections and place is None else ""
        parts.append(f"[`{prefix}{key.name}`](#{anchor}){{ #{anchor} .key }} {about}\n:   {key.text}{below}\n")
    return "\n".join(parts)


def _names(model: type[BaseModel]) -> set[str]:
    return {field.alias or name for name, field in model.model_fields.items()}


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    """The pydantic models in an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _models(part)


def _kind(schema: Schema, definitions: Schema) -> str:
    """The values that a JSON schema allows, in words."""
    if "$ref" in schema:
        return _kind(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        kinds = [_kind(each, definitions) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join(dict.fromkeys(kinds))
    if "enum" in schema or "const" in schema:
        values = [f"`{_yaml(value)}`" for value in schema.get("enum", [schema.get("const")])]
        return " or ".join(filter(None, [", ".join(values[:-1]), values[-1]]))
    if schema.get("type") == "array":
        return _list(schema, definitions)
    if schema.get("type") == "object" and schema.get("properties"):
        return "section"
    limits = [f"{words} {schema[name]}" for name, words in LIMITS.items() if name in schema]
    return " ".join(filter(None, [KINDS.get(schema.get("type", ""), "any value"), " and ".join(limits)]))


def _list(schema: Schema, definitions: Schema) -> str:
    if "prefixItems" in schema:
        return f"list of {len(schema['prefixItems'])}"
    noun, space, rest = _kind(schema.get("items", {}), definitions).partition(" ")
    return f"list of {noun + 's' if noun in ('integer', 'number', 'text', 'section') else noun}{space}{rest}"


def _default(value: object) -> str:
    """A default in words; nothing of a section, whose keys have their own."""
    if isinstance(value, dict) and len(value) > 1:
        return ""
    return "not set" if value is None else f"default `{_yaml(value)}`"


def _yaml(value: object) -> str:
    """A value as one writes it in YAML, on one line."""
    if not isinstance(value, str) or not value:
        return json.dumps(value)
    line = " ".join(value.split())
    return line if len(line) <= LONGEST else line[:LONGEST].rpartition(" ")[0] + " ..."
