"""Several hosts on this machine: nodes of ray.cluster_utils, or network namespaces that a bridge joins."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

PATIENCE_SECONDS = 300
STARTS = 3  # Ray itself waits 30 s for a node, which a busy machine may exceed
SOON = {  # how soon silence counts as death: seconds instead of Ray's half minute
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


def kill_all(root: int) -> None:
    """kill -9 of a process and of everything below it, as a power cut would."""
    try:
        process = psutil.Process(root)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.suspend()  # none of them sees another one die
    for each in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(family, timeout=30)


@contextlib.contextmanager
def soon() -> Iterator[None]:
    """What is started in the block inherits SOON; nothing later does."""
    os.environ.update(SOON)
    try:
        yield
    finally:
        for name in SOON:
            del os.environ[name]


class Hosts:
    """A head without CPUs, where the driver runs, and hosts of one CPU each: nodes of ray.cluster_utils."""

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        self.temporary = tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True)
        head = {"num_cpus": 0, "temp_dir": self.temporary.name, "include_dashboard": True, "dashboard_port": 0}
        with soon():
            self.cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(count):
            self.add()

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.cluster.address}

    def add(self) -> None:
        for attempt in range(STARTS):
            try:
                with soon():
                    self.cluster.add_node(num_cpus=1)
                return
            except Exception:
                if attempt == STARTS - 1:
                    raise

    def raylets(self) -> dict[int, Any]:
        """Each host that is up, by the pid of its raylet."""
        return {node.all_processes["raylet"][0].process.pid: node for node in self.cluster.worker_nodes}

    def kill(self, raylet: int) -> None:
        """Power off one host."""
        node = self.raylets()[raylet]
        kill_all(raylet)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_head(self) -> None:
        """Power off the head: Ray's control store, its raylet and dashboard."""
        for processes in self.cluster.head_node.all_processes.values():
            for each in processes:
                kill_all(each.process.pid)

    def stop(self) -> None:
        with contextlib.suppress(Exception):  # what was killed is no longer there to be stopped
            self.cluster.shutdown()
        self.temporary.cleanup()


def may_make_namespaces() -> bool:
    """Whether this user may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None


class Namespaces:
    """Hosts with a network of their own: namespaces on a bridge; `cut` takes one off the net and ends nothing on it."""

    def __init__(self, count: int) -> None:
        self.hosts = range(count + 1)
        self.mark = f"lk{os.getpid() % 10000}"
        self.net = f"10.{os.getpid() % 200 + 20}.{os.getpid() // 200 % 250}"
        self.temporary = tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True)
        self.nodes: dict[int, subprocess.Popen[bytes]] = {}
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ip("link", "add", f"{self.mark}br", "type", "bridge")
        ip("link", "set", f"{self.mark}br", "up")
        try:
            for host in self.hosts:
                self._connect(host)
            self._start(0, "--head", "--num-cpus=0", f"--temp-dir={self.temporary.name}", "--dashboard-host=127.0.0.1")
            for host in self.hosts[1:]:
                self.add(host)
        except BaseException:
            self.stop()
            raise

    @property
    def address(self) -> str:
        return f"{self.net}.1:6379"

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": self.address} | SOON | self.token

    @property
    def prefix(self) -> list[str]:
        """Put before a command that is to run on the head."""
        return ["ip", "netns", "exec", f"{self.mark}-0"]

    def _connect(self, host: int) -> None:
        space, inside, outside = f"{self.mark}-{host}", f"{self.mark}i{host}", f"{self.mark}o{host}"
        ip("netns", "add", space)
        ip("link", "add", inside, "type", "veth", "peer", "name", outside)
        ip("link", "set", inside, "netns", space)
        ip("link", "set", outside, "master", f"{self.mark}br", "up")
        for words in (["addr", "add", f"{self.net}.{host + 1}/24", "dev", inside], ["link", "set", inside, "up"],
                      ["link", "set", "lo", "up"]):  # fmt: skip
            ip("-n", space, *words)

    def _start(self, host: int, *arguments: str) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        command = ["ip", "netns", "exec", f"{self.mark}-{host}", ray, "start", "--block", "--disable-usage-stats"]
        command += [f"--node-ip-address={self.net}.{host + 1}", f"--object-store-memory={150 * 2**20}", *arguments]
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        log = (Path(self.temporary.name) / f"host{host}.log").open("w")
        self.nodes[host] = subprocess.Popen(
            command,
            env=kept | SOON | self.token | {"PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        until = time.monotonic() + PATIENCE_SECONDS
        while "Ray runtime started" not in Path(log.name).read_text():
            if self.nodes[host].poll() is not None or time.monotonic() > until:
                raise AssertionError(Path(log.name).read_text())
            time.sleep(0.2)

    def add(self, host: int) -> None:
        self._start(host, f"--address={self.address}", "--num-cpus=1")

    def roots(self) -> dict[int, int]:
        """Pid of each host's first process, by host; the head is 0."""
        return {host: process.pid for host, process in self.nodes.items()}

    def cut(self, host: int) -> None:
        ip("link", "set", f"{self.mark}o{host}", "down")

    def join(self, host: int) -> None:
        ip("link", "set", f"{self.mark}o{host}", "up")

    def stop(self) -> None:
        for process in self.nodes.values():
            kill_all(process.pid)
            process.wait()
        for host in self.hosts:
            subprocess.run(["ip", "netns", "del", f"{self.mark}-{host}"], capture_output=True)
        subprocess.run(["ip", "link", "del", f"{self.mark}br"], capture_output=True)
        self.temporary.cleanup()


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def disk_of(folder: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes at `folder`."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on a sqlite file in `folder`, once it answers; killed at the end."""
    import urllib.request

    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'served.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until = time.monotonic() + PATIENCE_SECONDS
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise AssertionError("MLflow's server did not come up")
            time.sleep(0.3)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
