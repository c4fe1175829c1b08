"""Recording stays out of an experiment's way: servers that are down or never answer, credentials, marks on disk."""

import json
import socket
import time

import pytest

from engine.cli import main
from engine.reporting.results import read_results
from engine.tracking import sync
from engine.tracking.recorder import Measurement
from engine.tracking.system_metrics import FILE, read_system_metrics
from tests.made import make_run


@pytest.fixture
def folder(tmp_path):
    return make_run(tmp_path, "small", {("npo", "unlearned"): [["no"] * 4]}, ["a fact"])


@pytest.fixture
def closed_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_a_server_that_is_down_leaves_the_run_waiting_at_once(folder, closed_port, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed_port}")
    clock = time.monotonic()
    found = sync.record_soon(read_results(folder), folder, folder.parents[1])
    assert time.monotonic() - clock < sync.CONNECT_SECONDS + 1
    assert found.state == "waiting"
    assert "does not answer" in found.reason


def test_a_server_that_never_answers_costs_no_more_than_the_patience(folder, monkeypatch):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{listener.getsockname()[1]}")
        clock = time.monotonic()
        found = sync.record_soon(read_results(folder), folder, folder.parents[1], patience=1.0)
        assert time.monotonic() - clock < 10
    assert found.state == "waiting"
    assert "longer than 1 s" in found.reason


def test_sync_says_what_waits_and_exits_1_and_shows_no_password(folder, closed_port, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://bob:secret@127.0.0.1:{closed_port}")
    assert main(["sync", "--store", str(folder.parents[1]), "--json"]) == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out)["runs"][0]["state"] == "waiting"
    assert "1 of 1 runs wait" in captured.err
    assert "secret" not in captured.out + captured.err


def test_a_store_without_runs_is_refused(tmp_path, capsys):
    assert main(["sync", "--store", str(tmp_path)]) == 2
    assert "no finished run" in capsys.readouterr().err


def test_system_metrics_are_read_by_the_second(tmp_path):
    (tmp_path / FILE).write_text('{"seconds": 5.1, "cpu_utilization_percentage": 40.0}\n{"seconds": 10.2, "x": 1}\n')
    assert read_system_metrics(tmp_path) == [
        Measurement("system/cpu_utilization_percentage", 40.0, 5),
        Measurement("system/x", 1.0, 10),
    ]
