"""The documentation site, built as `make docs` builds it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Its folder. Strict: a link, an anchor or a name in the Python reference that leads nowhere fails the build."""
    folder = tmp_path_factory.mktemp("docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_readme_and_the_pages_made_from_the_code_are_in_it(site):
    assert "images/demo.png" in (site / "index.html").read_text()
    assert 'id="train.lr"' in (site / "reference" / "experiment.html").read_text()
    assert 'id="npo.beta"' in (site / "reference" / "methods.html").read_text()
    assert 'id="run.set"' in (site / "reference" / "commands.html").read_text()
    for name in ("leakatk.experiments.run", "engine.leak.curve.LeakCurve", "engine.reporting.results.Results.table"):
        assert f'id="{name}"' in (site / "api.html").read_text()


@pytest.mark.slow
def test_a_page_loads_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = re.findall(r'<(?:script|img|iframe)[^>]* src="([^"]+)"|<link[^>]* href="([^"]+)"', page.read_text())
        assert not [url for urls in loaded for url in urls if url.startswith(("http:", "https:", "//"))], page
