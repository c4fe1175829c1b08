"""A planted secret is in no output of a run, and an MLflow server that is not there costs no result."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

SECRET = b"s3cr3t-9f2c1b-planted"
EXPERIMENT = {
    "name": "secret",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "methods": [{"name": "npo", "train": {"steps": 1}}],
    "sampling": {"n": 2, "max_new_tokens": 4},
}


def run(folder, **environment):
    command = [sys.executable, "-m", "engine", "run", str(folder / "e.yaml"), "--store", str(folder / "store")]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, timeout=300)


@pytest.fixture
def ray_folder():
    """Where Ray keeps its logs; a short name, for the paths of its sockets."""
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.mark.slow
def test_a_planted_secret_is_in_no_output(base_model, tmp_path, ray_folder):
    document = EXPERIMENT | {"model": {"path": str(base_model)}}
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(document))
    keys = dict.fromkeys(("OPENAI_API_KEY", "HF_TOKEN", "LEAKATK_TEST_SECRET"), SECRET.decode())
    address = f"http://me:{SECRET.decode()}@127.0.0.1:9"  # nobody listens on the discard port
    keys["LEAKATK_RAY_TEMP"] = str(ray_folder)
    first = run(tmp_path, **keys, MLFLOW_TRACKING_URI=address, MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
    assert first.returncode == 0, first.stderr.decode()
    assert b"not in MLflow yet" in first.stderr
    assert b"Traceback" not in first.stderr
    second = run(tmp_path, **keys)
    assert second.returncode == 0, second.stderr.decode()
    assert (tmp_path / "store" / "mlflow.db").stat().st_size > 0
    written = [path for folder in (tmp_path / "store", ray_folder) for path in folder.rglob("*") if path.is_file()]
    assert any(path.name.startswith("raylet") for path in written)
    assert not [path for path in written if SECRET in path.read_bytes()]
    for each in (first, second):
        assert SECRET not in each.stdout + each.stderr
    results = json.loads(next((tmp_path / "store" / "runs").glob("*/results.json")).read_text())
    assert len(results["models"]) == 2
