"""Stages are built once, appear whole or not at all, and survive kills and damage."""

import json
import multiprocessing
import os
import signal
import time

import pytest

from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.store.files import check_locks
from engine.store.store import Store


def build_text(text):
    def build(work):
        (work / "out.txt").write_text(text)
        return {"length": len(text)}

    return build


def refuse(work):
    raise AssertionError("built again")


def test_the_same_inputs_are_built_once(tmp_path):
    first = Store(tmp_path).stage("train", {"lr": 0.1}, build_text("a"))
    again = Store(tmp_path).stage("train", {"lr": 0.1}, refuse)
    assert not first.reused
    assert again.reused
    assert again.path == first.path
    assert again.facts == {"length": 1}


def test_other_inputs_or_another_kind_are_another_stage(tmp_path):
    store = Store(tmp_path)
    paths = {
        store.stage(kind, inputs, build_text("a")).path
        for kind, inputs in [("train", {"lr": 0.1}), ("train", {"lr": 0.2}), ("sample", {"lr": 0.1})]
    }
    assert len(paths) == 3


def test_fingerprint_ignores_the_order_of_keys_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert fingerprint({"a": 1, "b": [1, 2]}) != fingerprint({"a": 1, "b": [2, 1]})
    with pytest.raises(ValueError, match="Out of range float"):
        fingerprint({"a": float("nan")})


def test_a_failed_build_leaves_its_work_for_the_next_try(tmp_path):
    def half(work):
        (work / "part").write_text("1")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        Store(tmp_path).stage("sample", {}, half)

    def rest(work):
        assert (work / "part").read_text() == "1"
        return {}

    assert (Store(tmp_path).stage("sample", {}, rest).path / "part").exists()


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest"])
def test_a_damaged_stage_is_set_aside_and_built_again(tmp_path, damage):
    path = Store(tmp_path).stage("train", {}, build_text("weights")).path
    if damage == "truncate":
        os.truncate(path / "out.txt", 3)
    elif damage == "flip":
        (path / "out.txt").write_text("weighsT")
    elif damage == "remove":
        (path / "out.txt").unlink()
    else:
        (path / "manifest.json").write_text((path / "manifest.json").read_text()[:40])
    with pytest.warns(UserWarning, match="damaged"):
        stage = Store(tmp_path).stage("train", {}, build_text("weights"))
    assert not stage.reused
    assert (stage.path / "out.txt").read_text() == "weights"


def test_the_manifest_lists_every_file_and_no_temporary_one(tmp_path):
    def build(work):
        (work / "units").mkdir()
        (work / "units" / "0.parquet").write_bytes(b"x")
        (work / ".part").write_text("half")
        return {}

    stage = Store(tmp_path).stage("sample", {}, build)
    assert list(stage.manifest["files"]) == ["units/0.parquet"]
    assert not (stage.path / ".part").exists()
    assert json.loads((stage.path / "manifest.json").read_text())["inputs"] == {}


def slow_build(root, log):
    def build(work):
        with log.open("a") as stream:
            stream.write("built\n")
        time.sleep(0.3)
        return {}

    Store(root).stage("train", {}, build)


def test_two_processes_asking_at_once_build_it_once(tmp_path):
    log = tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=slow_build, args=(tmp_path / "store", log)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log.read_text() == "built\n"


def endless_build(root):
    def build(work):
        (work / "part").write_text("1")
        time.sleep(60)

    Store(root).stage("train", {}, build)


def test_a_killed_builder_frees_its_lock_and_leaves_nothing_finished(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=endless_build, args=(tmp_path,))
    process.start()
    while not list(tmp_path.glob("train/*.work/part")):
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not [path for path in (tmp_path / "train").iterdir() if not path.suffix]
    assert Store(tmp_path).stage("train", {}, build_text("a")).facts == {"length": 1}


def test_a_store_that_cannot_be_written_is_the_users_mistake(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="not writable"):
        Store(tmp_path / "file" / "store")


@pytest.mark.parametrize(
    ("options", "warns"),
    [("rw,vers=4.2,local_lock=none", False), ("rw,nolock,vers=3", True), ("rw,vers=3,local_lock=flock", True)],
)
def test_nfs_without_locks_between_hosts_is_warned_of(tmp_path, recwarn, options, warns):
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda / ext4 rw,nolock 0 0\nserver:/x {tmp_path} nfs4 {options} 0 0\n")
    check_locks(tmp_path / "store", mounts)
    assert [str(each.message).split(" ")[0] for each in recwarn] == ([str(tmp_path)] if warns else [])


def test_a_stage_that_another_host_finished_meanwhile_is_taken(tmp_path):
    def overtaken(work):
        other = Store(tmp_path / "other").stage("train", {}, build_text("first"))
        other.path.rename(work.with_suffix(""))
        (work / "out.txt").write_text("second")
        return {"length": 0}

    stage = Store(tmp_path / "store").stage("train", {}, overtaken)
    assert stage.reused
    assert (stage.path / "out.txt").read_text() == "first"
    assert stage.facts == {"length": 5}
    assert not stage.path.with_suffix(".work").exists()
