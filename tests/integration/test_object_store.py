"""A store on S3: stages appear whole or not at all, on every machine the same; tested against a local server."""

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from engine.cli import main
from engine.cluster.reporter import Silent
from engine.errors import StorageError, UserError
from engine.store import replica
from engine.store.manifest import digest_of
from engine.store.object_store import Remote, remote
from engine.store.replica import collect_files, collect_folder, present, readable, share_file, share_folder
from engine.store.store import Store
from engine.store.work_dir import Workplace, at_work, open_workplace


@pytest.fixture(scope="module")
def ray_cluster():
    """None: the store needs no cluster, only a server."""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """`machine(name)`: from now on this process has the disk of another machine."""

    def move(name):
        monkeypatch.setenv("LEAKATK_CACHE", str(tmp_path / name))

    move("a")
    return move


def build_text(text):
    def build(work):
        (work / "units").mkdir()
        (work / "units" / "0").write_text(text)
        (work / "history").write_text("h" * 10)
        return {"length": len(text)}

    return build


def refuse(work):
    raise AssertionError("built again")


def test_another_machine_finds_the_finished_stage(s3, machine):
    made = Store(f"{s3}/p").stage("sample", {"n": 1}, build_text("abc"))
    machine("b")
    found = Store(f"{s3}/p").stage("sample", {"n": 1}, refuse)
    assert found.reused
    assert found.path != made.path
    assert found.manifest == made.manifest
    assert (found.path / "units" / "0").read_text() == "abc"
    assert (found.path / "manifest.json").read_bytes() == (made.path / "manifest.json").read_bytes()


def test_a_lazily_found_stage_is_fetched_when_it_is_read(s3, machine):
    Store(s3).stage("train", {}, build_text("weights"), lazily=True)
    machine("b")
    found = Store(s3).stage("train", {}, refuse, lazily=True)
    assert not found.path.exists()
    assert readable(found.path / "units" / "0").read() == b"weights"
    assert not found.path.exists()
    assert (present(found.path / "units") / "0").read_text() == "weights"


def test_nothing_of_an_upload_that_was_cut_off_is_seen(s3, machine, monkeypatch):
    put = Remote.put

    def cut(self, key, data):
        if key.endswith("manifest.json"):
            raise KeyboardInterrupt
        put(self, key, data)

    monkeypatch.setattr(Remote, "put", cut)
    with pytest.raises(KeyboardInterrupt):
        Store(s3).stage("train", {}, build_text("first"))
    monkeypatch.setattr(Remote, "put", put)
    assert remote(s3).sizes("train")  # files are there, no manifest
    machine("b")
    assert not Store(s3).stage("train", {}, build_text("second")).reused
    machine("a")  # its own finished folder gives way to what all others use
    stage = Store(s3).stage("train", {}, refuse)
    assert (stage.path / "units" / "0").read_text() == "second"


def test_what_was_finished_but_not_uploaded_is_uploaded_on_the_next_try(s3, machine, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(Remote, "upload", lambda *_: (_ for _ in ()).throw(StorageError("gone")))
        with pytest.raises(StorageError):
            Store(s3).stage("train", {}, build_text("x"))
    assert Store(s3).stage("train", {}, refuse).reused
    machine("b")
    assert Store(s3).stage("train", {}, refuse).reused


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "outside"])
def test_a_damaged_object_sets_its_stage_aside_which_is_made_again(s3, machine, damage):
    made = Store(s3).stage("score", {}, build_text("weights"))
    store = remote(s3)
    folder = replica.mirror_of(made.path).key(made.path)
    name = next(key for key in store.sizes(folder) if key.endswith("units/0"))
    if damage == "truncate":
        store.put(f"{folder}/{name}", b"wei")
    elif damage == "flip":
        store.put(f"{folder}/{name}", b"weighsT")
    elif damage == "remove":
        store.delete(f"{folder}/{name}")
    elif damage == "manifest":
        store.put(f"{folder}/manifest.json", store.get(f"{folder}/manifest.json")[:40])
    else:
        manifest = json.loads(store.get(f"{folder}/manifest.json"))
        manifest["files"]["../../outside"] = manifest["files"].pop("units/0")
        manifest["sha256"] = digest_of(manifest)
        store.put(f"{folder}/manifest.json", json.dumps(manifest).encode())
    machine("b")
    with pytest.warns(UserWarning, match="made again"):
        stage = Store(s3).stage("score", {}, build_text("weights"))
    assert not stage.reused
    assert any("/manifest.damaged-" in f"/{key}" for key in store.sizes(folder))
    machine("c")
    assert (Store(s3).stage("score", {}, refuse).path / "units" / "0").read_text() == "weights"


