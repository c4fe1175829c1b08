"""The answers and figures of OpenUnlearning's TOFU_EVAL.json and MUSE_EVAL.json and of TOFU's own aggregated log.

A parsed log comes in, an ImportedLog comes out. OpenUnlearning's names of metrics and ours stand here, for what comes
in and what goes out; what the figures are stands in engine/reporting/eval_logs.py.
"""

from __future__ import annotations

from benchmarks.base import Decoding
from engine.reporting.eval_logs import TOFU_PARTS, Log, as_openunlearning, items_of, recompute
from engine.reporting.imported_log import ImportedLog, Item

PARTS = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}  # our groups: their prefix
MUSE_GROUPS = ("forget_knowmem", "forget_verbmem", "retain_knowmem")
SPLITS = {40: "forget01", 200: "forget05", 400: "forget10"}  # by the number of TOFU's forget questions
QUESTIONS = 20  # of each of TOFU's authors, one after the other


def _names() -> dict[str, str]:
    found = {}
    for group, part in PARTS.items():
        normalised = "_normalised" if part in ("ra", "wf") else ""
        found[f"probability.{group}"] = f"{part}_Q_A_Prob{normalised}"
        found[f"rouge.{group}"] = f"{part}_Q_A_ROUGE"
        found[f"truth_ratio.{group}"] = "forget_truth_ratio" if part == "forget" else f"{part}_Truth_Ratio"
    for group in MUSE_GROUPS:
        side, kind = group.split("_")
        found[f"{kind}.{side}"] = f"{group}_ROUGE"
    return found


THEIR_NAMES = _names()  # of metrics that have another name there
OUR_NAMES = {theirs: ours for ours, theirs in THEIR_NAMES.items()}


def openunlearning_log(log: Log, digest: str, retain: Log | None = None) -> ImportedLog:
    """A parsed log; retain: the retain model's, for forget quality and privleak."""
    figures = recompute(log, retain)
    entries = as_openunlearning(log)
    muse = any(f"{group}_ROUGE" in entries for group in MUSE_GROUPS)
    groups = {group: f"{group}_ROUGE" for group in MUSE_GROUPS} if muse else _tofu_groups()
    texts = {group: [*items_of(entries.get(name))] for group, name in groups.items()}
    split = None if muse else SPLITS.get(len(texts["forget"]))
    return ImportedLog(
        tool="TOFU" if set(TOFU_PARTS) & set(log) else "OpenUnlearning",
        benchmark={"name": "muse" if muse else "tofu"} | ({"split": split} if split else {}),
        items=tuple(
            _item(group, index, row, split)
            for group, rows in texts.items()
            for index, row in enumerate(rows)
            if isinstance(row.get("generation"), str) and isinstance(row.get("ground_truth"), str)
        ),
        figures=figures,
        core_metric="rouge_l_f1" if muse else "rouge_l_recall",
        decoding=Decoding(temperature=0.0),
        digest=digest,
    )


def _tofu_groups() -> dict[str, str]:
    return {group: f"{part}_Q_A_ROUGE" for group, part in PARTS.items()}


def _item(group: str, index: int, row: Log, split: str | None) -> Item:
    """split: of TOFU, where the number of questions tells it: then prompts have their ids in our own runs, and it is
    known which are of one author."""
    of_author = split is not None and group == "forget"
    return Item(
        id=f"{split if of_author else group}/{index}",
        group=group,
        prompt=str(row.get("input") or ""),
        reference=row["ground_truth"],
        responses=(row["generation"],),
        cluster=f"author{index // QUESTIONS}" if of_author else None,
    )
