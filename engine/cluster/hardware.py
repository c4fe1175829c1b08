"""What the machines have: cores, memory, GPUs, and the disk below the store, of this one or of every node of a cluster.

Looks, and changes nothing. Knows nothing of what they are wanted for.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError

if TYPE_CHECKING:
    from ray import ObjectRef

# GiB of a device, by its usual name.
GPU_GIB = {"b200": 180.0, "h200": 141.0, "h100": 80.0, "a100": 80.0, "a100-40": 40.0, "l40s": 48.0, "a6000": 48.0}
GPU_GIB |= {"v100": 32.0, "l4": 24.0, "a10g": 24.0, "4090": 24.0, "3090": 24.0, "t4": 16.0}
NODE_SECONDS = 60.0  # for a node to answer
CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A device: name, memory in bytes, and how much of that nobody holds."""

    name: str
    memory: float
    free: float


@dataclasses.dataclass(frozen=True)
class Node:
    """One machine: cores that it gives, memory in bytes, and the disk of the folder that was asked about (None: it does
    not see that folder)."""

    name: str
    cores: float
    memory: float
    free: float
    gpus: tuple[Gpu, ...] = ()
    disk: float | None = None


def this_node(path: str, cores: float | None = None, gpus: float | None = None) -> Node:
    """This machine, or a container's share of it, and the disk that `path` is on. cores, gpus: what Ray gives of it,
    where it was told a number."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = float(memory.total), float(memory.available)
    limit = _cgroup_limit()
    if limit is not None and limit < total:
        total, free = limit, min(free, max(0.0, limit - _cgroup_used()))
    found = _gpus()
    return Node(
        socket.gethostname(),
        float(len(os.sched_getaffinity(0))) if cores is None else cores,
        total,
        free,
        found if gpus is None else found[: int(gpus)],
        float(shutil.disk_usage(path).free) if Path(path).exists() else None,
    )


def nodes(folder: Path) -> list[Node]:
    """Every node of the cluster at RAY_ADDRESS that this process has joined, each asked by a task on it, whether it
    sees `folder` by a file put there; else this machine."""
    import ray

    if not (os.environ.get("RAY_ADDRESS") and ray.is_initialized()):
        return [this_node(str(folder))]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    probe = folder / f".seen-{os.getpid()}-{threading.get_ident()}"
    probe.touch()
    try:
        asked = []
        for node in ray.nodes():
            if node["Alive"]:
                has, on_it = node["Resources"], NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                task: Any = ray.remote(this_node).options(num_cpus=0, scheduling_strategy=on_it, max_retries=1)
                asked.append(task.remote(str(probe), has.get("CPU", 0.0), has.get("GPU", 0.0)))
        ready, _ = ray.wait(asked, num_returns=len(asked), timeout=NODE_SECONDS)
        return [found for each in ready if (found := _answer(each)) is not None]
    finally:
        probe.unlink(missing_ok=True)


def node_of(text: str) -> Node:
    """A machine that is not here, by its GPUs: "8xh100", "4x24" (GiB of each). It has twelve cores and twice the memory
    of each GPU, as cloud machines do. UserError for anything else."""
    count, _, kind = text.lower().partition("x")
    size = GPU_GIB.get(kind) or (float(kind) if kind.replace(".", "", 1).isdecimal() else 0.0)
    if not count.isdecimal() or int(count) < 1 or not size:
        raise UserError(f"--gpus {text}: expected as 8x80 (GPUs x GiB of each) or 8xh100, of {', '.join(GPU_GIB)}")
    memory = size * 2**30
    gpus = (Gpu(kind if kind in GPU_GIB else "GPU", memory, memory),) * int(count)
    return Node(f"{text} (not this machine)", 12.0 * len(gpus), 2 * memory * len(gpus), 2 * memory * len(gpus), gpus)


def fast_bf16() -> bool:
    """Whether this machine's processor multiplies in bfloat16 by instructions of its own."""
    try:
        return any(flag in Path("/proc/cpuinfo").read_text() for flag in ("amx_bf16", "avx512_bf16"))
    except OSError:  # not Linux
        return False


def _answer(reference: ObjectRef[Node]) -> Node | None:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError:  # the node has gone since
        return None


def _gpus() -> tuple[Gpu, ...]:
    command = ["nvidia-smi", "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
        fields = [line.rsplit(",", 2) for line in lines if line.strip()]
        return tuple(Gpu(name.strip(), float(total) * 2**20, float(free) * 2**20) for name, total, free in fields)
    except (OSError, ValueError, subprocess.SubprocessError):  # no driver, or one that does not say
        return ()


def _cgroup_limit() -> float | None:
    for path in CGROUP_LIMITS:
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):  # not there, or "max"
            continue
    return None


def _cgroup_used() -> float:
    for path in ("/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory/memory.usage_in_bytes"):
        try:
            return float(Path(path).read_text())
        except (OSError, ValueError):
            continue
    return 0.0
