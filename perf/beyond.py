"""leak@128 of the demo's models predicted three ways from less than 128 samples, against 200 samples drawn outright.

python -m perf.beyond RUN      with RUN the folder of a finished `leakatk demo`
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from benchmarks.base import Example
from engine.cluster.units import read_units
from engine.leak.estimator import leak_at_k
from engine.leak.extrapolation import leak_beyond_n
from engine.leak.importance_weights import reweighted_leak
from engine.models.source import ModelSource
from engine.reporting.results import Results, read_results
from engine.stages.reference import ReferenceJob, answer_logprobs
from engine.stages.score import group_scores
from perf.report import write

K, FEW, MODELS = np.array([128]), 32, ("grad-ascent", "grad-diff", "npo", "simnpo", "npo-control", "simnpo-control")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    args = parser.parse_args()
    results, root = read_results(args.run), args.run.resolve().parents[1]
    target = drawn_from_target(results, root)
    rows = []
    for model in results.models:
        if model.name not in MODELS:
            continue
        scores = group_scores(root / model.stages["scores T1-p1 exact_fact"])["forget"].scores
        truth = float(leak_at_k(scores, K)[0])
        few = scores[:, :FEW]
        fitted = leak_beyond_n(few, K) if few.any() else None  # nothing to fit a model to where nothing leaked
        weighed = reweighted_leak(target["scores"], target["logprob"], wanted(model, root, target), K)
        rows.append(
            [
                model.name,
                f"{truth:.3f}",
                f"{fitted.leak[0]:.3f} [{fitted.low[0]:.3f}, {fitted.high[0]:.3f}]" if fitted else "refused: no leak",
                f"{fitted.leak[0] - truth:+.3f}" if fitted else "",
                f"{weighed.leak[0]:.3f} [{weighed.low[0]:.3f}, {weighed.high[0]:.3f}]",
                f"{weighed.leak[0] - truth:+.3f}",
                weighed.warning or "none",
            ]
        )
    write(
        "beyond",
        "leak@128 without 128 samples, on the demo's models",
        "leakatk demo --seed 0; python -m perf.beyond leakatk-store/runs/demo-*",
        f"{len(target['scores'])} forget prompts, exact fact, T = 1, p = 1. Truth: the unbiased estimate from 200 "
        f"samples. Beta-binomial: fitted to the first {FEW} samples. Importance: no sample of the model at all, 200 "
        "samples of the target model weighed by one teacher-forced pass.",
        ["model", "truth", f"beta-binomial from {FEW}", "error", "importance from target", "error", "its warning"],
        rows,
    )


def drawn_from_target(results: Results, root: Path) -> dict[str, Any]:
    """The target model's samples of the forget prompts: texts, their log-probability there, and their scores."""
    model = next(each for each in results.models if each.role == "target")
    table = read_units(root / model.stages["generations T1-p1"])
    table = table.filter(pyarrow.compute.equal(table["group"].cast("string"), "forget"))
    scores = group_scores(root / model.stages["scores T1-p1 exact_fact"])["forget"].scores
    return {
        "prompts": table["prompt"].to_pylist(),
        "responses": table["response"].to_pylist(),
        "logprob": table["model_logprob"].to_numpy().reshape(scores.shape),
        "scores": scores,
    }


def wanted(model: Any, root: Path, drawn: dict[str, Any]) -> np.ndarray:
    """Log-probability of the target's samples under `model`, each distinct one computed once: [prompts, samples]."""
    pairs = list(zip(drawn["prompts"], drawn["responses"], strict=True))
    distinct = list(dict.fromkeys(pairs))
    examples = tuple(Example(str(index), *pair) for index, pair in enumerate(distinct))
    source = ModelSource(model.stages["model"], model.name)
    found = dict(zip(distinct, answer_logprobs(ReferenceJob(source, examples), False), strict=True))
    return np.array([found[pair] for pair in pairs]).reshape(drawn["scores"].shape)


if __name__ == "__main__":
    main()
