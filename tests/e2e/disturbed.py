"""A small experiment to disturb: started as a user starts it, looked at from outside, compared at the end."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pyarrow
import pyarrow.parquet
import yaml

LONGEST_SECONDS = 1200  # a run that takes longer hangs
LOOK_SECONDS = 0.1
METHOD = {"name": "npo", "train": {"steps": 16, "checkpoint_every": 2}}
ATTACKS = (
    {"name": "quantize"},
    {"name": "relearn", "share": 0.5, "steps": 8, "train": {"checkpoint_every": 2}},
    {"name": "prompts", "families": ["prefix"], "prefix": [1]},
)
OF_TWO = METHOD | {"train": METHOD["train"] | {"workers": 2, "zero_stage": 2}}
NOBODY = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}  # for runs that need not be recorded


def experiment(model: Path, method: Mapping[str, Any] = METHOD, n: int = 64) -> dict[str, Any]:
    """Unlearning from `model`, and leak@k of both: one training, six stages of generations and scores."""
    return {
        "name": "chaos",
        "benchmark": {"name": "fictional", "split": "forget01"},
        "model": {"path": str(model)},
        "methods": [dict(method)],
        "sampling": {"n": n, "max_new_tokens": 4},
        "leak": {"k": [1, 8]},
    }


def attacked(model: Path) -> dict[str, Any]:
    """The same with a retain model, and attacks on every model."""
    return experiment(model, n=16) | {
        "model": {"path": str(model), "retain": str(model)},
        "attacks": [dict(each) for each in ATTACKS],
    }


TITLES = {  # what Ray calls a process while it works
    "training worker": ("ray::train",),
    "training worker, one of two": ("ray::RayTrainWorker", "ray::_RayTrainWorker__execute"),
    "sampling worker": ("ray::MapBatches(SampleJob)", "ray::MapBatches(GridJob)"),
    "scoring worker": ("ray::MapBatches(ScoreJob)",),
    "attack on weights": ("ray::attack",),
}
ANY = tuple(title for titles in TITLES.values() for title in titles)


class Driver:
    """A driver process (tests/e2e/driver.py) with a Ray folder of its own; given `environment` it joins a cluster."""

    def __init__(self, environment: Mapping[str, str] | None = None, prefix: Sequence[str] = ()) -> None:
        self.temporary = tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True)  # short: socket paths
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.e2e.driver"],
            env=kept | {"LEAKATK_RAY_TEMP": self.temporary.name} | dict(environment or {}),
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self.below: list[psutil.Process] = []

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def kill(self) -> None:
        """kill -9 of the driver alone; what it had started finds out by itself, beside whatever runs next."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.below = psutil.Process(self.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()

    def clear(self) -> None:
        """End it, and what may outlive it: Ray's agents for logs and metrics."""
        self.kill()
        for each in self.below:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.temporary.cleanup()


class Run:
    """`leakatk run` of an experiment on `store`, by a driver."""

    count = 0

    def __init__(
        self, driver: Driver, store: Path, experiment: Mapping[str, Any], environment: Mapping[str, str] = NOBODY
    ) -> None:
        Run.count += 1
        self.driver, self.store, self.clock = driver, store, time.monotonic()
        name = Path(driver.temporary.name) / f"run{Run.count}"
        self.out, self.err, self.code = (name.with_suffix(f".{each}") for each in ("out", "err", "code"))
        name.with_suffix(".yaml").write_text(yaml.safe_dump(dict(experiment)))
        argv = ["run", str(name.with_suffix(".yaml")), "--store", str(store), "--json"]
        order = {"argv": argv, "out": str(self.out), "err": str(self.err), "code": str(self.code)}
        assert driver.process.stdin is not None
        driver.process.stdin.write(json.dumps(order | {"environment": dict(environment)}) + "\n")
        driver.process.stdin.flush()

    @property
    def ended(self) -> bool:
        return self.code.exists() or not self.driver.alive

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.clock

    def said(self) -> str:
        return self.err.read_text(errors="replace") if self.err.exists() else ""

    def end(self) -> int:
        """Wait for the end; returns the exit code, of the driver where that died."""
        while not self.ended:
            if self.seconds > LONGEST_SECONDS:
                self.driver.clear()
                raise AssertionError(f"still at work after {LONGEST_SECONDS} s:\n{self.said()[-3000:]}")
            time.sleep(LOOK_SECONDS)
        return int(self.code.read_text()) if self.code.exists() else int(self.driver.process.wait())

    def rows(self) -> list[dict[str, Any]]:
        """What it found, the time that it took aside; AssertionError where it failed."""
        code = self.end()
        assert code == 0, f"exit code {code}:\n{self.said()[-3000:]}"
        found = json.loads(self.out.read_text())["models"]
        return [{key: value for key, value in row.items() if key != "seconds"} for row in found]


