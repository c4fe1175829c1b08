"""Scoring as a stage: generations in, one score in [0, 1] or null (the metric failed) for each sample out.

Runs unit by unit over the cluster, beside the units of the generations; re-scoring never samples again. What a metric
is stands in engine/metrics.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from engine.fanout import fan_out, unit_path, unit_seconds
from engine.sample import read_units

SCORE_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ScoreJob:
    """One metric with its options over the generations in `generations/units`. gpus: for metrics that run a model."""

    generations: str
    units: int
    metric: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    gpus: float = 0.0

    def compute(self, unit: int) -> tuple[Any, str]:
        """The scores of one unit's samples as a table, in their order."""
        import pyarrow
        import pyarrow.compute
        import pyarrow.parquet

        from engine.metrics import METRICS, score

        table = pyarrow.parquet.read_table(unit_path(Path(self.generations) / "units", unit))
        responses = table["response"].to_pylist()
        references = table["reference"].to_pylist()
        if METRICS[self.metric].reads_fact:
            facts = table["fact"].to_pylist()
            references = [fact or reference for fact, reference in zip(facts, references, strict=True)]
        values = score(self.metric, responses, references, prompts=table["prompt"].to_pylist(), **self.options)
        scored = table.select(["prompt_id", "group", "sample"]).append_column(
            "score", pyarrow.array(values, pyarrow.float64())
        )
        return scored, ""


def run_scoring(job: ScoreJob, work: Path, report: Any) -> dict[str, Any]:
    """Fill `work/units` with the scores of every unit; returns how many samples were scored and how many failed."""
    fan_out(job, job.units, work / "units", report, gpus=job.gpus)
    table = read_units(work, ["score"])
    seconds = unit_seconds(work / "units")
    return {"samples": table.num_rows, "failed": table["score"].null_count, "seconds": seconds}


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """Scores of one group of probes: prompt ids, and scores [prompts, samples] with NaN where the metric failed."""

    prompt_ids: list[str]
    scores: np.ndarray


def group_scores(folder: Path) -> dict[str, GroupScores]:
    """The scores of a finished stage by group, prompts in their order."""
    table = read_units(folder)
    values = table["score"].to_numpy()
    samples = table["sample"].to_numpy()
    n = int(samples.max()) + 1
    groups = np.array(table["group"].to_pylist())[samples == 0]
    prompts = np.array(table["prompt_id"].to_pylist())[samples == 0]
    matrix = values.reshape(len(prompts), n)
    return {
        str(group): GroupScores([str(each) for each in prompts[groups == group]], matrix[groups == group])
        for group in dict.fromkeys(groups.tolist())
    }
