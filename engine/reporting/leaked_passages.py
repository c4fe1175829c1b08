"""What leaked, in words: the prompts that leak most, their worst sample with the leaked words marked, and the retain
model's.

Results and the store come in; plain records come out. Knows nothing of HTML: whoever shows the texts escapes them.
"""

from __future__ import annotations

import dataclasses
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from engine.leak.estimator import Floats, prompt_leak
from engine.metrics import METRICS
from engine.metrics.words import word_spans
from engine.reporting.records import Curve
from engine.reporting.results import ModelResult, Results, generations_stage, scores_stage
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
    leak@k at k, the experiment's largest that was sampled; excess: minus the retain model's, None without one.
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
    curve = model.find_curve(results.leak_group, results.core_metric)
    if curve is None or not _has_scores(results, model, store_root, curve):
        return None
    retain = results.retain if results.retain is not model else None
    scores = _scores(results, model, store_root, curve)
    values = np.nan_to_num(scores)
    k = min(curve.k[-1], values.shape[1])
    leak_P = prompt_leak(values, np.array([k]))[:, 0]  # a sample without a score counts as none, for the order alone
    excess_P = leak_P - _retain_leak(results, retain, store_root, curve, k, leak_P)
    order = np.lexsort((-values.mean(axis=1), -excess_P))
    chosen = [int(index) for index in order if values[index].max() > 0][:most]
    own = _best_samples(results, model, store_root, curve, chosen)
    retains = _best_samples(results, retain, store_root, curve, chosen) if retain is not None else {}
    binary = bool(np.isin(scores[~np.isnan(scores)], (0.0, 1.0)).all())
    worst = []
    for index in chosen:
        sample, beside = own[index], retains.get(index)
        secret = METRICS[results.core_metric].truth(sample.reference, sample.fact)
        worst.append(
            WorstPrompt(
                prompt=sample.prompt,
                reference=sample.reference,
                answer=_answer(sample, secret),
                retain=_answer(beside, secret) if beside else None,
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
    results: Results, retain: ModelResult | None, store_root: Path, curve: Curve, k: int, like_P: Floats
) -> Floats:
    """leak@k of the retain model on each prompt, 0 where there is none or it was not sampled so."""
    if retain is None or not _has_scores(results, retain, store_root, curve):
        return np.zeros_like(like_P)
    values = np.nan_to_num(_scores(results, retain, store_root, curve))
    same = values.shape[0] == len(like_P) and values.shape[1] >= k
    return prompt_leak(values, np.array([k]))[:, 0] if same else np.zeros_like(like_P)


def leaked_pieces(response: str, secret: str) -> Pieces:
    """The response cut around the words that it shares, in order, with `secret`, what was to be forgotten.

    Runs of SPAN_WORDS words or more count, or of all of `secret`; where there is none, the longest run. Letter case and
    punctuation do not count.
    """
    spans = list(word_spans(response))
    words, wanted = [word for _, _, word in spans], [word for _, _, word in word_spans(secret)]
    blocks = [
        block for block in SequenceMatcher(a=words, b=wanted, autojunk=False).get_matching_blocks() if block.size > 0
    ]
    longest = max((block.size for block in blocks), default=0)
    enough = min(SPAN_WORDS, longest)
    pieces: Pieces = []
    end = 0
    for block in (other for other in blocks if other.size >= enough):
        start, stop = spans[block.a][0], spans[block.a + block.size - 1][1]
        pieces += [(response[end:start], False), (response[start:stop], True)]
        end = stop
    pieces.append((response[end:], False))
    return [piece for piece in pieces if piece[0]]


@dataclasses.dataclass(frozen=True)
class _Sample:
    """One sample with its prompt, what it is compared with, and its score in [0, 1]."""

    prompt: str
    reference: str
    fact: str | None
    response: str
    score: float


def _answer(sample: _Sample, secret: str) -> Answer:
    pieces = leaked_pieces(sample.response, secret) if sample.score > 0 else [(sample.response, False)]
    return Answer(pieces, sample.score)


def _has_scores(results: Results, model: ModelResult, store_root: Path, curve: Curve) -> bool:
    """Whether the scores that the curve was computed from are in this store, for this model."""
    folder = model.stages.get(scores_stage(curve.decoding, results.core_metric))
    return folder is not None and present(store_root / folder).is_dir()


def _scores(results: Results, model: ModelResult, store_root: Path, curve: Curve) -> Floats:
    from engine.stages.score import group_scores

    folder = present(store_root / model.stages[scores_stage(curve.decoding, results.core_metric)])
    return group_scores(folder)[results.leak_group].scores


def _best_samples(
    results: Results, model: ModelResult, store_root: Path, curve: Curve, prompts: list[int]
) -> dict[int, _Sample]:
    """The highest-scoring sample of each of the prompts, by the prompt's index; empty where the model was not sampled
    under this decoding."""
    import pyarrow.compute

    from engine.cluster.units import read_units

    generations = generations_stage(curve.decoding)
    if generations not in model.stages:
        return {}
    scores = np.nan_to_num(_scores(results, model, store_root, curve))
    columns = ["group", "prompt", "reference", "fact", "response"]
    table = read_units(present(store_root / model.stages[generations]), columns)
    table = table.filter(pyarrow.compute.equal(table["group"].cast("string"), results.leak_group)).drop(["group"])
    best = {prompt: int(scores[prompt].argmax()) for prompt in prompts}
    rows = table.take(np.array([prompt * scores.shape[1] + sample for prompt, sample in best.items()], int))
    return {
        prompt: _Sample(**row, score=float(scores[prompt, sample]))
        for (prompt, sample), row in zip(best.items(), rows.to_pylist(), strict=True)
    }
