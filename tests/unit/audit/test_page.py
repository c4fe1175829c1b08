"""The page of an audit: it needs nothing from elsewhere, shows what was said and never runs it."""

import re

import pytest

from benchmarks.base import Decoding
from engine.cli import main
from engine.pipeline.imported_run import imported_run
from engine.reporting.eval_logs import Recomputed
from engine.reporting.imported_log import ImportedLog, Item
from engine.store.store import Store

HOSTILE = "<script>alert(1)</script> silent harbor <img src=x onerror=alert(2)>"


@pytest.fixture
def page(tmp_path, capsys):
    def page(*arguments):
        item = Item("<b>0</b>", "forget", "Who?", "silent harbor", (HOSTILE, "no"))
        log = ImportedLog("made", {"name": "made"}, (item,), Recomputed({}, {}, {}), "exact_fact", Decoding(), "x")
        run = imported_run(log, None, "npo", Store(tmp_path / "store"), "exact_fact").folder
        assert main(["audit", str(run), *arguments]) == 0
        capsys.readouterr()
        return (run / "audit.html").read_text()

    return page


def test_what_was_said_is_shown_and_never_run(page):
    text = page("--with-texts")
    assert "&lt;script&gt;alert(1)&lt;/script&gt; silent harbor" in text
    assert "<script" not in text
    assert "<img" not in text
    assert "<b>0</b>" not in text


def test_it_is_whole_in_itself(page):
    text = page()
    assert not re.search(r"""(src|href)\s*=|url\(|@import""", text)
    assert "default-src 'none'" in text
    assert "silent harbor" not in text
    assert "size: A4" in text


def test_it_says_what_was_asked_found_and_not_known(page):
    text = page()
    for part in ("Level 1 of 3: sampled", "leak@2", "1 prompts", "exact_fact", "There was no retain model", "T1-p1"):
        assert part in text, part
