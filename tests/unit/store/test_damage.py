"""Damage, a full disk and a clock that jumps: never a wrong result, never a stage that stays broken."""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import safetensors.numpy

from engine.cli import main
from engine.cluster.units import whole as unit_is_whole
from engine.errors import disk_is_full
from engine.store.store import Store
from engine.train.checkpoint import steps_of


def build(work):
    (work / "units").mkdir(exist_ok=True)
    table = pyarrow.table({"score": np.linspace(0, 1, 1000)})
    pyarrow.parquet.write_table(table, work / "units" / "000000.parquet", write_page_checksum=True)
    safetensors.numpy.save_file({"w": np.arange(1000, dtype=np.float32)}, work / "model.safetensors")
    return {"samples": 1000, "seconds": 1.5, "by_count": {10: 1, 9: 2}}


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)


def is_made_again(root):
    made = []
    with pytest.warns(UserWarning, match="damaged"):
        stage = Store(root).stage("score", {"x": 1}, lambda work: made.append(1) or build(work))
    assert stage.facts["samples"] == 1000
    return made == [1] and Store(root).stage("score", {"x": 1}, build).reused


@pytest.mark.parametrize("name", ["units/000000.parquet", "model.safetensors"])
def test_a_flipped_bit_or_a_cut_in_a_result_is_found(tmp_path, name):
    path = Store(tmp_path).stage("score", {"x": 1}, build).path / name
    size = path.stat().st_size
    for position in (0, size // 3, size // 2, size - 1):
        flip(path, position, bit=position % 8)
        assert is_made_again(tmp_path)
    for length in (0, size // 2, size - 1):
        os.truncate(path, length)
        assert is_made_again(tmp_path)


def test_no_flipped_bit_of_a_manifest_changes_what_it_says(tmp_path):
    stage = Store(tmp_path).stage("score", {"x": 1}, build)
    path = stage.path / "manifest.json"
    whole, said = path.read_bytes(), json.loads(path.read_text())
    for position in range(0, len(whole), 7):
        path.write_bytes(whole)
        flip(path, position, bit=position % 7)
        try:
            same = json.loads(path.read_text()) == said  # white space
        except ValueError:
            same = False
        opened = Store(tmp_path)._open(stage.path, stage.fingerprint) if same else None
        if same:
            assert opened is not None
            continue
        with pytest.warns(UserWarning, match="damaged"):
            assert Store(tmp_path)._open(stage.path, stage.fingerprint) is None
        next(tmp_path.glob("score/*.damaged-*")).rename(stage.path)


def test_a_damaged_unit_of_an_interrupted_stage_is_computed_again(tmp_path):
    build(tmp_path)
    unit = tmp_path / "units" / "000000.parquet"
    assert unit_is_whole(unit)
    content = unit.read_bytes()
    flip(unit, 40)  # in the first page
    assert not unit_is_whole(unit)
    unit.write_bytes(content[:-3])
    assert not unit_is_whole(unit)
    assert not unit_is_whole(tmp_path / "units" / "000001.parquet")


def test_a_damaged_checkpoint_is_not_continued_from(tmp_path):
    from engine.fingerprint import file_digest

    (tmp_path / "state.pt").write_bytes(b"weights")
    progress = json.dumps({"step": 3, "sha256": file_digest(tmp_path / "state.pt")})
    (tmp_path / "progress.json").write_text(progress)
    assert steps_of(tmp_path) == 3
    flip(tmp_path / "state.pt", 2)
    assert steps_of(tmp_path) == 0
    flip(tmp_path / "state.pt", 2)
    (tmp_path / "progress.json").write_text(progress[:-4])
    assert steps_of(tmp_path) == 0


@contextlib.contextmanager
def full_disk(size=4096):
    """No file may grow beyond `size` bytes: what a full disk does, without the need of one.

    Lifted before the test ends: the limit holds for what pytest writes too, where its output goes to a file.
    """
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])


