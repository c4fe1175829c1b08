"""kill -9 of the driver at five moments, then the same command: nothing is lost, nothing differs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

EXPERIMENT = {
    "name": "kill",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 120, "batch_size": 32, "lr": 5e-3, "max_length": 64, "checkpoint_every": 20}},
    "methods": [
        {"name": "grad_diff", "train": {"steps": 6}},
        {"name": "rule", "base": {"name": "npo"}, "rounds": 2, "samples": 16, "steps": 3, "threshold": 0.5,
         "metric": "rouge_l_recall", "tolerance": 0.0, "control": True, "train": {"steps": 4}},
    ],
    "sampling": {"n": 32, "max_new_tokens": 16},
    "leak": {"k": [1, 8, 32]},
}  # fmt: skip


def start(folder, store):
    command = [
        sys.executable,
        "-m",
        "engine",
        "run",
        str(folder / "kill.yaml"),
        "--store",
        str(folder / store),
        "--json",
    ]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(folder, store):
    run = start(folder, store)
    out, err = run.communicate(timeout=300)
    assert run.returncode == 0, err
    rows = json.loads(out)["models"]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows], err


def stages(folder, store):
    return len(list((folder / store).glob("*/*/manifest.json")))


@pytest.mark.long
def test_a_driver_killed_five_times_ends_with_the_undisturbed_result(tmp_path):
    (tmp_path / "kill.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    undisturbed, _ = finished(tmp_path, "undisturbed")
    whole = stages(tmp_path, "undisturbed")
    seen = []
    # Each time the driver is killed once more stages stand than the last time: five different moments of the run.
    for moment in (1, 3, 8, 14, 20):
        run = start(tmp_path, "killed")
        while stages(tmp_path, "killed") < moment and run.poll() is None:
            time.sleep(0.05)
        assert run.poll() is None, "the run ended before it could be killed"
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
        seen.append(stages(tmp_path, "killed"))
    assert seen == sorted(seen)
    assert seen[0] < seen[-1] < whole
    result, _ = finished(tmp_path, "killed")
    assert result == undisturbed
    assert stages(tmp_path, "killed") == whole
    assert not list((tmp_path / "killed").glob("*/*.work"))
