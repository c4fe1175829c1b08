"""A run that is asked to end: what it waits for, what it leaves, and its exit code."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

RUN = """
import sys, time
from pathlib import Path
from engine.pipeline.interruption import Ending
from engine.config.experiment import parse_experiment

class Trainings:
    def stop_trainings(self, patience):
        Path(sys.argv[1], "asked").touch()
        time.sleep(float(sys.argv[2]))  # a negative time raises, as a cluster does that is gone

experiment = parse_experiment({"name": "asked", "benchmark": {"name": "fictional"}}, "e.yaml")
with Ending(Path(sys.argv[1])) as ending:
    ending.about(experiment, "0123456789abcdef", Path(sys.argv[1], "runs", "asked-01234567"), Trainings())
    Path(sys.argv[1], "running").touch()
    time.sleep(120)
print("not reached")
"""


def started(folder, seconds):
    environment = os.environ | {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # nobody is there
    command = [sys.executable, "-c", RUN, str(folder), str(seconds)]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(folder / "running", run)
    return run


def until(path, run):
    while not path.exists():
        assert run.poll() is None, run.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_marks_and_ends_with_its_code(tmp_path, number, code):
    run = started(tmp_path, 0.2)
    run.send_signal(number)
    out, err = run.communicate(timeout=100)
    assert run.returncode == code
    assert (tmp_path / "asked").exists()
    mark = json.loads((tmp_path / "runs" / "asked-01234567" / "interrupted.json").read_text())
    assert (mark["state"], mark["signal"], mark["name"]) == ("interrupted", number.name, "asked")
    assert "the same command goes on" in err
    assert "not reached" not in out


def test_a_second_signal_ends_at_once(tmp_path):
    run = started(tmp_path, 60)
    run.send_signal(signal.SIGTERM)
    until(tmp_path / "asked", run)
    clock = time.monotonic()
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=50)
    assert run.returncode == 143
    assert time.monotonic() - clock < 30
    assert (tmp_path / "runs" / "asked-01234567" / "interrupted.json").exists()


def test_a_run_whose_cluster_is_gone_is_marked_all_the_same(tmp_path):
    run = started(tmp_path, -1)
    run.send_signal(signal.SIGTERM)
    run.communicate(timeout=50)
    assert run.returncode == 143
    assert (tmp_path / "runs" / "asked-01234567" / "interrupted.json").exists()


def test_a_run_that_begins_again_is_no_longer_marked(tmp_path):
    from engine.config.experiment import parse_experiment
    from engine.pipeline.interruption import MARK, Ending

    experiment = parse_experiment({"name": "asked", "benchmark": {"name": "fictional"}}, "e.yaml")
    folder = tmp_path / "runs" / "asked-01234567"
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    with Ending(tmp_path) as ending:
        ending.about(experiment, "0123456789abcdef", folder, None)
    assert not (folder / MARK).exists()
    assert signal.getsignal(signal.SIGTERM) != ending._asked
