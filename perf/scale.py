"""Scheduling and memory of the fan-out, without compute: units that sleep, and up to a million simulated generations.

python -m perf.scale [--log FILE]     the log keeps what is measured, part by part, and is gone on from
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from benchmarks.base import Decoding, Probe
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Silent
from engine.cluster.units import counted
from engine.leak.curve import leak_curve
from engine.models.source import ModelSource
from engine.stages.sample import SampleJob, prompt_columns, unit_prompts
from engine.stages.score import ScoreJob, group_scores
from perf.report import machine, table, write_page

LATENCY = 1.0  # seconds a unit; real units take seconds
UNITS_A_WORKER = 4
WORKERS = (1, 2, 4, 8, 16, 32, 64)
REPEATS = 3
GENERATIONS = (10_000, 100_000, 1_000_000)
SAMPLES = 200
METRICS = ("exact_fact", "rouge_l_recall")


class Sleeping:
    """Units that take LATENCY seconds and no processor."""

    def compute(self, unit: int) -> tuple[Any, str]:
        import pyarrow

        time.sleep(LATENCY)
        return pyarrow.table({"unit": [unit]}), ""


def scaling() -> list[list[str]]:
    """A row for each number of workers: wall time against units * LATENCY / workers."""
    start_ray(max(WORKERS))
    rows = []
    for workers in WORKERS:
        units = UNITS_A_WORKER * workers
        ideal = UNITS_A_WORKER * LATENCY
        seconds = [timed_fan_out(units, workers) for _ in range(REPEATS + 1)][1:]  # the first starts the processes
        wall = statistics.median(seconds)
        rows.append([str(workers), str(units), f"{wall:.2f} s", f"{units / wall:.2f}", f"{ideal / wall:.0%}"])
    return rows


def timed_fan_out(units: int, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        clock = time.perf_counter()
        fan_out(Sleeping(), units, Path(folder) / "units", Silent(), workers)
        return time.perf_counter() - clock


@dataclasses.dataclass(frozen=True)
class Simulated(SampleJob):
    """A SampleJob whose generations are made up, all different: one word in ten stands in the reference too."""

    def compute(self, unit: int) -> tuple[Any, str]:
        import pyarrow

        size = unit_prompts(self.n)
        probes = self.probes[unit * size : (unit + 1) * size]
        rng, count = random.Random(unit), len(probes) * self.n
        texts = [" ".join(f"w{rng.randrange(500)}" for _ in range(20)) for _ in range(count)]
        tokens = pyarrow.array([[rng.randrange(32000) for _ in range(24)] for _ in range(count)])
        columns = prompt_columns(probes, self.n) | {"response": pyarrow.array(texts), "token_ids": tokens}
        return counted(pyarrow.table(columns), {"tokens": 24 * count}), ""


def flow(generations: int) -> dict[str, float]:
    """Sample, score and estimate so many simulated generations, with warm workers; peak memory and seconds."""
    import resource

    start_ray(2)
    pass_through(64 * SAMPLES)
    clock = time.perf_counter()
    with Watch() as watch:
        pass_through(generations)
    return {
        "driver": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "all": watch.peak / 2**30,
        "cpu": watch.cpu,
        "seconds": time.perf_counter() - clock,
    }


def pass_through(generations: int) -> None:
    probes = tuple(
        Probe(f"p{index}", f"question {index}", f"w{index % 500} w1 w2 w3 w4", "forget", f"w{index % 500}")
        for index in range(generations // SAMPLES)
    )
    job = Simulated(ModelSource("", ""), probes, Decoding(), SAMPLES, 24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "sample").mkdir()
        facts = job.run(folder / "sample", Silent())
        assert facts["samples"] == generations
        for metric in METRICS:
            (folder / metric).mkdir()
            ScoreJob(str(folder / "sample"), job.units, metric).run(folder / metric, Silent())
            leak_curve(group_scores(folder / metric)["forget"].scores)


class Watch:
    """peak: the most memory that this process and all below it held at once (proportional set size); cpu: processor
    seconds of them all since the start, which a busy machine does not change as it does the wall clock."""

    def __enter__(self) -> Watch:
        self.peak, self.stopped = 0, threading.Event()
        self.first: dict[tuple[int, float], float] = {}
        self.last: dict[tuple[int, float], float] = {}
        self.begun = False
        self._count()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()
        self.cpu = sum(seconds - self.first[process] for process, seconds in self.last.items())

    def _look(self) -> None:
        while not self.stopped.wait(0.5):
            self._count()
        self._count()

    def _count(self) -> None:
        import psutil

        total = 0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            try:
                total += process.memory_full_info().pss
                key, times = (process.pid, process.create_time()), process.cpu_times()
            except psutil.Error:  # it has ended
                continue
            self.last[key] = times.user + times.system
            self.first.setdefault(key, 0.0 if self.begun else self.last[key])
        self.peak, self.begun = max(self.peak, total), True


def start_ray(cpus: int) -> None:
    import logging
    import os

    import ray

    temporary = os.environ.get("LEAKATK_RAY_TEMP")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "_temp_dir": temporary}
    ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--generations", type=int, help="measure this many alone and print the numbers")
    parser.add_argument("--workers", action="store_true", help="measure the workers alone and print the rows")
    parser.add_argument("--log", type=Path, help="file of the parts measured so far")
    args = parser.parse_args()
    if args.generations:
        print(json.dumps(flow(args.generations)))
        return
    if args.workers:
        print(json.dumps(scaling()))
        return
    flows = [(count, measured(args.log, "--generations", str(count))) for count in GENERATIONS]
    scaled = measured(args.log, "--workers")
    page = [
        "# Fan-out: efficiency by workers, memory by generations",
        machine("python -m perf.scale"),
        f"Units that sleep {LATENCY:g} s, {UNITS_A_WORKER} a worker, as warm Ray tasks of one logical CPU each on this "
        f"machine: what scheduling, committing and reading back cost. Medians of {REPEATS}; efficiency: the sleep of "
        "one worker's units against the wall clock.",
        table(["workers", "units", "wall", "units/s", "efficiency"], scaled),
        f"Simulated generations (20 words and 24 token ids each, all different, {SAMPLES} a prompt) through the "
        f"sampling stage, scoring by {' and '.join(METRICS)}, and leak@k, with two workers; each count in a process of "
        "its own. Driver: peak resident set, libraries included. All: peak of driver, workers and Ray's own processes "
        "together (proportional set size). CPU: of all of them, after a first pass of 12,800 that starts the workers.",
        table(
            ["generations", "driver, GiB", "all, GiB", "seconds", "CPU seconds", "CPU microseconds a generation"],
            [
                [f"{count:,}", f"{each['driver']:.2f}", f"{each['all']:.2f}", f"{each['seconds']:.0f}",
                 f"{each['cpu']:.0f}", f"{1e6 * each['cpu'] / count:.0f}"]
                for count, each in flows
            ],
        ),
    ]  # fmt: skip
    write_page("scale", page)


def measured(log: Path | None, *arguments: str) -> Any:
    """What this module prints in a process of its own, beside Ray's warnings, or what the log has of it."""
    known = json.loads(log.read_text()) if log and log.exists() else {}
    name = " ".join(arguments)
    if name not in known:
        command = [sys.executable, "-m", "perf.scale", *arguments]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        known[name] = json.loads(next(line for line in run.stdout.splitlines() if line.startswith(("{", "["))))
        if log:
            log.write_text(json.dumps(known))
    return known[name]


if __name__ == "__main__":
    main()