def test_a_stage_that_finds_the_disk_full_is_finished_once_there_is_room(tmp_path):
    with pytest.raises(Exception, match=r".") as failed, full_disk():
        Store(tmp_path).stage("score", {"x": 1}, build)
    assert disk_is_full(failed.value)
    assert not [path for path in (tmp_path / "score").iterdir() if not path.suffix]
    stage = Store(tmp_path).stage("score", {"x": 1}, build)
    assert not stage.reused
    assert pyarrow.parquet.read_table(stage.path / "units" / "000000.parquet").num_rows == 1000


@pytest.mark.parametrize("moment", ["fsync", "rename"])
def test_a_disk_that_is_full_at_the_last_moment_leaves_nothing_finished(tmp_path, monkeypatch, moment):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full) if moment == "fsync" else patch.setattr("pathlib.Path.rename", full)
        with pytest.raises(OSError, match="No space"):
            Store(tmp_path).stage("score", {"x": 1}, build)
    assert not [path for path in (tmp_path / "score").iterdir() if not path.suffix]
    assert not Store(tmp_path).stage("score", {"x": 1}, build).reused


def test_a_full_disk_is_one_line_and_leaves_no_part_of_a_file(tmp_path, capsys):
    rows = [{"prompt_id": str(i), "prompt": "q", "reference": "a", "responses": ["a"] * 20} for i in range(200)]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with full_disk():
        code = main(["score", str(tmp_path / "g.jsonl"), "--metric", "exact_fact", "--out", str(tmp_path / "s.jsonl")])
    assert code == 1
    assert "disk is full" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["g.jsonl"]


def save_weights(path):
    safetensors.numpy.save_file({"w": np.zeros(10_000)}, path)


def save_checkpoint(path):
    import torch

    torch.save({"w": torch.zeros(10_000)}, path)


def save_table(path):
    pyarrow.parquet.write_table(pyarrow.table({"w": np.random.default_rng(0).random(10_000)}), path)


@pytest.mark.parametrize("save", [save_weights, save_checkpoint, save_table])
def test_a_full_disk_is_recognised_whatever_library_finds_it(tmp_path, save):
    with pytest.raises(Exception, match=r".") as failed, full_disk():
        save(tmp_path / "file")
    assert disk_is_full(failed.value)


def test_a_full_disk_is_recognised_behind_a_workers_error():
    class WorkerError(Exception):
        cause = OSError(errno.ENOSPC, "No space left on device")

    assert disk_is_full(WorkerError())
    assert not disk_is_full(OSError(errno.EACCES, "denied"))


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_clock_that_jumps_changes_no_stage(tmp_path, monkeypatch, jump):
    clock = time.time

    def jumping(work):
        monkeypatch.setattr(time, "time", lambda: clock() + jump)
        return build(work)

    stage = Store(tmp_path).stage("score", {"x": 1}, jumping)
    assert 0 <= stage.manifest["wall_seconds"] < 60
    again = Store(tmp_path).stage("score", {"x": 1}, build)
    assert again.reused
    assert again.facts == stage.facts | {"by_count": {"10": 1, "9": 2}}


def test_files_older_than_their_stage_are_no_damage(tmp_path):
    stage = Store(tmp_path).stage("score", {"x": 1}, build)
    for path in stage.path.rglob("*"):
        os.utime(path, (0, 0))
    assert Store(tmp_path).stage("score", {"x": 1}, build).reused


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_stage_on_a_real_disk_that_fills_up_is_kept_for_the_next_try(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    try:
        script = (
            "import sys; from pathlib import Path; from engine.store.store import Store\n"
            "def build(work):\n"
            "    for part in range(40):\n"
            "        path = work / str(part)\n"
            "        if not path.exists():\n"
            "            (work / '.part').write_bytes(bytes(4096)); (work / '.part').rename(path)\n"
            "    return {}\n"
            "Store(sys.argv[1]).stage('s', {}, build)\n"
        )
        command = [sys.executable, "-c", script, str(small)]
        failed = subprocess.run(command, capture_output=True, text=True)
        assert failed.returncode == 1
        assert "No space left" in failed.stderr
        assert len(list(small.glob("s/*.work/[0-9]*"))) > 5
        subprocess.run(["mount", "-o", "remount,size=4m", small], check=True)
        subprocess.run(command, check=True)
        assert len(list(small.glob("s/*/[0-9]*"))) == 40
    finally:
        subprocess.run(["umount", small], check=True)
