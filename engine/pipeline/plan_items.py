"""A line of the plan, and what there is for it: the memory that workers have on a cluster's nodes.

Nodes and numbers of workers come in, bytes come out. Knows nothing of what the workers do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from engine.cluster.hardware import Node
from engine.config.sections import TrainSection
from engine.pipeline.memory_model import GIB

CONTEXT = 0.8 * GIB  # of a GPU's memory: CUDA's context and what its allocator cannot use


@dataclasses.dataclass(frozen=True)
class Item:
    """One line of the plan. need, have: bytes, of one worker or of the disk. fits: "yes", "tight", "no" or "unknown".
    detail: how the need comes about; instead: settings that would fit, with their bytes."""

    what: str
    need: float
    have: float
    fits: str
    detail: str
    instead: tuple[str, ...] = ()

    def __str__(self) -> str:
        end = {"yes": "", "tight": "; tight", "no": "; does not fit", "unknown": "; not known whether that fits"}
        have = f" of {gib(self.have)}" if self.have else ""
        advice = f"; would fit: {', '.join(self.instead)}" if self.instead else ""
        return f"{self.what}: {gib(self.need)}{have} ({self.detail}){end[self.fits]}{advice}"


def gib(value: float) -> str:
    """Bytes in GiB, or MiB where they are few."""
    return f"{value / GIB:.1f} GiB" if value >= 0.05 * GIB else f"{value / 2**20:.0f} MiB"


def on_gpus(settings: TrainSection, nodes: Sequence[Node]) -> bool:
    """Whether each training worker has a GPU of its own."""
    return gpus_of(nodes) >= settings.workers


def gpus_of(nodes: Sequence[Node]) -> int:
    """GPUs of all nodes."""
    return sum(len(node.gpus) for node in nodes)


def room(workers: int, nodes: Sequence[Node]) -> float:
    """Bytes that each of so many workers has: a GPU's, or its share of a node's memory; 0 where not known."""
    devices = sorted((gpu.memory for node in nodes for gpu in node.gpus), reverse=True)
    if len(devices) >= workers:
        return max(0.0, devices[workers - 1] - CONTEXT)
    return share_of_memory(workers, nodes)


def beside(workers: int | None, nodes: Sequence[Node]) -> tuple[float, int]:
    """Main memory that each sampling worker has, and how many run side by side on the node with most of it."""
    biggest = max(nodes, key=lambda node: node.memory)
    count = int(min(workers or biggest.cores, biggest.cores)) or 1
    return biggest.memory / count, count


def share_of_memory(workers: int, nodes: Sequence[Node]) -> float:
    """Main memory that each of so many workers has, packed onto as few nodes as have the cores."""
    left, shares = workers, []
    key: Callable[[Node], float] = lambda node: node.memory  # noqa: E731
    for node in sorted(nodes, key=key, reverse=True):
        here = min(left, int(node.cores))
        if here:
            shares.append(node.memory / here)
            left -= here
    return min(shares, default=0.0) if left <= 0 else 0.0
