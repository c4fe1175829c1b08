"""What is installed: the ranges of pyproject.toml, the tested versions of constraints.txt, and their users in step."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
NEEDED = [Requirement(each) for each in PROJECT["dependencies"]]
OPTIONAL = PROJECT["optional-dependencies"]
# vLLM brings versions of its own: `make test-vllm` has an environment for it, by the ranges.
EXTRAS = [Requirement(each) for name, group in OPTIONAL.items() if name != "vllm" for each in group]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    found = dict(line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in found.items()}


@pytest.mark.parametrize("requirement", [*NEEDED, *EXTRAS], ids=lambda each: each.name)
def test_the_tested_version_of_every_dependency_is_named_and_lies_in_its_range(requirement):
    assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda each: each.name)
def test_no_dependency_is_pinned_so_that_leakatk_can_be_installed_beside_others(requirement):
    assert {each.operator for each in requirement.specifier} == {">=", "<"}


def test_what_dependencies_need_in_turn_is_named_too():
    """Of every package that leakatk's dependencies ask for on this Python, as their metadata say."""
    tested, seen = pins(), set()
    waiting = [(each.name, frozenset(each.extras)) for each in (*NEEDED, *EXTRAS)]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        assert canonicalize_name(name) in tested, f"{name} is not in constraints.txt"
        for text in metadata.requires(name) or []:
            asked = Requirement(text)
            if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                waiting.append((asked.name, frozenset(asked.extras)))


def test_setup_and_ci_install_the_pins():
    installs = re.findall(r"pip install (.*)", (ROOT / "Makefile").read_text())
    own = [each for each in installs if "--editable" in each and "needed.txt" not in each]
    assert own
    assert all("--constraint constraints.txt" in each for each in own)
    assert "make test" in (ROOT / ".ci" / "run").read_text()  # which sets up by these


def test_python_311_to_313_are_admitted():
    admitted = SpecifierSet(PROJECT["requires-python"])
    assert [minor for minor in range(9, 16) if f"3.{minor}" in admitted] == [11, 12, 13]


def test_every_tested_version_installs_on_the_oldest_python_that_is_asked_for():
    asked = SpecifierSet(PROJECT["requires-python"])
    oldest = next(version for version in map("3.{}.0".format, range(9, 20)) if version in asked)
    needs = {name: metadata.metadata(name).get("Requires-Python") for name in pins()}
    assert not {name: needed for name, needed in needs.items() if needed and oldest not in SpecifierSet(needed)}
