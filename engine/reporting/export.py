"""A run's scores as JSON lines, for `leakatk leak` and for anything else that reads them.

Results and the store come in; scores/<model>.<group>.jsonl come out, one row a prompt, null where the metric failed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from engine.reporting.results import Results

if TYPE_CHECKING:
    from engine.stages.score import GroupScores


def write_scores(results: Results, folder: Path, store_root: Path) -> Path:
    """Write each model's scores by the core metric under the first decoding; returns their folder."""
    from engine.stages.score import group_scores
    from engine.store.files import write_atomic

    out = folder / "scores"
    out.mkdir(exist_ok=True)
    for model, curve in results.headline:
        stage = store_root / model.stages[f"scores {curve.decoding} {results.core_metric}"]
        for group, values in group_scores(stage).items():
            write_atomic(out / f"{model.name}.{group}.jsonl", _lines(values))
    return out


def _lines(values: GroupScores) -> Iterator[str]:
    for prompt_id, row in zip(values.prompt_ids, values.scores, strict=True):
        scores = [None if math.isnan(score) else score for score in row.tolist()]
        yield json.dumps({"prompt_id": prompt_id, "scores": scores}) + "\n"
