"""Every `leakatk ...` line of README and docs is one that the command line takes, whatever stands for its names."""

import re
import shlex
from pathlib import Path

import pytest

from engine.cli import build_parser

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands():
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        for line in re.findall(r"^(?:    )?(leakatk [a-z].*)$", text, re.MULTILINE):
            words = shlex.split(line, comments=True)
            if len(words) > 1 and words[1].isalpha():
                yield pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}")


FOUND = list(commands())


def test_there_are_many():
    assert len(FOUND) > 30


@pytest.mark.parametrize("words", FOUND)
def test_a_command_of_a_page_is_understood(words):
    words = [word for word in words if word not in ("[RUN", "...]")]
    build_parser(words[0]).parse_args(words)
