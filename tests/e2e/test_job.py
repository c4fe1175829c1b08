"""`ray job submit` runs the same experiment on a running cluster, carries its exit code, and stops it without loss."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import yaml

from tests.e2e.disturbed import NOBODY
from tests.e2e.hosts import kill_all

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
EXPERIMENT = {
    "name": "job",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "methods": [{"name": "npo", "train": {"steps": 2}}],
    "sampling": {"n": 4, "max_new_tokens": 8},
}


def document(base_model, **changes):
    """The experiment as a file's text: the embedded benchmark's untrained model is unlearned."""
    return yaml.safe_dump(EXPERIMENT | {"model": {"path": str(base_model)}} | changes)


def free_ports(count):
    """Ports below 10002, where Ray's workers begin."""
    sockets = []
    for port in range(6500, 10000):
        if len(sockets) == count:
            break
        taken = socket.socket()
        try:
            taken.bind(("127.0.0.1", port))
            sockets.append(taken)
        except OSError:
            taken.close()
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head():
    """A head node with a job server, in a folder of its own."""
    port, dashboard, client, agent, metrics = free_ports(5)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "120"
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # as in an activated environment
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as folder:
        command = [
            RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", f"--temp-dir={folder}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}",
            f"--dashboard-agent-listen-port={agent}", f"--metrics-export-port={metrics}", "--num-cpus=2",
            "--disable-usage-stats",
        ]  # fmt: skip
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            yield f"http://127.0.0.1:{dashboard}", environment
        finally:
            kill_all(process.pid)  # `ray start` asked to end takes half a minute
            process.wait(timeout=60)


def submit(head, *arguments, options=(), variables=None):
    address, environment = head
    runtime = json.dumps({"env_vars": {key: str(value) for key, value in (variables or {}).items()}})
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--runtime-env-json", runtime]
    command += [*options, "--", "python", "-m", "engine"]
    for _ in range(60):  # the job server answers some seconds after the head
        run = subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
        )
        if "Failed to connect" not in run.stderr + run.stdout:
            break
    return run


def info(head, job, field):
    """One field of what the job server knows of a job, as docs/clusters.md reads the exit code."""
    address, environment = head
    code = "import sys; from ray.job_submission import JobSubmissionClient as C; "
    code += "print(getattr(C(sys.argv[1]).get_job_info(sys.argv[2]), sys.argv[3]))"
    command = [sys.executable, "-c", code, address, job, field]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()[-1]


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_submitted_job_runs_the_experiment_and_carries_its_exit_code(head, base_model, tmp_path):
    (tmp_path / "job.yaml").write_text(document(base_model))
    variables = NOBODY | {"LEAKATK_STORE": tmp_path / "store"}
    run = submit(head, "run", tmp_path / "job.yaml", "--json", variables=variables)
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(next((tmp_path / "store" / "runs").glob("*/results.json")).read_text())
    assert [model["name"] for model in results["models"]] == ["target", "npo"]
    assert '"models"' in run.stdout  # the driver's output is streamed back

    (tmp_path / "wrong.yaml").write_text(document(base_model, methods=[{"name": "simpno"}]))
    named = ["--submission-id", "wrong"]
    run = submit(head, "run", tmp_path / "wrong.yaml", "--store", tmp_path / "store", options=named)
    assert run.returncode != 0
    assert "did you mean 'simnpo'" in run.stdout + run.stderr
    assert "exit code 2" in run.stdout + run.stderr
    assert info(head, "wrong", "driver_exit_code") == "2"


@pytest.mark.long
def test_a_stopped_job_saves_is_marked_and_goes_on(head, base_model, tmp_path):
    address, environment = head
    store = tmp_path / "store"
    train = {"steps": 400, "batch_size": 16, "max_length": 64, "checkpoint_every": 30}
    (tmp_path / "long.yaml").write_text(document(base_model, methods=[{"name": "npo", "train": train}]))
    command = ("run", tmp_path / "long.yaml", "--store", store)
    run = submit(head, *command, options=["--no-wait", "--submission-id", "long"])
    assert run.returncode == 0, run.stdout + run.stderr
    until(lambda: list(store.glob("train/*.work/checkpoint/progress.json")))
    stop = [RAY, "job", "stop", "--address", address, "long"]
    stopped = subprocess.run(stop, env=environment, capture_output=True, text=True, check=True, timeout=180)
    assert "was stopped" in stopped.stdout + stopped.stderr
    mark = json.loads(next(store.glob("runs/*/interrupted.json")).read_text())
    assert (mark["state"], mark["signal"]) == ("interrupted", "SIGTERM")
    steps = [json.loads(each.read_text())["step"] for each in store.glob("train/*.work/checkpoint/progress.json")]
    assert 30 <= max(steps) < 400

    run = submit(head, *command)
    assert run.returncode == 0, run.stdout + run.stderr
    assert not list(store.glob("runs/*/interrupted.json"))
    histories = [json.loads(each.read_text()) for each in store.glob("train/*/history.json")]
    assert [len(each) for each in histories] == [400]
    from mlflow import MlflowClient

    recorded = MlflowClient(f"sqlite:///{store / 'mlflow.db'}").search_runs(["1"])
    assert {each.info.status for each in recorded} == {"FINISHED"}  # the run marked KILLED was replaced
