"""docs/python.md: every snippet of the page runs, in its order, and means what the page says."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from engine.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "python.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
FILES = re.findall(r"^```yaml\n# (\S+)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.long
def test_every_snippet_of_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("LEAKATK_STORE", raising=False)
    assert main(["init"]) == 0
    for name, text in FILES:
        Path(name).write_text(text)
    names, printed = {}, []
    assert len(SNIPPETS) >= 6
    for snippet in SNIPPETS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(snippet, "docs/python.md", "exec"), names)
        printed.append(out.getvalue())

    run = names["run"]
    assert (run.folder / "results.json").exists()
    assert run.report.read_text().startswith("<!DOCTYPE html>")
    assert (tmp_path / "leakatk-store" / "mlflow.db").exists()
    assert set(names["table"].model) == {"target", "retain", "npo"}
    assert len(names["search"].table()) == 2
    (comment,) = re.findall(r"print\(error\)  # (.*)", SNIPPETS[-1])
    assert printed[-1].startswith(comment)

    monkeypatch.chdir(tmp_path)
    again = names["leakatk"].run(names["experiment"], store="leakatk-store", quiet=True)
    assert again.table().equals(names["table"])
