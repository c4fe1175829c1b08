"""The reference pages name all that there is, and say what it is."""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS
from docs.generate.commands import command_page
from docs.generate.options import keys_of
from docs.generate.pages import pages
from engine.cli import COMMANDS, main
from engine.config.experiment import Experiment
from engine.robustness.attacks import ATTACKS
from engine.search.space import Space
from methods import METHODS

ROOT = Path(__file__).parents[3]
PAGES = pages()


def key_paths(schema, definitions, path=""):
    """Dotted paths of all keys in a JSON schema, those of sections in lists and mappings too."""
    if "$ref" in schema:
        schema = definitions[schema["$ref"].rpartition("/")[2]]
    for name, child in schema.get("properties", {}).items():
        yield path + name
        yield from key_paths(child, definitions, f"{path}{name}.")
    for part in (*schema.get("anyOf", ()), *([schema["items"]] if schema.get("items") else [])):
        yield from key_paths(part, definitions, path)
    if isinstance(schema.get("additionalProperties"), dict):
        yield from key_paths(schema["additionalProperties"], definitions, f"{path}NAME.")


@pytest.mark.parametrize(("model", "page"), [(Experiment, "experiment"), (Space, "space")])
def test_every_key_is_there_with_a_text(model, page):
    schema = model.model_json_schema()
    paths = set(key_paths(schema, schema["$defs"]))
    described = dict(re.findall(r"\{ #(\S+) \.key \}.*\n:   (.+)", PAGES[f"reference/{page}.md"]))
    assert paths == set(described)
    assert len(paths) > 20


OPTIONS = {
    "benchmarks": {name: each.Options for name, each in BENCHMARKS.items()},
    "methods": METHODS,
    "attacks": ATTACKS,
}


@pytest.mark.parametrize("page", OPTIONS)
def test_every_option_is_there_with_a_text(page):
    options = OPTIONS[page]
    wanted = {f"{name}.{key.name}" for name, model in options.items() for key in keys_of(model)}
    text = PAGES[f"reference/{page}.md"]
    assert wanted == set(dict(re.findall(r"\{ #(\S+) \.key \}.*\n:   (.+)", text)))
    assert re.findall(r"^## (\S+)$", text, re.MULTILINE) == list(options)


def test_the_pages_are_made_without_torch_or_ray():
    """`make docs` installs the extra docs alone."""
    lines = ["import sys", "from docs.generate import commands, pages", "pages.pages(), commands.command_page()"]
    lines += ["heavy = {'torch', 'ray', 'transformers', 'datasets', 'mlflow', 'pandas', 'scipy', 'rich', 'regex'}"]
    lines += ["print(heavy & set(sys.modules))"]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_every_environment_variable_of_ours_is_named():
    sources = [path.read_text() for folder in ("engine", "leakatk") for path in (ROOT / folder).rglob("*.py")]
    read = set(re.findall(r"LEAKATK_[A-Z_]+", "".join(sources)))
    assert len(read) > 3
    assert read <= set(re.findall(r"`(LEAKATK_[A-Z_]+)`", (ROOT / "docs" / "environment.md").read_text()))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_there_as_its_help_shows_it(command):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main([command, "--help"])
    section = re.search(rf"^## {command}$(.*?)(?=^## |\Z)", command_page(), re.MULTILINE | re.DOTALL)[1]
    shown = set(re.findall(r"^\[`(--[a-z-]+)", section, re.MULTILINE))
    assert shown == set(re.findall(r"^  (--[a-z-]+)", out.getvalue(), re.MULTILINE))