def test_a_damaged_model_is_one_line_and_made_again_by_the_next_run(s3, machine):
    made = Store(s3).stage("train", {}, build_text("weights"))
    folder = replica.mirror_of(made.path).key(made.path)
    name = next(key for key in remote(s3).sizes(folder) if key.endswith("units/0"))
    remote(s3).put(f"{folder}/{name}", b"weighsT")
    machine("b")
    stage = Store(s3).stage("train", {}, refuse, lazily=True)
    with pytest.raises(StorageError, match="damaged"):
        present(stage.path)
    assert not Store(s3).stage("train", {}, build_text("weights"), lazily=True).reused


def slow_build(url, cache, barrier):
    os.environ["LEAKATK_CACHE"] = cache

    def build(work):
        barrier.wait(300)  # both are at it
        for name in range(5):
            (work / str(name)).write_text(f"{cache} {name}")
        return {"by": cache}

    stage = Store(url).stage("train", {}, build)
    Path(cache, "seen").write_text(
        json.dumps([stage.facts["by"], *((stage.path / str(n)).read_text() for n in range(5))])
    )


@pytest.mark.long  # the local server now and then gives half of an object that is being written, as S3 never does
def test_two_machines_that_build_one_stage_at_once_end_with_the_same_whole_one(s3, tmp_path):
    spawn = multiprocessing.get_context("spawn")
    barrier = spawn.Barrier(2)
    caches = [str(tmp_path / name) for name in "ab"]
    processes = [spawn.Process(target=slow_build, args=(s3, cache, barrier)) for cache in caches]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    seen = [json.loads(Path(cache, "seen").read_text()) for cache in caches]
    for by, *texts in seen:
        assert texts == [f"{by} {n}" for n in range(5)]  # never mixed
    os.environ["LEAKATK_CACHE"] = str(tmp_path / "c")
    winner = Store(s3).stage("train", {}, refuse)
    assert winner.facts["by"] in caches
    assert [(winner.path / str(n)).read_text() for n in range(5)] == [f"{winner.facts['by']} {n}" for n in range(5)]


def test_unfinished_units_and_checkpoints_are_found_by_another_machine(s3, machine):
    def half(work):
        (work / "units").mkdir()
        (work / "units" / "0").write_text("done")
        share_file(work / "units" / "0")
        for step in (20, 40):
            (work / "checkpoint").mkdir(exist_ok=True)
            (work / "checkpoint" / "state").write_text(f"at {step}")
            share_folder(work / "checkpoint", order=step)
        raise RuntimeError("killed")

    def rest(work):
        (work / "units").mkdir()
        collect_files(work / "units")
        collect_folder(work / "checkpoint", above=0)
        assert (work / "checkpoint" / "state").read_text() == "at 40"
        (work / "checkpoint" / "state").write_text("at 60, not shared yet")
        collect_folder(work / "checkpoint", above=60)
        assert (work / "checkpoint" / "state").read_text() == "at 60, not shared yet"
        return {"unit": (work / "units" / "0").read_text()}

    with pytest.raises(RuntimeError):
        Store(s3).stage("sample", {}, half)
    assert len([key for key in remote(s3).sizes("sample") if key.endswith("state")]) == 1  # older ones are deleted
    machine("b")
    assert Store(s3).stage("sample", {}, rest).facts == {"unit": "done"}
    assert not [key for key in remote(s3).sizes("sample") if ".work" in key]


def write_model(folder):
    (folder / "model").mkdir()
    (folder / "model" / "weights").write_text("made elsewhere")
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "large").write_text("not delivered")


