"""Scoring speed: ROUGE-L of the demo's target model's own samples, against the rouge-score library.

python -m perf.score [--samples 200]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from rouge_score.rouge_scorer import RougeScorer

from benchmarks import BENCHMARKS
from benchmarks.base import Decoding
from engine.metrics.rouge import rouge_l
from engine.models.source import ModelSource
from engine.stages.answer_texts import texts
from engine.stages.sample import SampleJob, sample_probes
from perf.models import SEED, demo_models
from perf.report import median_ratio, side_by_side, write


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    probes = tuple(BENCHMARKS["fictional"].load(seed=SEED).group("forget"))
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, tokenizer) in demo_models(Path(folder)).items():
            job = SampleJob(ModelSource("", ""), probes, Decoding(), args.samples, 24)
            responses, references = [], []
            for probe, samples in zip(probes, sample_probes(model, tokenizer, probes, job), strict=True):
                responses += [text or "" for text in texts(samples, tokenizer, [()] * len(samples))]
                references += [probe.reference] * len(samples)
            rows.append([name, f"{len(set(responses)):,} of {len(responses):,}", *compare(responses, references)])
    write(
        "score",
        "Scoring: ROUGE-L, ratio to rouge-score",
        f"python -m perf.score --samples {args.samples}",
        f"{len(probes)} forget prompts x {args.samples} samples of the demo's models at T = 1, p = 1, with stemmer; "
        "one thread; medians of 5 runs in turns; values checked to be bit-equal.",
        ["model", "distinct responses", "rouge-score, pairs/s", "ours, pairs/s", "ratio"],
        rows,
    )


def compare(responses: list[str], references: list[str]) -> list[str]:
    """Pairs a second of both and their ratio."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def library() -> list[float]:
        return [scorer.score(b, a)["rougeL"].recall for a, b in zip(responses, references, strict=True)]

    assert np.array_equal(rouge_l(responses, references).recall, library())
    theirs, ours = side_by_side([library, lambda: rouge_l(responses, references)])
    speeds = [f"{len(responses) / statistics.median(seconds):,.0f}" for seconds in (theirs, ours)]
    return [*speeds, f"{median_ratio(theirs, ours):.0f}x"]


if __name__ == "__main__":
    main()
