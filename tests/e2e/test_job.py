"""`ray job submit` runs the same experiment on a running cluster, and carries its exit code."""

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).with_name("ray"))
EXPERIMENT = {
    "name": "job",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 5, "batch_size": 16, "max_length": 64}},
    "methods": [{"name": "npo", "train": {"steps": 2}}],
    "sampling": {"n": 4, "max_new_tokens": 8},
}


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


@pytest.fixture
def head():
    """A head node with a job server, in a folder of its own."""
    port, dashboard, client, agent, metrics = free_ports(5)
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"  # as in an activated environment
    with tempfile.TemporaryDirectory(prefix="lk") as folder:
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
            for each in (*psutil.Process(process.pid).children(recursive=True), process):
                each.kill()  # `ray start` asked to end takes half a minute
            process.wait(timeout=60)


def submit(head, *arguments):
    address, environment = head
    command = [RAY, "job", "submit", "--address", address, "--working-dir", str(ROOT), "--", "python", "-m", "engine"]
    for _ in range(60):  # the job server answers some seconds after the head
        run = subprocess.run(
            [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=300
        )
        if "Failed to connect" not in run.stderr + run.stdout:
            break
    return run


@pytest.mark.slow
def test_a_submitted_job_runs_the_experiment_and_carries_its_exit_code(head, tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    run = submit(head, "run", tmp_path / "job.yaml", "--store", tmp_path / "store", "--json")
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads(next((tmp_path / "store" / "runs").glob("*/results.json")).read_text())
    assert [model["name"] for model in results["models"]] == ["target", "retain", "npo"]
    assert '"models"' in run.stdout  # the driver's output is streamed back

    (tmp_path / "wrong.yaml").write_text(yaml.safe_dump(EXPERIMENT | {"methods": [{"name": "simpno"}]}))
    run = submit(head, "run", tmp_path / "wrong.yaml", "--store", tmp_path / "store")
    assert run.returncode != 0
    assert "did you mean 'simnpo'" in run.stdout + run.stderr
    assert "exit code 2" in run.stdout + run.stderr