def test_what_a_worker_of_another_node_made_reaches_the_driver(s3, machine, tmp_path):
    def build(work):
        place = open_workplace(work)
        here = place.mirror
        elsewhere = tmp_path / "node" / Path(here.root).name  # the same keys on another disk
        other = Workplace(
            str(elsewhere / work.relative_to(here.root)), replica.Mirror(here.url, str(elsewhere)), place.token
        )
        at_work(other, Silent().begin, write_model, Path(other.folder))
        place.receive()
        return {}

    stage = Store(s3).stage("train", {}, build)
    assert list(stage.manifest["files"]) == ["model/weights"]
    assert (stage.path / "model" / "weights").read_text() == "made elsewhere"


def test_a_worker_on_the_drivers_disk_delivers_nothing(s3, machine):
    def build(work):
        place = open_workplace(work)
        at_work(place, Silent().begin, write_model, work)
        assert not remote(s3).sizes("train")
        return {}

    Store(s3).stage("train", {}, build)


def endless_build(url, cache):
    os.environ["LEAKATK_CACHE"] = cache

    def build(work):
        (work / "unit").write_text("1")
        share_file(work / "unit")
        time.sleep(60)

    Store(url).stage("train", {}, build)


def test_a_killed_builder_leaves_nothing_finished_on_any_machine(s3, machine, tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=endless_build, args=(s3, str(tmp_path / "x")))
    process.start()
    while not remote(s3).sizes("train"):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    def rest(work):
        collect_files(work)
        return {"unit": (work / "unit").read_text()}

    assert Store(s3).stage("train", {}, rest).facts == {"unit": "1"}


def one_line(capsys):
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


EXPERIMENT = str(Path(__file__).parents[2] / "examples" / "fictional.yaml")


@pytest.mark.parametrize(
    ("store", "told"),
    [
        ("s3://no-such-bucket-here/x", "no such bucket"),
        ("s3://key:planted-secret-key-0123456789@bucket/x", "without user, password or options"),
        ("s3://bucket/x?secret_key=planted-secret-key-0123456789", "without user, password or options"),
        ("s3:///x", "name a bucket"),
        ("zz://bucket/x", "no such kind of store"),
        ("abfs://container/x", "fsspec needs another package"),
    ],
)
def test_a_store_that_cannot_be_used_is_the_users_mistake(s3, machine, capsys, store, told):
    assert main(["run", EXPERIMENT, "--store", store]) == 2
    err = one_line(capsys)
    assert told in err
    assert "planted" not in err


def test_a_server_that_is_not_there_is_the_users_mistake(s3, machine, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("engine.store.object_store.ATTEMPTS", 2)
    with pytest.raises(UserError, match="does not answer"):
        Store(f"{s3}/nowhere")


def test_refused_credentials_are_the_users_mistake(s3, machine, s3_server):
    import urllib.request

    def authorise_after(calls):
        address, form = f"{s3_server}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        urllib.request.urlopen(urllib.request.Request(address, calls, form, method="POST")).read()

    authorise_after(b"0")
    try:
        with pytest.raises(UserError, match="does not know this access key") as raised:
            Store(f"{s3}/refused")
    finally:
        authorise_after(b"inf")
    assert "planted" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_download_that_was_cut_off_is_gone_on_from_and_leaves_no_file_behind(s3, machine, monkeypatch):
    made = Store(s3).stage("train", {}, build_text("weights"))
    machine("b")
    download = Remote.download

    def cut(self, key, path):
        download(self, key, path)
        if key.endswith("history"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Remote, "download", cut)
        with pytest.raises(KeyboardInterrupt):
            Store(s3).stage("train", {}, refuse)
    fetched = []
    monkeypatch.setattr(Remote, "download", lambda self, key, path: fetched.append(key) or download(self, key, path))
    found = Store(s3).stage("train", {}, refuse)
    assert not [key for key in fetched if key.endswith("history")]
    assert found.manifest == made.manifest
    assert [path.name for path in found.path.parent.iterdir() if path.name.startswith(".")] == []


def test_what_a_kill_after_the_manifest_left_of_the_work_is_deleted(s3, machine, monkeypatch):
    def build(work):
        (work / "unit").write_text("1")
        share_file(work / "unit")
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(replica.Mirror, "clear", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            Store(s3).stage("train", {}, build)
    assert [key for key in remote(s3).sizes("train") if ".work" in key]
    assert Store(s3).stage("train", {}, refuse).reused
    assert not [key for key in remote(s3).sizes("train") if ".work" in key]
