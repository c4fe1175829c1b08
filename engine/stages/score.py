"""Scoring as a stage: generations in, one score in [0, 1] or null (the metric failed) for each sample out.

Runs unit by unit over the cluster, beside the units of the generations, or in the driver where that is done sooner;
re-scoring never samples again. What a metric is stands in engine/metrics.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import counted, each_unit, read_unit, unit_counts, unit_path, unit_seconds
from engine.jsonl import JsonObject
from engine.stages.base import Stage, portable_inputs
from engine.store.replica import manifest_of, readable
from engine.store.store import FinishedStage

if TYPE_CHECKING:
    from pyarrow import Table


SCORE_VERSION = 3  # part of every scoring's fingerprint: raise it when scores or what is noted with them change
QUICK = ("exact", "rouge")  # modules of metrics that compare texts alone, thousands in a tenth of a second
FEW_TEXTS = 2**21  # bytes of distinct responses that such a metric scores sooner than Ray begins a task


@dataclasses.dataclass(frozen=True)
class ScoreJob(Stage):
    """One metric with its options over the generations, so many files, in `generations/units`. gpus: for metrics that
    run a model. portable: in arithmetic that CPUs share (engine/cluster/numerics.py)."""

    generations: str
    files: int
    metric: str
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    gpus: float = 0.0
    portable: bool = False
    kind: ClassVar[str] = "score"
    title: ClassVar[str] = "score"

    @property
    def units(self) -> int:
        return self.files

    def inputs(self) -> JsonObject:
        from engine.metrics import known_by

        return {
            "generations": manifest_of(Path(self.generations))["fingerprint"],
            "metric": self.metric,
            "options": self.options,
            "version": SCORE_VERSION,
            **known_by(self.metric, self.options),
            **portable_inputs(self.portable),
        }

    def _quick(self) -> bool:
        """Whether the texts are scored sooner than Ray begins a task."""
        import pyarrow.parquet

        from engine.metrics import METRICS

        if METRICS[self.metric].module not in QUICK:
            return False
        size = 0
        for unit in range(self.files):
            metadata = pyarrow.parquet.read_metadata(readable(unit_path(Path(self.generations) / "units", unit)))
            column = metadata.schema.to_arrow_schema().get_field_index("response")
            size += sum(
                metadata.row_group(at).column(column).total_uncompressed_size for at in range(metadata.num_row_groups)
            )
        return size <= FEW_TEXTS

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units`; returns how many samples have no score, by reason too."""
        fan_out(
            self,
            self.units,
            work / "units",
            report,
            gpus=self.gpus,
            here=self._quick(),
            portable=self.portable,
        )
        failures = unit_counts(work / "units")
        return {"failed": sum(failures.values()), "failures": failures, "seconds": unit_seconds(work / "units")}

    def compute(self, unit: int) -> tuple[Table, str]:
        """The scores of one unit's samples as a table, in their order."""
        import pyarrow

        from engine.metrics import METRICS, score_counted

        table = read_unit(readable(unit_path(Path(self.generations) / "units", unit)))
        responses = table["response"].to_pylist()
        told = zip(table["reference"].to_pylist(), table["fact"].to_pylist(), strict=True)
        references = [METRICS[self.metric].truth(reference, fact) for reference, fact in told]
        found = score_counted(self.metric, responses, references, table["prompt"].to_pylist(), **self.options)
        scored = table.select(["prompt_id", "group", "sample"]).append_column(
            "score", pyarrow.array(found.scores, pyarrow.float64())
        )
        failures = found.failures
        if "failure" in table.column_names:  # the sampler knows why there is no response
            del failures["no response"]
            failures.update(f"no response: {why}" for why in table["failure"].to_pylist() if why)
        return counted(scored, failures), ""


def score_job(
    generations: FinishedStage, metric: str, options: dict[str, object], gpus: float = 0.0, portable: bool = False
) -> ScoreJob:
    """The scoring of a finished sampling."""
    files = sum(name.startswith("units/") for name in generations.manifest["files"])
    return ScoreJob(str(generations.path), files, metric, options, gpus, portable)


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """Scores of one group of probes: prompt ids, and scores [prompts, samples] with NaN where the metric failed."""

    prompt_ids: list[str]
    scores: np.ndarray


def group_scores(folder: Path) -> dict[str, GroupScores]:
    """The scores of a finished stage by group, prompts in their order. Holds the numbers, and one unit's table."""
    return scores_by_group(each_unit(folder))


def scores_by_group(units: Iterable[Table]) -> dict[str, GroupScores]:
    """`group_scores` of the units' tables themselves, in their order."""
    import pyarrow.compute

    prompts: dict[str, list[str]] = {}
    rows: dict[str, list[np.ndarray]] = {}
    for table in units:
        first = table.filter(pyarrow.compute.equal(table["sample"], 0))
        matrix = table["score"].to_numpy().reshape(first.num_rows, -1)
        for group, prompt_id, row in zip(
            first["group"].to_pylist(), first["prompt_id"].to_pylist(), matrix, strict=True
        ):
            prompts.setdefault(group, []).append(prompt_id)
            rows.setdefault(group, []).append(row)
    return {group: GroupScores(ids, np.stack(rows[group])) for group, ids in prompts.items()}
