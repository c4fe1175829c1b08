"""kill -9 of the driver and loss of its disk, twice, with the store on S3: nothing is lost, nothing differs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from engine.store.object_store import remote

EXPERIMENT = {
    "name": "kill",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 60, "batch_size": 32, "lr": 5e-3, "max_length": 64, "checkpoint_every": 10}},
    "sampling": {"n": 64, "max_new_tokens": 16},
    "leak": {"k": [1, 8]},
}


def start(folder, store, machine):
    command = [sys.executable, "-m", "engine", "run", str(folder / "kill.yaml"), "--store", store, "--json"]
    environment = os.environ | {"LEAKATK_CACHE": str(folder / machine)}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, start_new_session=True, env=environment)


def finished(folder, store, machine):
    run = start(folder, store, machine)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    rows = json.loads(out)["models"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def killed(folder, store, machine, when):
    """The objects that stood in the store when `when` first held of one of their keys, and the driver was killed."""
    run = start(folder, store, machine)
    while not any(when(key) for key in remote(store).sizes("")):
        assert run.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    os.kill(run.pid, signal.SIGKILL)
    run.communicate()  # its workers have gone too
    return remote(store).sizes("")


@pytest.mark.long
def test_a_driver_whose_machine_is_lost_goes_on_elsewhere_to_the_undisturbed_result(tmp_path, s3):
    (tmp_path / "kill.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    undisturbed = finished(tmp_path, str(tmp_path / "store"), "none")
    store = f"{s3}/kill"
    training = killed(tmp_path, store, "first", lambda key: key.endswith(".work/checkpoint/manifest.json"))
    assert not any(key.startswith("sample/") for key in training)
    sampling = killed(tmp_path, store, "second", lambda key: key.startswith("sample/") and "000001.parquet" in key)
    shared = {key: remote(store).get(key) for key in sampling if ".work/units/" in key}
    assert shared
    assert finished(tmp_path, store, "third") == undisturbed
    end = remote(store).sizes("")
    assert not [key for key in end if ".work/" in key]
    whole = [path for path in (tmp_path / "store").glob("*/*/manifest.json") if path.parts[-3] != "runs"]
    assert len([key for key in end if key.endswith("/manifest.json")]) == len(whole)
    for key, data in shared.items():  # no unit was computed again: even the seconds that it took are the same
        stage, _, name = key.partition(".work/")
        assert data in [remote(store).get(each) for each in end if each.startswith(stage) and each.endswith(name)]
