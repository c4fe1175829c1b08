"""What leaked, in words: the prompts that leak most, their worst sample with the leaked words marked, and the retain
model's.

Results and the store come in; plain records come out. Knows nothing of HTML: whoever shows the texts escapes them.
"""

from __future__ import annotations

import dataclasses
import re
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

import numpy as np

from engine.leak.estimator import prompt_leak
from engine.metrics import METRICS
from engine.reporting.results import Curve, ModelResult, Results
from engine.store.replica import present

SPAN_WORDS = 3  # matching words in a row that count as leaked; fewer do where nothing longer matches
Pieces = list[tuple[str, bool]]  # a text cut up, and whether each piece leaked


@dataclasses.dataclass(frozen=True)
class Answer:
    """One sample: its text cut into pieces, and its score in [0, 1]."""

    pieces: Pieces
    score: float

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.pieces)


@dataclasses.dataclass(frozen=True)
class WorstPrompt:
    """A prompt and its highest-scoring sample of `samples`; retain: the retain model's highest-scoring one.

    leaking: how many samples score 1 where every score is 0 or 1, else None; mean: the mean score of a sample. leak:
    leak@k at k, the largest that was asked for and sampled; excess: minus the retain model's, None without one.
    """

    prompt: str
    reference: str
    answer: Answer
    retain: Answer | None
    samples: int
    mean: float
    leaking: int | None
    k: int
    leak: float
    excess: float | None


def worst_prompts(results: Results, model: ModelResult, store_root: Path, most: int) -> list[WorstPrompt] | None:
    """At most `most` prompts of the headline group, by excess leak@k over the retain model (leak@k without one), then
    by the mean score of their samples; only those where any leaks. None where the samples are not in this store.
    """
    curve = model.curve(results.leak_group, results.core_metric)
    if curve is None or not present(store_root / model.stages[_scores_of(results, curve)]).is_dir():
        return None
    retain = next((each for each in results.models if each.role == "retain" and each is not model), None)
    scores = _scores(results, model, store_root, curve)
    values = np.nan_to_num(scores)
    k = min(curve.k[-1], values.shape[1])
    leak_P = prompt_leak(values, np.array([k]))[:, 0]  # a sample without a score counts as none, for the order alone
    excess_P = leak_P - _retain_leak(results, retain, store_root, curve, k, leak_P)
    order = np.lexsort((-values.mean(axis=1), -excess_P))
    chosen = [int(index) for index in order if values[index].max() > 0][:most]
    rows = _best_rows(results, model, store_root, curve, chosen)
    yardstick = _best_rows(results, retain, store_root, curve, chosen) if retain is not None else [None] * len(chosen)
    binary = bool(np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all())
    reads_fact = METRICS[results.core_metric].reads_fact
    worst = []
    for index, row, beside in zip(chosen, rows, yardstick, strict=True):
        assert row is not None
        told = (row["fact"] if reads_fact else None) or row["reference"]
        worst.append(
            WorstPrompt(
                prompt=row["prompt"],
                reference=row["reference"],
                answer=_answer(row, told),
                retain=_answer(beside, told) if beside else None,
                samples=values.shape[1],
                mean=float(values[index].mean()),
                leaking=int(values[index].sum()) if binary else None,
                k=k,
                leak=float(leak_P[index]),
                excess=float(excess_P[index]) if beside else None,
            )
        )
    return worst


def _retain_leak(
    results: Results, retain: ModelResult | None, store_root: Path, curve: Curve, k: int, like_P: np.ndarray
) -> np.ndarray:
    """leak@k of the retain model on each prompt, 0 where there is none or it was not sampled so."""
    if retain is None or not present(store_root / retain.stages.get(_scores_of(results, curve), "-")).is_dir():
        return np.zeros_like(like_P)
    values = np.nan_to_num(_scores(results, retain, store_root, curve))
    same = values.shape[0] == len(like_P) and values.shape[1] >= k
    return prompt_leak(values, np.array([k]))[:, 0] if same else np.zeros_like(like_P)


def leaked_pieces(response: str, told: str) -> Pieces:
    """The response cut around the words it shares with `told`, in order: runs of SPAN_WORDS words or more, or of all of
    `told`; where there is none, the longest run. Letter case and punctuation do not count."""
    found = list(re.finditer(r"\w+", response))
    words, wanted = [match.group().casefold() for match in found], re.findall(r"\w+", told.casefold())
    blocks = [
        each for each in SequenceMatcher(a=words, b=wanted, autojunk=False).get_matching_blocks() if each.size > 0
    ]
    longest = max((each.size for each in blocks), default=0)
    enough = min(SPAN_WORDS, longest)
    pieces: Pieces = []
    end = 0
    for block in (each for each in blocks if each.size >= enough):
        start, stop = found[block.a].start(), found[block.a + block.size - 1].end()
        pieces += [(response[end:start], False), (response[start:stop], True)]
        end = stop
    pieces.append((response[end:], False))
    return [piece for piece in pieces if piece[0]]


def _answer(row: dict[str, Any], told: str) -> Answer:
    leaks = row["score"] > 0
    return Answer(leaked_pieces(row["response"], told) if leaks else [(row["response"], False)], row["score"])


def _scores_of(results: Results, curve: Curve) -> str:
    return f"scores {curve.decoding} {results.core_metric}"


def _scores(results: Results, model: ModelResult, store_root: Path, curve: Curve) -> np.ndarray:
    from engine.stages.score import group_scores

    return group_scores(present(store_root / model.stages[_scores_of(results, curve)]))[results.leak_group].scores


def _best_rows(
    results: Results, model: ModelResult, store_root: Path, curve: Curve, chosen: list[int]
) -> list[dict[str, Any] | None]:
    """The generations' row of the highest-scoring sample of each chosen prompt, with its score; None where the model
    was not sampled so."""
    import pyarrow.compute

    from engine.stages.sample import read_units

    generations = f"generations {curve.decoding}"
    if generations not in model.stages:
        return [None] * len(chosen)
    scores = np.nan_to_num(_scores(results, model, store_root, curve))
    columns = ["group", "prompt", "reference", "fact", "response"]
    table = read_units(present(store_root / model.stages[generations]), columns)
    table = table.filter(pyarrow.compute.equal(table["group"].cast("string"), results.leak_group))
    samples = [int(scores[index].argmax()) for index in chosen]
    rows = table.take(
        np.array([index * scores.shape[1] + sample for index, sample in zip(chosen, samples, strict=True)], int)
    )
    best = zip(chosen, samples, rows.to_pylist(), strict=True)
    return [row | {"score": float(scores[index, sample])} for index, sample, row in best]
