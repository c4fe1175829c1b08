"""No more tasks run at once than the cluster has CPUs and memory for."""

import threading
import time

import pytest
import ray

from engine.cluster.progress import Progress
from engine.cluster.ray_cluster import connect, memory_to_ask, resources
from engine.cluster.reporter import Board, Reporter, Silent


def reporting(report, seconds):
    """When this task began and ended, by the clock of the machine."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        report(1, force=True)
        report.stopping()
        time.sleep(0.01)
    return began, time.monotonic()


def test_a_task_that_waits_for_answers_hands_its_cpu_to_no_other():
    connect()
    cpus = int(resources()[0])
    board = ray.remote(Board).options(num_cpus=0).remote()
    report = Reporter(board, "train")
    task = ray.remote(reporting).options(num_cpus=1)
    assert (
        most_at_once([task.remote(report.of(str(part)), 2.0) for part in range(cpus + 1)]) <= cpus
    )  # fewer where workers start slowly


def test_trainings_that_memory_does_not_hold_together_run_one_after_the_other():
    connect()
    asked = memory_to_ask(1e18)
    assert asked["memory"] < sum(node["Resources"].get("memory", 0) for node in ray.nodes())
    task = ray.remote(reporting).options(num_cpus=1, **asked)
    assert most_at_once([task.remote(Silent(), 1.0) for _ in range(2)]) == 1
    assert memory_to_ask(0.0) == {}


def most_at_once(tasks):
    times = ray.get(tasks)
    return max(sum(began <= at < ended for began, ended in times) for at, _ in times)


def test_the_process_that_holds_reports_ends_with_its_progress():
    connect()
    with Progress(quiet=True) as progress:
        with Progress(quiet=True, board=progress.shared_board()) as other, other.task("train", "a", 1) as report:
            report.begin()
            report(1, force=True)
        assert ray.get(progress.board.read.remote()) == {}  # the other's has ended, the board has not
    with pytest.raises(ray.exceptions.RayActorError):
        read_until(progress.board, time.monotonic() + 30)


def read_until(board, deadline):
    while time.monotonic() < deadline:  # a kill is not waited for
        ray.get(board.read.remote())
        time.sleep(0.1)


def test_trainings_of_another_process_are_told_to_stop_and_waited_for():
    connect()
    with Progress(quiet=True) as progress, Progress(quiet=True, board=progress.shared_board()) as other:
        stopped = threading.Event()

        def train():
            with other.task("train", "a", 100) as report:
                report.begin()
                step = 0
                while not report.stopping():
                    step += 1
                    report(step, force=True)
                time.sleep(1)  # saving
                stopped.set()

        training = threading.Thread(target=train)
        training.start()
        time.sleep(2)
        assert not stopped.is_set()
        progress.stop_trainings(30)
        assert stopped.is_set()
        training.join()