def at_work(roots: Sequence[int], titles: Sequence[str] = ANY) -> list[int]:
    """Pids of Ray's processes below `roots` that are at work under one of `titles`."""
    return [pid for root in roots for pid in below(root) if title(pid).startswith(tuple(titles))]


def attacking(run: Run) -> list[int]:
    """Pids of the workers of a run that has come to its attacks: these begin when all else is done."""
    return at_work([run.driver.pid]) if (run.store / "attack").exists() else []


def below(root: int) -> list[int]:
    """Pids of everything below a process. Straight from the kernel's lists: psutil reads every process there is."""
    found, waiting = [], [root]
    while waiting:
        pid = waiting.pop()
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):  # it has ended
                children = [int(child) for child in path.read_text().split()]
                found += children
                waiting += children
    return found


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
    except OSError:
        return ""


def after(run: Run, seconds: float, working: Callable[[], Any]) -> Any:
    """What `working` gives once it has given something for so many seconds in all; None where the run ends before."""
    worked, last = 0.0, time.monotonic()
    while not run.ended:
        found, now = working(), time.monotonic()
        worked += (now - last) if found else 0.0
        last = now
        if found and worked >= seconds:
            return found
        time.sleep(LOOK_SECONDS)
    return None


def standing(store: Path) -> dict[str, tuple[int, int]]:
    """Everything that is finished: manifests of stages, and units of stages under way, by inode and time."""
    found = {}
    for pattern in ("*/*/manifest.json", "*/*/units/[0-9]*.parquet"):
        for path in store.glob(pattern):
            if ".damaged-" in path.as_posix():
                continue
            try:
                facts = path.stat()
            except FileNotFoundError:  # its folder got its final name in between
                continue
            name = path.relative_to(store).as_posix().replace(".work/", "/")
            found[name] = (facts.st_ino, facts.st_mtime_ns)
    return found


def lost(before: Mapping[str, tuple[int, int]], store: Path) -> int:
    """How much of what stood before stands no more, or was made again."""
    now = standing(store)
    return sum(now.get(name) != facts for name, facts in before.items())


def contents(store: Path) -> dict[str, str]:
    """What every file of every finished stage says, times aside."""
    found = {}
    for manifest in sorted(store.glob("*/*/manifest.json")):
        folder = manifest.parent
        if "." in folder.name:
            continue
        facts = json.loads(manifest.read_text())["facts"]
        facts.pop("seconds", None)
        name = folder.relative_to(store).as_posix()
        found[name] = json.dumps(facts, sort_keys=True)
        for path in folder.rglob("*"):
            if path.is_file() and path != manifest:
                found[f"{name}/{path.relative_to(folder).as_posix()}"] = _digest(path)
    return found


def _digest(path: Path) -> str:
    if path.suffix != ".parquet":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    table = pyarrow.parquet.read_table(path).replace_schema_metadata(None).combine_chunks()
    return hashlib.sha256(json.dumps(table.to_pydict()).encode()).hexdigest()


def left_behind(store: Path) -> list[str]:
    """Unfinished work and temporary files that a finished run should not leave."""
    return sorted(path.name for path in store.glob("*/*.work"))
