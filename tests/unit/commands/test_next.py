"""What a finished run says to do next can be pasted, and compares no model with itself."""

import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.commands.run import _show_next


@pytest.mark.parametrize(
    ("roles", "judged", "against_retain"),
    [(["target"], "target", False), (["target", "retain"], "target", True), (["target", "retain", "npo"], "npo", True)],
)
def test_the_leak_command_is_quoted_and_names_two_models(tmp_path, capsys, roles, judged, against_retain):
    folder = tmp_path / "my store; rm -rf" / "scores"
    folder.mkdir(parents=True)
    for role in roles:
        (folder / f"{role}.forget.jsonl").touch()
    models = [SimpleNamespace(name=role, role=role) for role in roles]
    written = SimpleNamespace(results=SimpleNamespace(models=models, leak_group="forget"), scores=folder)
    _show_next(written, SimpleNamespace(root=folder.parent, address=str(folder.parent)))
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("  leakatk")]
    leak = next(words for words in lines if words[1] == "leak")
    assert Path(leak[2]) == folder / f"{judged}.forget.jsonl"
    assert leak[3:] == (["--retain", str(folder / "retain.forget.jsonl")] if against_retain else [])
    assert ["leakatk", "ui", "--store", str(folder.parent)] in lines
