"""The plan of a run on the cluster that it has joined: made before its first stage, and refused where it cannot fit.

An experiment, its base model and a store come in; Items come out (engine/pipeline/memory_plan.py), then lines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.base import Benchmark
from engine.cluster.hardware import Node, nodes
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.models.size import model_size
from engine.models.source import ModelSource
from engine.pipeline.memory_plan import plan, refuse
from engine.pipeline.plan_items import Item, gib
from engine.store.store import Store


def planned(
    experiment: Experiment,
    benchmark: Benchmark,
    base: ModelSource | None,
    store: Store,
    attacks: Sequence[TrainSection] = (),
) -> list[Item]:
    """The plan on the nodes of the cluster in use. attacks: the settings of those that train. UserError where a node
    does not see the store."""
    machines = nodes(store.root)
    if store.mirror is None:  # an object store is reached from every node, through a folder of its own
        check_store_visible(machines, store.root)
    endpoint = experiment.model.endpoint is not None
    size = model_size(base) if base is not None and not endpoint else None
    return plan(experiment, benchmark, size, machines, kept(store.root), attacks)


def check_store_visible(machines: Sequence[Node], root: Path) -> None:
    """UserError unless every node sees the store."""
    blind = [node.name for node in machines if node.disk is None]
    if blind:
        raise UserError(
            f"store {root}: not seen by {', '.join(blind[:4])}; give a folder that every node of the cluster mounts, "
            "by --store or LEAKATK_STORE"
        )


def announce(items: Sequence[Item], say: Callable[[str], None], whole: bool = False) -> None:
    """Say the plan: in one line what fits, and line by line what may not, or all. UserError where something cannot."""
    shown = [item for item in items if whole or item.fits != "yes"]
    for item in shown:
        say(f"plan: {item}")
    refuse(items)
    if fitting := [item for item in items if item not in shown]:
        largest = max(fitting, key=lambda item: item.need / item.have if item.have else 0.0)
        parts = f"all of {len(items)} parts fit" if not shown else f"the other {len(fitting)} parts fit"
        have = f" of {gib(largest.have)}" if largest.have else ""
        say(f"plan: {parts}, the tightest is {largest.what}, {gib(largest.need)}{have}; --plan shows each")


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
