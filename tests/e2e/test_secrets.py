"""A planted secret is in no output of a run, and an MLflow server that is not there costs no result."""

import json
import os
import subprocess
import sys

import pytest
import yaml

SECRET = b"s3cr3t-9f2c1b-planted"
EXPERIMENT = {
    "name": "secret",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 2, "batch_size": 16, "max_length": 64}},
    "methods": [{"name": "npo", "train": {"steps": 1}}],
    "sampling": {"n": 2, "max_new_tokens": 4},
}


def run(folder, **environment):
    command = [sys.executable, "-m", "engine", "run", str(folder / "e.yaml"), "--store", str(folder / "store")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=300)


@pytest.mark.slow
def test_a_planted_secret_is_in_no_output(tmp_path):
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    keys = dict.fromkeys(("OPENAI_API_KEY", "HF_TOKEN", "LEAKATK_TEST_SECRET"), SECRET.decode())
    address = f"http://me:{SECRET.decode()}@127.0.0.1:9"  # nobody listens on the discard port
    first = run(tmp_path, **keys, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert first.returncode == 0, first.stderr.decode()
    assert b"not in MLflow yet" in first.stderr
    assert b"Traceback" not in first.stderr
    second = run(tmp_path, **keys)
    assert second.returncode == 0, second.stderr.decode()
    assert (tmp_path / "store" / "mlflow.db").stat().st_size > 0
    found = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and SECRET in path.read_bytes()]
    assert not found
    for each in (first, second):
        assert SECRET not in each.stdout + each.stderr
    results = json.loads(next((tmp_path / "store" / "runs").glob("*/results.json")).read_text())
    assert len(results["models"]) == 3
