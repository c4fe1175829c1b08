"""Scores files, JSON lines: {"prompt_id": str, "scores": [float or null, ...], "cluster": str (optional)}.

A path comes in; prompt ids, scores and what was odd about the file come out. A run's scores are written as such files.
Knows nothing of what is done with the scores.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import UserError
from engine.jsonl import JsonObject, JsonValue, Reading, json_lines, write_json_lines
from engine.leak.estimator import Floats
from engine.reporting.generations import TWIN

if TYPE_CHECKING:
    from engine.reporting.results import Results
    from engine.stages.score import GroupScores

ROUNDING = 1e-6  # how far beyond 0 or 1 a float32 may lie by rounding
SCORES = "scores"  # folder of a run's scores files
EXAMPLE = '{"prompt_id": "1", "scores": [0.5, 1, null]}'


@dataclasses.dataclass(frozen=True)
class Scores:
    """rows: float64 [samples] of each prompt, NaN = failed. clusters: of each prompt, None where the file says none.
    malformed: how many lines were left out; examples: the first of them as (line number, reason). rounded: scores
    beyond 0 or 1 by rounding alone, taken as 0 or 1."""

    prompt_ids: list[str]
    rows: list[Floats]
    clusters: list[str | None]
    malformed: int = 0
    examples: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    rounded: int = 0


def read_scores(path: Path) -> Scores:
    """All prompts of a scores file, in its order. Lines that are not a row of the format are left out and counted.

    Raises UserError for a missing file, no readable line, a prompt id that stands twice, a score outside [0, 1].
    """
    reading, rounded = Reading(), 0
    numbers: dict[str, int] = {}
    rows: list[Floats] = []
    clusters: list[str | None] = []
    with json_lines(path, reading) as lines:
        for line in lines:
            try:
                prompt_id, row, cluster = _fields(line.value)
            except ValueError as reason:
                reading.leave_out(line.number, str(reason))
                continue
            if prompt_id in numbers:
                raise UserError(
                    f"{path}:{line.number}: prompt_id {prompt_id!r} stands on line {numbers[prompt_id]} too; "
                    "give each row its own id"
                )
            outside = row[(row < -ROUNDING) | (row > 1 + ROUNDING)]
            if outside.size:
                raise UserError(
                    f"{path}:{line.number}: scores must lie in [0, 1], found {float(outside[0])!r}; rescale them"
                )
            rounded += int(((row < 0) | (row > 1)).sum())
            numbers[prompt_id] = line.number
            rows.append(np.clip(row, 0.0, 1.0))
            clusters.append(cluster)
    if not rows:
        raise UserError(f"{path}: no row of scores in it ({reading.first_fault}); expected rows such as {EXAMPLE}")
    return Scores(list(numbers), rows, clusters, reading.malformed, reading.examples, rounded)


def pair(model: Scores, retain: Scores) -> list[Floats]:
    """The retain model's rows in the order of the model's prompts. UserError where the prompts are not the same, or
    where neither an id nor the texts tell two of them apart."""
    twin = next((each for each in [*model.prompt_ids, *retain.prompt_ids] if TWIN.fullmatch(each)), None)
    if twin is not None:
        raise UserError(
            f"several rows have the same prompt and reference and no prompt_id (scored as {twin}), so that the retain "
            "model's rows cannot be told apart; give each row of both generations files its own prompt_id, score again"
        )
    rows = dict(zip(retain.prompt_ids, retain.rows, strict=True))
    missing = [prompt_id for prompt_id in model.prompt_ids if prompt_id not in rows]
    extra = set(rows) - set(model.prompt_ids)
    if missing or extra:
        first = missing[0] if missing else min(extra)
        raise UserError(
            f"model and retain scores are of different prompts: {len(missing)} only in the model's, "
            f"{len(extra)} only in the retain's (first: {first!r}); score both on the same prompts"
        )
    return [rows[prompt_id] for prompt_id in model.prompt_ids]


def score_row(prompt_id: str, scores: list[float | None], cluster: str | None = None) -> JsonObject:
    """One row of a scores file."""
    return {"prompt_id": prompt_id, "scores": scores} | ({"cluster": cluster} if cluster is not None else {})


def write_scores(results: Results, folder: Path, store_root: Path) -> Path:
    """Write each model's scores of a run by the core metric under the first decoding, a file for each group of probes;
    returns their folder."""
    from engine.reporting.results import scores_stage
    from engine.stages.score import group_scores

    out = folder / SCORES
    out.mkdir(exist_ok=True)
    for before in out.glob("*.jsonl"):  # a model that has failed since has none
        before.unlink()
    for model, curve in results.headline:
        stage = store_root / model.stages[scores_stage(curve.decoding, results.core_metric)]
        for group, values in group_scores(stage).items():
            write_json_lines(out / f"{model.name}.{group}.jsonl", _rows(values, results.clusters))
    return out


def _rows(values: GroupScores, clusters: Mapping[str, str]) -> Iterator[JsonObject]:
    for prompt_id, row in zip(values.prompt_ids, values.scores, strict=True):
        scores = [None if math.isnan(score) else score for score in row.tolist()]
        yield score_row(prompt_id, scores, clusters.get(prompt_id))


def _fields(row: JsonValue) -> tuple[str, Floats, str | None]:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    missing = [key for key in ("prompt_id", "scores") if key not in row]
    if missing:
        instead = "; these are generations: `leakatk score` makes scores of them" if "responses" in row else ""
        raise ValueError(f"no {' and no '.join(missing)}; found {', '.join(row) or 'nothing'}{instead}")
    prompt_id, scores, cluster = row["prompt_id"], row["scores"], row.get("cluster")
    for key, label in (("prompt_id", prompt_id), ("cluster", "" if cluster is None else cluster)):
        if not isinstance(label, str | int):
            raise ValueError(f"{key} must be a string, found {type(label).__name__}")
    if not isinstance(scores, list) or not scores:
        raise ValueError("scores must be a list of at least one number or null")
    wrong = [score for score in scores if not (score is None or isinstance(score, int | float))]
    if wrong:
        raise ValueError(f"scores must be numbers or null, found {wrong[0]!r}")
    return str(prompt_id), np.array(scores, dtype=np.float64), None if cluster is None else str(cluster)
