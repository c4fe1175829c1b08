"""The faults: each disturbs one run of the experiment at a moment that its seed decides, and says what came of it.

A fault is a function of (Undisturbed, random.Random, an empty folder, Places); its Outcome compares with the
undisturbed run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.e2e.disturbed import (
    NOBODY,
    TITLES,
    Driver,
    Run,
    after,
    at_work,
    attacking,
    contents,
    left_behind,
    lost,
    standing,
    title,
)
from tests.e2e.hosts import Hosts, Namespaces, disk_of, kill_all, mlflow_server


class Places:
    """Where runs happen, kept from run to run: drivers with a local cluster, hosts, namespaces, each with a driver."""

    def __init__(self) -> None:
        self.drivers: dict[str, Driver] = {}
        self.clusters: dict[str, Any] = {}

    def local(self, name: str = "local") -> Driver:
        """A driver that is up; several names are several drivers."""
        if name not in self.drivers or not self.drivers[name].alive:
            self.end_driver(name)
            self.drivers[name] = Driver()
        return self.drivers[name]

    def hosts(self) -> tuple[Hosts, Driver]:
        if "hosts" not in self.clusters:
            self.clusters["hosts"] = Hosts(2)
            self.drivers["hosts"] = Driver(self.clusters["hosts"].environment)
        return self.clusters["hosts"], self.drivers["hosts"]

    def namespaces(self) -> tuple[Namespaces, Driver]:
        if "namespaces" not in self.clusters:
            found = self.clusters["namespaces"] = Namespaces(2)
            self.drivers["namespaces"] = Driver(found.environment, found.prefix)
        return self.clusters["namespaces"], self.drivers["namespaces"]

    def end_driver(self, name: str) -> None:
        if name in self.drivers:
            self.drivers.pop(name).clear()

    def shut(self, name: str) -> None:
        """End a cluster and its driver."""
        self.end_driver(name)
        if name in self.clusters:
            self.clusters.pop(name).stop()

    def close(self) -> None:
        for name in {*self.drivers, *self.clusters}:
            self.shut(name)


@dataclasses.dataclass(frozen=True)
class Undisturbed:
    """The run that nothing disturbed: its store, rows and contents; seconds: of each role at work, "attacks" of all
    work on attacks, "run" of it all."""

    store: Path
    experiment: Mapping[str, Any]
    rows: list[dict[str, Any]]
    contents: dict[str, str]
    seconds: dict[str, float]

    @property
    def working(self) -> float:
        return sum(self.seconds[role] for role in TITLES)

    def hurried(self) -> Undisturbed:
        """The same with half the seconds, for a fault that came too late."""
        return dataclasses.replace(self, seconds={role: each / 2 for role, each in self.seconds.items()})


@dataclasses.dataclass(frozen=True)
class Outcome:
    """identical: results and contents of every file; lost: finished stages and units that were made again."""

    moment: str
    identical: bool
    lost: int
    why: str = ""


class TooLateError(Exception):
    """The run ended before it could be disturbed."""


def undisturbed(
    store: Path, experiment: Mapping[str, Any], driver: Driver, environment: Mapping[str, str] = NOBODY
) -> Undisturbed:
    """Run the experiment and time what can be disturbed in it."""
    run = Run(driver, store, experiment, environment)
    seconds = dict.fromkeys((*TITLES, "attacks"), 0.0)
    last = time.monotonic()
    while not run.ended:
        now = time.monotonic()
        busy = [title(pid) for pid in at_work([driver.pid])]
        for role, titles in TITLES.items():
            if any(each.startswith(titles) for each in busy):
                seconds[role] += now - last
        if attacking(run):
            seconds["attacks"] += now - last
        last = now
        time.sleep(0.1)
    seconds["run"] = run.seconds
    return Undisturbed(store, experiment, run.rows(), contents(store), seconds)


def outcome(whole: Undisturbed, run: Run, moment: str, before: Mapping[str, Any]) -> Outcome:
    """Wait for the run's end and compare."""
    rows, found = run.rows(), contents(run.store)
    wrong = [name for name in whole.contents.keys() | found.keys() if whole.contents.get(name) != found.get(name)]
    wrong += left_behind(run.store) + ([] if rows == whole.rows else ["results"])
    return Outcome(moment, not wrong, lost(before, run.store), ", ".join(sorted(wrong)[:3]))


