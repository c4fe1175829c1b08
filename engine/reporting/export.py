"""A run in the forms of others: tidy tables of its curves or of every score, OpenUnlearning's files.

Results and the store come in, tables and JSON values come out. Knows nothing of where they are written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import UserError
from engine.jsonl import JsonObject, JsonValue
from engine.reporting.openunlearning_log import MUSE_GROUPS, PARTS, THEIR_NAMES
from engine.reporting.results import GREEDY, ModelResult, Results, generations_stage, scores_stage
from engine.store.replica import present

if TYPE_CHECKING:
    import pandas

RECALL = "rougeL_recall"
SCALARS = ("forget_quality", "model_utility", "privleak", "extraction_strength", "exact_memorization")
ITEM_COLUMNS = ("model", "role", "group", "metric", "decoding", "prompt_id", "sample", "score")


def items_table(results: Results, store_root: Path) -> pandas.DataFrame:
    """Every score of a run: a row for each model, group, metric, decoding, prompt and sample; no score where the metric
    failed. UserError where the samples are not in this store."""
    import pandas

    frames = [frame for model in results.models for frame in _items(model, store_root)]
    if not frames:
        raise UserError(f"{results.name}: the run names no scores")
    return pandas.concat(frames, ignore_index=True)[list(ITEM_COLUMNS)]


def _items(model: ModelResult, store_root: Path) -> Iterator[pandas.DataFrame]:
    from engine.cluster.units import read_units

    sampled = {(curve.decoding, curve.metric) for curve in model.curves}
    wanted = dict.fromkeys([*sorted(sampled), *sorted((GREEDY, metric) for _, metric in sampled)])
    for decoding, metric in wanted:
        number, before = 1, dict[tuple[str, str], int]()
        while (stage := scores_stage(decoding, metric, number)) in model.stages:
            folder = stage_folder(model, stage, store_root)
            frame = read_units(folder).to_pandas()
            keys = list(zip(frame["group"], frame["prompt_id"], strict=True))
            frame["sample"] += [before.get(key, 0) for key in keys]  # of a later round: after those before it
            for key in keys:
                before[key] = before.get(key, 0) + 1
            yield frame.assign(model=model.name, role=model.role, metric=metric, decoding=decoding)
            number += 1


def open_unlearning(model: ModelResult, results: Results, store_root: Path) -> JsonObject:
    """One model's figures as OpenUnlearning's TOFU_EVAL.json: metric -> agg_value, null where there is none, with the
    items of the greedy answers' ROUGE where the store has them."""
    log: JsonObject = {}
    for name in SCALARS:
        if name in model.metrics:
            log[name] = {"agg_value": model.metrics[name]}
    for name, value in model.metrics.items():
        if name.startswith("mia_"):
            log[name] = {"auc": value, "agg_value": value}
    named = {ours: theirs for ours, theirs in THEIR_NAMES.items() if ours in model.metrics}
    log |= {theirs: {"agg_value": model.metrics[ours]} for ours, theirs in named.items()}
    for group, rows in _greedy_rouge(model, store_root).items():
        muse = group in MUSE_GROUPS
        theirs, column = (f"{group}_ROUGE", "rougeL_f1") if muse else (f"{PARTS.get(group, group)}_Q_A_ROUGE", RECALL)
        entry = log.setdefault(theirs, {"agg_value": None})
        entry["value_by_index"] = {str(index): row for index, row in enumerate(rows)}
        if entry["agg_value"] is None:
            known = [row[column] for row in rows if row[column] is not None]
            entry["agg_value"] = math.fsum(known) / len(known) if known else None
    return log


def summary(log: Mapping[str, JsonValue]) -> dict[str, float]:
    """OpenUnlearning's SUMMARY.json of a log: metric -> agg_value, without those that have none."""
    return {name: entry["agg_value"] for name, entry in log.items() if entry["agg_value"] is not None}


def _greedy_rouge(model: ModelResult, store_root: Path) -> dict[str, list[JsonObject]]:
    """By group, each greedy answer with its ROUGE-L, in the order of the prompts; empty where none is in the store."""
    from engine.cluster.units import read_units
    from engine.metrics import score

    stage = generations_stage(GREEDY)
    if stage not in model.stages:
        return {}
    columns = ["group", "prompt", "reference", "response"]
    rows = read_units(stage_folder(model, stage, store_root), columns).to_pylist()
    texts = [row["response"] for row in rows], [row["reference"] for row in rows]
    scores = {name: score(name, *texts) for name in ("rouge_l_recall", "rouge_l_f1")}
    found: dict[str, list[JsonObject]] = {}
    for row, recall, f1 in zip(rows, *scores.values(), strict=True):
        found.setdefault(row["group"], []).append(
            {
                RECALL: recall,
                "rougeL_f1": f1,
                "input": row["prompt"],
                "ground_truth": row["reference"],
                "generation": row["response"],
            }
        )
    return found


def stage_folder(model: ModelResult, stage: str, store_root: Path) -> Path:
    """The folder of one of a model's stages. UserError where it is not in this store."""
    folder = present(store_root / model.stages[stage])
    if not folder.is_dir():
        raise UserError(
            f"{model.name}: its samples are not in the store {store_root}; give the one that has them, --store"
        )
    return folder
