"""Evaluation logs of others: OpenUnlearning's TOFU_EVAL.json and MUSE_EVAL.json, TOFU's own eval_log_aggregated.json.

A parsed log comes in, and the retain model's; every figure that its items allow comes out, computed again, beside what
the log says. Names are OpenUnlearning's, TOFU's own log is brought into its form. Knows nothing of files or runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from engine.errors import UserError
from engine.jsonl import JsonObject, JsonValue
from engine.metrics import likelihood, privacy
from engine.metrics.rouge import rouge_l

Log = Mapping[str, JsonValue]
TOFU_PARTS = {  # TOFU's own log: prefix of OpenUnlearning's names
    "eval_log_forget.json": "forget",
    "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "ra",
    "eval_real_world_wo_options.json": "wf",
}
UTILITY = (
    *("retain_Q_A_Prob", "retain_Q_A_ROUGE", "retain_Truth_Ratio"),
    *("ra_Q_A_Prob_normalised", "ra_Q_A_ROUGE", "ra_Truth_Ratio"),
    *("wf_Q_A_Prob_normalised", "wf_Q_A_ROUGE", "wf_Truth_Ratio"),
)
NO_ITEMS = "the log holds no items of it"
NO_RETAIN = "needs the retain model's log: --retain LOG"
TOLERANCE = 1e-4  # of a stated figure: beyond it a difference is pointed out
NO_RETAIN_AUC = 0.5  # what OpenUnlearning takes where there is no retain log


@dataclasses.dataclass(frozen=True)
class Recomputed:
    """metrics: by name, computed from the items, None where they are lacking, with the reason in `missing`. stated:
    what the log says, None where it was not computed."""

    metrics: dict[str, float | None]
    stated: dict[str, float | None]
    missing: dict[str, str]

    def differing(self) -> dict[str, tuple[float, float]]:
        """(computed, stated) where the two differ by more than TOLERANCE of the larger."""
        pairs = {name: (value, self.stated.get(name)) for name, value in self.metrics.items()}
        return {
            name: (value, stated)
            for name, (value, stated) in pairs.items()
            if value is not None
            and stated is not None
            and not math.isclose(value, stated, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
        }


def is_eval_log(value: object) -> bool:
    """Whether a JSON value is a log that `recompute` reads."""
    if not isinstance(value, dict) or not value:
        return False
    entries = [each for each in value.values() if isinstance(each, dict) and "agg_value" in each]
    return bool(entries) or bool(set(TOFU_PARTS) & set(value))


def recompute(log: Log, retain: Log | None = None) -> Recomputed:
    """Every figure of a log from its items; retain: the log of the retain model on the same forget set.

    UserError for what is none of the two kinds of log.
    """
    if not is_eval_log(log) or (retain is not None and not is_eval_log(retain)):
        raise UserError(
            "no evaluation log: expected OpenUnlearning's (metric: agg_value) or TOFU's eval_log_aggregated"
        )
    log, retain = as_openunlearning(log), None if retain is None else as_openunlearning(retain)
    metrics: dict[str, float | None] = {}
    missing: dict[str, str] = {}
    wanted = dict.fromkeys([*log, *(["model_utility"] if set(UTILITY) <= set(log) else [])])
    if "forget_truth_ratio" in log:
        wanted |= dict.fromkeys(["forget_quality"])
    for name in sorted(wanted, key=lambda name: name == "model_utility"):  # which reads the others
        try:
            value = _value(name, log, retain, metrics)
            if not math.isfinite(value):
                raise ValueError("is not a finite number")
            metrics[name] = value
        except ValueError as error:
            metrics[name], missing[name] = None, str(error)
    stated = {name: _number(entry.get("agg_value", entry.get("auc"))) for name, entry in log.items()}
    return Recomputed(metrics, stated, missing)


def _value(name: str, log: Log, retain: Log | None, metrics: Mapping[str, float | None]) -> float:
    """One figure. ValueError says why there is none."""
    if name == "model_utility":
        parts = [metrics.get(part) for part in UTILITY]
        if lacking := [part for part, value in zip(UTILITY, parts, strict=True) if value is None]:
            raise ValueError(f"needs {', '.join(lacking)}")
        return likelihood.model_utility([value for value in parts if value is not None])
    if name == "forget_quality":
        if retain is None:
            raise ValueError(NO_RETAIN)
        return likelihood.forget_quality(_ratios("forget_truth_ratio", log), _ratios("forget_truth_ratio", retain))
    if name == "privleak":
        other = NO_RETAIN_AUC if retain is None else _auc(retain.get("mia_min_k", {}))
        return privacy.privleak(_auc(log.get("mia_min_k", {})), other)
    if name.startswith("mia_"):
        return _auc(log[name])
    if _is_rouge(name):
        scores = _rouge(name, log[name])
    elif name.lower().endswith("truth_ratio"):
        aggregate = likelihood.forget_truth_ratio if name == "forget_truth_ratio" else likelihood.utility_truth_ratio
        return aggregate(_ratios(name, log))
    elif name.endswith("_Prob_normalised"):
        scores = _normalised(name, log)
    elif name.endswith("_Prob"):
        scores = likelihood.probability(np.concatenate([np.ravel(loss) for loss in _column(log[name], "avg_loss")]))
    else:
        scores = np.array(_column(log[name], "score"), dtype=np.float64)
    return float(np.mean(scores))


def _is_rouge(name: str) -> bool:
    return name.endswith("_ROUGE")


def items_of(entry: object) -> Iterator[Mapping[str, JsonValue]]:
    """The items of a metric in the order of their index, without those that were not computed."""
    rows = entry.get("value_by_index") if isinstance(entry, dict) else None
    if isinstance(rows, dict):
        for _, row in sorted(rows.items(), key=lambda item: (len(item[0]), item[0])):
            if isinstance(row, dict):
                yield row


def _column(entry: object, key: str) -> list[JsonValue]:
    """A value of every item. ValueError where there is no item, or one without it."""
    values = [row.get(key) for row in items_of(entry)]
    if not values or any(value is None for value in values):
        raise ValueError(NO_ITEMS)
    return values


def _rouge(name: str, entry: object) -> JsonValue:
    """ROUGE-L of the greedy answers, as OpenUnlearning takes it: F1 for MUSE's, recall for TOFU's."""
    scores = rouge_l(_texts(entry, "generation"), _texts(entry, "ground_truth"))
    return scores.f1 if "knowmem" in name or "verbmem" in name else scores.recall


def _texts(entry: object, key: str) -> list[str]:
    texts = _column(entry, key)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(NO_ITEMS)
    return texts


def _ratios(name: str, log: Log) -> JsonValue:
    """Truth ratios, wrong over correct: from the losses where the log has them, else as it stores them."""
    part = name.lower().removesuffix("_truth_ratio")
    correct = log.get(f"{part}_Q_A_PARA_Prob", log.get(f"{part}_Q_A_Prob"))
    wrong = log.get(f"{part}_Q_A_PERT_Prob")
    try:
        return likelihood.truth_ratio(_column(correct, "avg_loss"), _rectangle(_column(wrong, "avg_loss")))
    except ValueError:
        return np.array(_column(log.get(name), "score"), dtype=np.float64)


def _normalised(name: str, log: Log) -> JsonValue:
    part = name.removesuffix("_Q_A_Prob_normalised")
    correct, wrong = log.get(f"{part}_Q_A_Prob"), log.get(f"{part}_Q_A_PERT_Prob")
    try:
        return likelihood.normalised_probability(_column(correct, "avg_loss"), _rectangle(_column(wrong, "avg_loss")))
    except ValueError:
        return np.array(_column(log.get(name), "prob"), dtype=np.float64)


def _rectangle(rows: Sequence[JsonValue]) -> JsonValue:
    """Losses of the wrong answers: [items, wrong]. ValueError where rows differ in length."""
    return np.array(rows, dtype=np.float64)


def _auc(entry: object) -> float:
    """1: the forget set looks like training data. Scores are losses of a kind: low for what is known."""
    if not isinstance(entry, dict):
        raise ValueError(NO_ITEMS)
    forget, holdout = (np.array(_column(entry.get(side), "score"), dtype=float) for side in ("forget", "holdout"))
    return privacy.auc(-forget, -holdout)


def _number(value: object) -> float | None:
    """A stated figure; -1 and null say that it was not computed."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value == -1 or not math.isfinite(value):
        return None
    return float(value)


