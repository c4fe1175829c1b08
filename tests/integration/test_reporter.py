"""Tasks that report keep their CPU: no more of them run at once than the cluster has CPUs."""

import time

import ray

from engine.cluster.ray_cluster import connect, resources
from engine.cluster.reporter import Board, Reporter


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
    times = ray.get([task.remote(report.of(str(part)), 2.0) for part in range(cpus + 1)])
    most = max(sum(began <= at < ended for began, ended in times) for at, _ in times)
    assert most == cpus