def killed_worker(role: str) -> Callable[..., Outcome]:
    """kill -9 of a process at work in that role; Ray must go on by itself."""

    def fault(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
        driver = places.local()
        run = Run(driver, folder / "store", whole.experiment)
        moment = rng.uniform(0, 0.9) * whole.seconds[role]
        found = after(run, moment, lambda: at_work([driver.pid], TITLES[role]))
        if not found:
            run.end()
            raise TooLateError
        before = standing(run.store)
        os.kill(rng.choice(found), signal.SIGKILL)
        return outcome(whole, run, f"{moment:.1f} s at work", before)

    return fault


def killed_driver(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of the driver once or twice, then the same command to the end at once."""
    moments, before, killed = [], {}, []
    for _ in range(rng.randint(1, 2)):
        driver = places.local("killed")
        run = Run(driver, folder / "store", whole.experiment)
        moment = rng.uniform(0, 0.9) * whole.working
        if after(run, moment, lambda pid=driver.pid: at_work([pid])) is None:
            break
        driver.kill()
        killed.append(places.drivers.pop("killed"))
        before |= standing(run.store)
        moments.append(f"{moment:.1f} s at work")
    if not moments:
        raise TooLateError
    found = outcome(whole, Run(places.local(), folder / "store", whole.experiment), " + ".join(moments), before)
    for each in killed:
        each.clear()
    return found


def asked_to_end(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """SIGTERM: the run saves, marks itself and ends with 143; then the same command to the end."""
    driver = places.local("asked")
    run = Run(driver, folder / "store", whole.experiment)
    moment = rng.uniform(0, 0.9) * whole.working
    if after(run, moment, lambda: at_work([driver.pid])) is None:
        raise TooLateError
    os.kill(driver.pid, signal.SIGTERM)
    code, said = run.end(), run.said()
    places.end_driver("asked")
    assert code == 128 + signal.SIGTERM, f"exit code {code}:\n{said[-3000:]}"
    assert list(run.store.glob("runs/*/interrupted.json")), said[-3000:]
    assert "Traceback" not in said, said[-3000:]
    before = standing(run.store)
    return outcome(whole, Run(places.local(), run.store, whole.experiment), f"{moment:.1f} s at work", before)


def killed_attacker(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of a worker while attacks are made, whatever it does for them; Ray must go on by itself."""
    driver = places.local()
    run = Run(driver, folder / "store", whole.experiment)
    moment = rng.uniform(0, 0.9) * whole.seconds["attacks"]
    found = after(run, moment, lambda: attacking(run))
    if not found:
        run.end()
        raise TooLateError
    before = standing(run.store)
    os.kill(rng.choice(found), signal.SIGKILL)
    return outcome(whole, run, f"{moment:.1f} s into attacks", before)


def killed_driver_of_attacks(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of the driver while attacks are made, then the same command to the end."""
    run = Run(places.local("killed"), folder / "store", whole.experiment)
    moment = rng.uniform(0, 0.9) * whole.seconds["attacks"]
    if not after(run, moment, lambda: attacking(run)):
        raise TooLateError
    run.driver.kill()
    killed = places.drivers.pop("killed")
    before = standing(run.store)
    found = outcome(whole, Run(places.local(), run.store, whole.experiment), f"{moment:.1f} s into attacks", before)
    killed.clear()
    return found


def killed_host(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of everything on a host that is at work, one of three; another host joins; Ray must go on by itself."""
    hosts, driver = places.hosts()
    run = Run(driver, folder / "store", whole.experiment)
    moment = rng.uniform(0, 0.7) * whole.working
    busy = after(run, moment, lambda: [each for each in hosts.raylets() if at_work([each])])
    if not busy:
        raise TooLateError
    before = standing(run.store)
    hosts.kill(rng.choice(busy))
    hosts.add()
    return outcome(whole, run, f"{moment:.1f} s at work", before)


def killed_head(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of the head of three hosts: the run fails, and the same command on another cluster goes on."""
    hosts, driver = places.hosts()
    try:
        run = Run(driver, folder / "store", whole.experiment)
        moment = rng.uniform(0, 0.7) * whole.working
        if not after(run, moment, lambda: [each for each in hosts.raylets() if at_work([each])]):
            raise TooLateError
        hosts.kill_head()
        code = run.end()  # a driver that waits for ever for a cluster that is gone would hang here
        assert code != 0, "a run without a cluster said that it was done"
        before = standing(run.store)
    finally:
        places.shut("hosts")
    return outcome(whole, Run(places.local(), run.store, whole.experiment), f"{moment:.1f} s at work", before)


def cut_network(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """The network of a host that is at work goes away, in a namespace of its own; it goes on alone, and comes back."""
    hosts, driver = places.namespaces()
    try:
        run = Run(driver, folder / "store", whole.experiment)
        moment = rng.uniform(0, 0.7) * whole.working
        busy = after(run, moment, lambda: [host for host, root in hosts.roots().items() if host and at_work([root])])
        if not busy:
            raise TooLateError
        before, host = standing(run.store), rng.choice(busy)
        hosts.cut(host)
        time.sleep(rng.uniform(5, 20))
        hosts.join(host)
        return outcome(whole, run, f"{moment:.1f} s at work", before)
    finally:
        places.shut("namespaces")


def full_disk(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """A neighbour fills the store's disk at some point; once it has gone, the same command goes on."""
    store, neighbour = folder / "store", folder / "store" / "neighbour"
    with disk_of(store, 2**28):
        driver = places.local()
        run = Run(driver, store, whole.experiment)
        moment = rng.uniform(0, 0.7) * whole.working
        if not after(run, moment, lambda: at_work([driver.pid])):
            raise TooLateError
        with contextlib.suppress(OSError), neighbour.open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert run.end() == 1, f"exit code {run.end()}:\n{run.said()[-3000:]}"
        assert "disk is full" in run.said(), run.said()[-3000:]
        assert "Traceback" not in run.said(), run.said()[-3000:]
        neighbour.unlink()
        before = standing(store)
        return outcome(whole, Run(places.local(), store, whole.experiment), f"{moment:.1f} s at work", before)


def damaged(pattern: str) -> Callable[..., Outcome]:
    """A bit flips in a file of a finished stage, or the file is cut: that stage is made again."""

    def fault(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
        store = folder / "store"
        shutil.copytree(whole.store, store, ignore=shutil.ignore_patterns("*.db", "mlartifacts", "runs"))
        path = rng.choice(sorted(store.glob(pattern)))
        stage = "/".join(path.relative_to(store).parts[:2])
        before = {name: facts for name, facts in standing(store).items() if not name.startswith(stage)}
        how = damage(path, rng)
        return outcome(whole, Run(places.local(), store, whole.experiment), how, before)

    return fault


def damage(path: Path, rng: random.Random) -> str:
    """Cut a file somewhere or flip one of its bits; says which."""
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        path.write_bytes(content[:at])
        return f"{path.name} cut at {at}"
    content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
    return f"{path.name} bit in byte {at}"


def damaged_unfinished(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """The driver is killed, and what an unfinished stage left behind is cut or a bit of it flips."""
    driver = places.local("killed")
    run = Run(driver, folder / "store", whole.experiment)
    after(run, rng.uniform(0, 0.8) * whole.working, lambda: at_work([driver.pid]))
    while not run.ended and not (files := unfinished(run.store)):
        time.sleep(0.05)
    if run.ended:
        raise TooLateError
    places.end_driver("killed")
    path = rng.choice(files := unfinished(run.store) or files)
    name = path.relative_to(run.store).as_posix().replace(".work/", "/")
    before = {each: facts for each, facts in standing(run.store).items() if each != name}
    how = damage(path, rng)
    kind = path.relative_to(run.store).parts[0]
    return outcome(whole, Run(places.local(), run.store, whole.experiment), f"{kind}: {how}", before)


def unfinished(store: Path) -> list[Path]:
    """Units and checkpoints that an unfinished stage has committed."""
    files = [*store.glob("*/*.work/units/[0-9]*"), *store.glob("*/*.work/checkpoint/*")]
    return sorted(path for path in files if path.is_file() and path.stat().st_size)


def twice_at_once(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """The same experiment is started twice on one store, the second a little later: each stage is made once."""
    first, second = places.local(), places.local("second")
    one = Run(first, folder / "store", whole.experiment)
    moment = rng.uniform(0, 0.5) * whole.working
    after(one, moment, lambda: at_work([first.pid]))
    before = standing(folder / "store")
    two = Run(second, folder / "store", whole.experiment)
    found = outcome(whole, one, f"{moment:.1f} s at work", before)
    same = two.rows() == whole.rows and contents(folder / "store") == whole.contents
    return dataclasses.replace(found, identical=found.identical and same)


def killed_mlflow(whole: Undisturbed, rng: random.Random, folder: Path, places: Places) -> Outcome:
    """kill -9 of MLflow's server while the run records there; with the server back, `leakatk sync` ends it."""
    store, port = folder / "store", free_port()
    shutil.copytree(whole.store, store, ignore=shutil.ignore_patterns("*.db", "mlartifacts", "runs"))
    address = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    before = standing(store)
    with mlflow_server(folder, port) as server:
        run = Run(places.local(), store, whole.experiment, address)
        moment = rng.uniform(0, 10.0)
        after(run, moment, lambda: list(store.glob("runs/*/report.html")))
        kill_all(server.pid)
        found = outcome(whole, run, f"{moment:.1f} s after the report", before)
    with mlflow_server(folder, port):
        command = [sys.executable, "-m", "engine", "sync", "--store", str(store)]
        synced = subprocess.run(command, env=os.environ | address, capture_output=True, text=True, timeout=300)
        kept = recorded_in(f"http://127.0.0.1:{port}")
    expected = recorded_in(f"sqlite:///{whole.store / 'mlflow.db'}")
    same = synced.returncode == 0 and kept == expected
    return dataclasses.replace(found, identical=found.identical and same, why=found.why or ("" if same else "MLflow"))


def recorded_in(uri: str) -> list[Any]:
    """What MLflow holds: each run's name, parameters and whole metric histories, times aside."""
    import logging

    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.ERROR)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("leakatk")
    found = []
    for run in client.search_runs([experiment.experiment_id] if experiment else []):
        metrics = {
            name: sorted((each.step, each.value) for each in client.get_metric_history(run.info.run_id, name))
            for name in run.data.metrics
            if not name.startswith("system/") and name != "seconds"
        }
        names = sorted(each.path for each in client.list_artifacts(run.info.run_id))
        artifacts = [each for each in names if each != "system_metrics.jsonl"]
        params = sorted(run.data.params.items())
        found.append((run.data.tags["mlflow.runName"], run.info.status, params, metrics, artifacts))
    return sorted(found, key=lambda each: each[0])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
