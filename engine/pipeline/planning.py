"""The plan of an experiment on the machines at hand: looked up, said, and refused where it cannot fit.

Joins what engine/pipeline/memory_plan.py computes to what engine/cluster/hardware.py sees.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.base import Benchmark
from engine.cluster.hardware import Node, nodes
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.models.source import ModelSource
from engine.pipeline.memory_model import model_size
from engine.pipeline.memory_plan import Item, plan, refuse
from engine.store.store import Store


def planned(experiment: Experiment, benchmark: Benchmark, base: ModelSource | None, store: Store) -> list[Item]:
    """The plan on the nodes of the cluster in use. UserError where a node does not see the store."""
    found = nodes(store.root)
    if store.mirror is None:  # an object store is reached from every node, through a folder of its own
        check_seen(found, store.root)
    endpoint = experiment.model.endpoint is not None
    size = model_size(base) if base is not None and not endpoint else None
    return plan(experiment, benchmark, size, found, kept(store.root))


def check_seen(found: Sequence[Node], root: Path) -> None:
    """UserError unless every node sees the store."""
    blind = [node.name for node in found if node.disk is None]
    if blind:
        raise UserError(
            f"store {root}: not seen by {', '.join(blind[:4])}; give a folder that every node of the cluster mounts, "
            "by --store or LEAKATK_STORE"
        )


def announce(items: Sequence[Item], say: Callable[[str], None]) -> None:
    """Say the plan, line by line. UserError where something cannot fit."""
    for item in items:
        say(f"plan: {item}")
    refuse(items)


def kept(root: Path) -> float:
    """Bytes of the models and states in the store."""
    total = 0
    for folder, _, names in os.walk(root / "train"):
        for name in names:
            try:
                total += os.lstat(Path(folder) / name).st_size
            except OSError:  # gone since
                continue
    return float(total)
