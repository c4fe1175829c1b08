"""SIGTERM and ctrl-C at ten moments of a run: it ends soon with the signal's code, is marked, and goes on."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import psutil
import pytest
import yaml

ENDS_WITHIN = 120.0  # seconds
EXPERIMENT = {
    "name": "asked",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 40, "batch_size": 16, "max_length": 64, "checkpoint_every": 5}},
    "methods": [
        {"name": "npo", "label": "npo", "train": {"steps": 10}},
        {"name": "grad_diff", "train": {"steps": 10}},
        {"name": "simnpo", "train": {"steps": 10}},
    ],
    "sampling": {"n": 32, "max_new_tokens": 12},
    "leak": {"k": [1, 8]},
}


def there(pattern):
    return lambda store, run: any(store.glob(pattern))


def ray_starts(store, run):
    names = [each.name() for each in psutil.Process(run.pid).children(recursive=True)]
    return any("gcs_server" in name for name in names)


def more_than_can_run(store, run):
    """Three methods' trainings have begun on two CPUs: one of them waits."""
    return len(list(store.glob("train/*.work"))) >= 3


# What is seen when the signal is sent; whether the run has a folder to be marked by then and is not finished.
MOMENTS = {
    "before anything": (lambda store, run: True, False),
    "while Ray starts": (ray_starts, True),
    "at the first stage": (there("base/*.work"), True),
    "a training has begun": (there("train/*.work"), True),
    "a training has saved": (there("train/*.work/checkpoint/progress.json"), True),
    "a training waits for a CPU": (more_than_can_run, True),
    "within a unit of sampling": (there("sample/*.work"), True),
    "within known answers": (there("answers/*.work"), True),
    "while pictures are drawn": (there("runs/*/results.json"), False),
    "while MLflow records": (there("mlflow.db"), False),
}


def started(folder, store):
    (folder / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    command = [sys.executable, "-m", "engine", "run", str(folder / "e.yaml"), "--store", str(store), "--json"]
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    ray = tempfile.mkdtemp(prefix="lk")
    with (folder / "err").open("a") as err:
        return subprocess.Popen(command, env=kept | {"LEAKATK_RAY_TEMP": ray}, stdout=subprocess.PIPE, stderr=err)


@pytest.mark.long
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_at_any_moment_ends_a_run_that_goes_on(tmp_path, moment):
    seen, marked = MOMENTS[moment]
    number = signal.SIGINT if list(MOMENTS).index(moment) % 2 else signal.SIGTERM
    store = tmp_path / "store"
    run = started(tmp_path, store)
    while not seen(store, run):
        assert run.poll() is None, (tmp_path / "err").read_text()
        time.sleep(0.02)
    clock = time.monotonic()
    run.send_signal(number)
    run.communicate(timeout=ENDS_WITHIN)
    assert time.monotonic() - clock < ENDS_WITHIN
    assert run.returncode in (128 + number, -number)  # a shell shows the latter as the former
    assert "Traceback" not in (tmp_path / "err").read_text()
    marks = list(store.glob("runs/*/interrupted.json"))
    if marked:
        assert [json.loads(mark.read_text())["signal"] for mark in marks] == [number.name]

    again = started(tmp_path, store)
    out, _ = again.communicate(timeout=600)
    assert again.returncode == 0, (tmp_path / "err").read_text()
    assert len(json.loads(out)["models"]) == 5
    assert not list(store.glob("runs/*/interrupted.json"))
