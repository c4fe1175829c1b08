"""Runs are recorded in the store, whatever its path and whoever runs them."""

import os
import subprocess
import sys

import pytest

from engine.tracking.recorder import Recorder, tracking_uri, user_name


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_database_lies_in_the_store_and_nothing_beside_it(tmp_path):
    name = "a?b c%2Fd#e 100% f+g&h=i ä 漢 j'k"  # all in one folder: MLflow takes more than a second to make a database
    store = tmp_path / "above" / name / "store"
    store.mkdir(parents=True)
    run = Recorder(store).start("run", {"a": "b"})
    assert [each.info.run_id for each in Recorder(store).runs({"a": "b"})] == [run]
    assert (store / "mlflow.db").stat().st_size > 0
    assert [path.name for path in (tmp_path / "above").iterdir()] == [name]


def test_the_address_of_a_plain_path_is_as_it_was(tmp_path):
    assert tracking_uri(tmp_path / "my store") == f"sqlite:///{tmp_path}/my store/mlflow.db"


def test_a_user_without_a_name_is_a_number(monkeypatch):
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    assert user_name() == "uid 54321"


def test_a_user_without_a_home_has_a_cache(monkeypatch):
    code = "import os; os.getuid = lambda: 54321; from engine.store.files import user_cache; print(user_cache())"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith("cache-54321"), done.stderr