def as_openunlearning(log: Log) -> Log:
    """A log in OpenUnlearning's form; other keys than metrics are left out."""
    if not set(TOFU_PARTS) & set(log):
        return {name: entry for name, entry in log.items() if isinstance(entry, dict)}
    brought: JsonObject = {}
    for file, part in TOFU_PARTS.items():
        if isinstance(log.get(file), dict):
            brought |= _tofu_part(part, log[file])
    return brought


def _tofu_part(part: str, values: Mapping[str, JsonValue]) -> JsonObject:
    """One set of TOFU's own log under OpenUnlearning's names, with what it states where it states it."""
    found: JsonObject = {}

    def add(name: str, rows: JsonObject, stated: float | None = None) -> None:
        if rows:
            found[name] = {"agg_value": stated, "value_by_index": rows}

    def rows(key: str, item: Callable[[JsonValue], JsonObject]) -> JsonObject:
        column = values.get(key)
        return {str(index): item(value) for index, value in column.items()} if isinstance(column, dict) else {}

    add(f"{part}_Q_A_Prob", rows("avg_gt_loss", lambda loss: {"avg_loss": loss}))
    add(f"{part}_Q_A_PARA_Prob", rows("avg_paraphrased_loss", lambda loss: {"avg_loss": loss}))
    add(f"{part}_Q_A_PERT_Prob", rows("average_perturb_loss", lambda losses: {"avg_loss": losses}))
    texts = rows("generated_text", lambda row: dict(zip(("input", "generation", "ground_truth"), row, strict=False)))
    add(f"{part}_Q_A_ROUGE", texts, _mean(values.get("rougeL_recall")))
    ratio = "forget_truth_ratio" if part == "forget" else f"{part}_Truth_Ratio"
    add(ratio, rows("truth_ratio", lambda ratio: {"score": ratio}), _stated_ratio(part, values.get("truth_ratio")))
    if part in ("ra", "wf") and f"{part}_Q_A_PERT_Prob" in found:
        found[f"{part}_Q_A_Prob_normalised"] = {"agg_value": None}
    return found


def _mean(column: object) -> float | None:
    return float(np.mean(list(column.values()))) if isinstance(column, dict) and column else None


def _stated_ratio(part: str, column: object) -> float | None:
    """What a log's own ratios give; of the forget set alone, which does not mind the inverse that some logs store."""
    if part != "forget" or not isinstance(column, dict) or not column:
        return None
    return likelihood.forget_truth_ratio(list(column.values()))
