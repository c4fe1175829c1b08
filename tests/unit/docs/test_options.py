"""Keys of pydantic models as pages show them."""

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from docs.generate.options import definition_list, introduction, keys_of


class Inner(BaseModel):
    """depth: how deep."""

    depth: int = 1


class Base(BaseModel):
    """seed: of all that is random; size: as the base has it."""

    seed: int = Field(default=0, ge=0, lt=2**63)


class Outer(Base):
    """A thing of parts. Its note: is no key.

    rate, size: how fast, and how much (None: as it comes);
    mode: plain or
    fancy. parts: its parts, of a kind: any.
    """

    rate: float = Field(default=0.5, gt=0, le=1)
    size: Annotated[int, Field(ge=1)] | None = None
    mode: Literal["plain", "fancy"] = "plain"
    parts: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}
    path: str
    given: object = None


KEYS = {key.name: key for key in keys_of(Outer)}


def test_a_docstring_says_what_each_key_is():
    texts = {name: key.text for name, key in KEYS.items()}
    assert texts["rate"] == texts["size"] == "how fast, and how much (None: as it comes)"
    assert texts["mode"] == "plain or fancy"
    assert texts["parts"] == "its parts, of a kind: any"
    assert texts["seed"] == "of all that is random"
    assert texts["path"] == ""
    assert introduction(Outer).strip() == "A thing of parts. Its note: is no key."


def test_the_values_that_a_key_takes_are_in_words():
    kinds = {name: key.kind for name, key in KEYS.items()}
    assert kinds["rate"] == "number above 0 and at most 1"
    assert kinds["size"] == "integer at least 1"
    assert kinds["seed"] == "integer at least 0 and below 9223372036854775808"
    assert kinds["mode"] == "`plain` or `fancy`"
    assert kinds["parts"] == "list of sections"
    assert (kinds["named"], kinds["path"], kinds["given"]) == ("mapping", "text", "any value")


def test_defaults_stand_as_in_yaml():
    defaults = {name: key.default for name, key in KEYS.items()}
    assert (defaults["path"], defaults["size"]) == ("required", "not set")
    assert (defaults["rate"], defaults["mode"], defaults["parts"]) == (
        "default `0.5`",
        "default `plain`",
        "default `[]`",
    )


def test_sections_are_found_in_lists_and_mappings():
    assert (KEYS["parts"].sections, KEYS["parts"].suffix) == ((Inner,), "[]")
    assert (KEYS["named"].sections, KEYS["named"].suffix) == ((Inner,), ".NAME")
    assert KEYS["rate"].sections == ()


def test_a_key_is_an_item_with_an_anchor():
    shown = definition_list(keys_of(Inner), "outer.parts[].")
    assert "[`outer.parts[].depth`](#outer.parts.depth){ #outer.parts.depth .key } integer; default `1`" in shown
    assert ":   how deep\n" in shown
