"""A search outlives its driver and a node of its cluster: what was finished is kept, what was running goes on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tests.e2e.hosts import Hosts

EXPERIMENT = {
    "name": "tiny",
    "benchmark": {"name": "fictional", "split": "forget01"},
    "model": {"finetune": {"steps": 10, "batch_size": 32, "lr": 5e-3, "max_length": 64}},
    "train": {"checkpoint_every": 2},
    "sampling": {"n": 8, "max_new_tokens": 8},
    "metrics": ["exact_fact", "rouge_l_recall"],
    "leak": {"k": [1, 8]},
}
SPACE = {
    "method": "grad_diff",
    "parameters": {"alpha": {"loguniform": [0.5, 5.0]}, "train.steps": {"choice": [6, 8]}},
    "objective": {"k": 8, "metric": "rouge_l_recall"},
    "search": "random",
    "trials": 4,
    "rungs": [{"n": 2}],
}


@pytest.fixture
def search(tmp_path):
    """Starts the one search of this test, in a process of its own, with these variables in its environment."""
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE))
    command = ["tune", str(tmp_path / "s.yaml"), str(tmp_path / "e.yaml"), "--store", str(tmp_path / "store"), "--json"]
    running = []

    def start(**variables):
        with (tmp_path / "said").open("a") as said:  # a file: a pipe that nobody reads would fill
            process = subprocess.Popen(
                [sys.executable, "-m", "engine", *command],
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
                env=os.environ | variables,
                start_new_session=True,
            )
        running.append(process)
        return process

    yield start
    for process in running:
        if process.poll() is None:
            process.kill()
            process.wait()


def looked_at(folder):
    """Ids of the trials that were looked at so far."""
    found = set()
    for record in (folder / "store" / "tune").glob("*/looks.jsonl"):
        found |= {json.loads(line)["trial"] for line in record.read_text().splitlines() if line.endswith("}")}
    return found


def wait_for_a_look(folder, process):
    while not looked_at(folder):
        assert process.poll() is None, (folder / "said").read_text()[-3000:]
        time.sleep(0.1)
    return looked_at(folder)


def result(folder, process):
    out, _ = process.communicate(timeout=400)
    assert process.returncode == 0, (folder / "said").read_text()[-3000:]
    found = json.loads(out)
    assert len(found["trials"]) == SPACE["trials"]
    assert found["trials"][0]["full"]
    assert not any(each["failed"] for each in found["trials"])
    return found


def trainings(folder):
    """When each finished training was made, by its folder."""
    return {path.parent.name: path.stat().st_mtime_ns for path in (folder / "store" / "train").glob("*/manifest.json")}


@pytest.mark.long
def test_a_search_whose_driver_is_killed_goes_on_with_the_same_command(search, tmp_path):
    first = search()
    finished = wait_for_a_look(tmp_path, first)
    time.sleep(2.2)  # Ray Tune keeps its account every two seconds
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    assert len(finished) < SPACE["trials"], "the search ended before it could be killed"
    before = trainings(tmp_path)
    found = result(tmp_path, search())
    assert finished <= {each["id"] for each in found["trials"]}
    assert before.items() <= trainings(tmp_path).items()  # nothing that was finished was done again
    assert len({each["values"]["alpha"] for each in found["trials"]}) == SPACE["trials"]


@pytest.mark.long
def test_a_search_that_is_asked_to_end_saves_its_trainings_and_goes_on(search, tmp_path):
    slow = SPACE["parameters"] | {"train.steps": {"choice": [600]}}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(SPACE | {"parameters": slow, "trials": 2}))
    rarely = EXPERIMENT | {"train": {"checkpoint_every": 1000}}  # a checkpoint is one that the signal made
    (tmp_path / "e.yaml").write_text(yaml.safe_dump(rarely))
    first, saved = search(), "store/train/*.work/checkpoint/progress.json"
    while not trainings(tmp_path) or not list(
        tmp_path.glob("store/train/*.work")
    ):  # the target is made, a trial trains
        assert first.poll() is None, (tmp_path / "said").read_text()[-3000:]
        time.sleep(0.05)
    time.sleep(12)
    assert not list(tmp_path.glob(saved))
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    said = (tmp_path / "said").read_text()
    assert first.returncode == 143, said[-3000:]
    assert "Traceback" not in said
    (mark,) = (tmp_path / "store" / "tune").glob("*/interrupted.json")
    assert json.loads(mark.read_text())["signal"] == "SIGTERM"
    assert list(tmp_path.glob(saved))
    out, _ = search().communicate(timeout=400)
    found = json.loads(out)
    assert not any(each["failed"] for each in found["trials"])
    assert not mark.exists()


@pytest.mark.long
def test_a_search_on_three_nodes_loses_one_and_finds_its_winner(search, tmp_path):
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
    try:
        nodes = [cluster.add_node(**small) for _ in range(2)]
        driver = search(RAY_ADDRESS=cluster.address)
        finished = wait_for_a_look(tmp_path, driver)
        cluster.remove_node(nodes[0], allow_graceful=False)
        assert driver.poll() is None
        assert len(finished) < SPACE["trials"], "the search ended before it could lose a node"
        found = result(tmp_path, driver)
        assert finished <= {each["id"] for each in found["trials"]}
    finally:
        cluster.shutdown()


@pytest.mark.long
def test_a_search_that_loses_the_head_of_its_cluster_goes_on_on_another(search, tmp_path):
    hosts = Hosts(2)
    try:
        driver = search(**hosts.environment)
        finished = wait_for_a_look(tmp_path, driver)
        time.sleep(2.2)  # Ray Tune keeps its account every two seconds
        hosts.kill_head()
        driver.communicate(timeout=400)
        assert driver.returncode != 0
        assert len(finished) < SPACE["trials"], "the search ended before it could lose its head"
    finally:
        hosts.stop()
    before = trainings(tmp_path)
    found = result(tmp_path, search())
    assert finished <= {each["id"] for each in found["trials"]}
    assert before.items() <= trainings(tmp_path).items()
