"""Tokens that adaptive sampling saves at equal half-width, on the demo's models, really sampled.

python -m perf.adaptive RUN [--seeds 5] [--many 3000]      with RUN the folder of a finished `leakatk demo`
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet

from benchmarks import BENCHMARKS
from engine.cluster.units import unit_path
from engine.config.experiment import parse_experiment
from engine.evaluation.evaluate import sample_job
from engine.leak.stopping import Rule, rule_cost
from engine.models.source import ModelSource
from engine.reporting.results import read_results
from engine.stages.known_answers import AnswersJob
from engine.stages.sample import SampleJob, read_units
from engine.stages.sample_adaptive import Pilot, sample_on
from engine.stages.score import ScoreJob, group_scores
from engine.store.store import FinishedStage
from perf.report import write

MODELS = ("target", "grad-ascent", "grad-diff", "npo", "simnpo", "npo-control", "simnpo-control", "rule-npo")
GROUP, METRIC, K, HALF_WIDTH, PILOT, MOST = "forget", "exact_fact", 128, 0.02, 32, 2048


def fill(job: Any, units: int, folder: Path) -> Path:
    """The units of a stage, in this process."""
    (folder / "units").mkdir(parents=True)
    for unit in range(units):
        pyarrow.parquet.write_table(job.compute(unit)[0], unit_path(folder / "units", unit))
    return folder


def sampled(job: SampleJob, folder: Path) -> tuple[Path, Path]:
    """Folders of the generations of `job` and of their scores."""
    generations = fill(job, job.units, folder / "generations")
    return generations, fill(ScoreJob(str(generations), job.units, METRIC), job.units, folder / "scores")


def adaptively(job: SampleJob, folder: Path) -> tuple[Any, int]:
    """What adaptive sampling finds, and the tokens of all its samples, the pilot's too."""
    job = dataclasses.replace(job, n=PILOT)
    generations, scores = sampled(job, folder)
    known = AnswersJob(job, METRIC)
    answers = fill(known, known.units, folder / "answers")
    rounds: list[Path] = []

    def run(asked: Any) -> FinishedStage:
        rounds.append(fill(asked, asked.units, folder / f"round{len(rounds)}"))
        return FinishedStage(
            rounds[-1], {"fingerprint": "", "facts": {"tokens": tokens_of(rounds[-1]), "seconds": 0.0}}, False
        )

    found = sample_on(
        Pilot(job, generations, scores, answers, METRIC, {}, (1, 8, 32, K)), GROUP, HALF_WIDTH, 0.95, MOST, run
    )
    return found.leak, tokens_of(generations) + found.tokens


def tokens_of(generations: Path) -> int:
    return int(np.sum(read_units(generations, ["tokens"])["tokens"].to_numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--many", type=int, default=3000)
    args = parser.parse_args()
    results = read_results(args.run)
    experiment = parse_experiment(results.experiment, "the run")
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    rows = []
    for model in (each for each in results.models if each.name in MODELS):
        first = experiment.sampling.decoding[0] if experiment.sampling.decoding else None
        assert first is not None
        job = sample_job(experiment, benchmark, ModelSource(model.stages["model"], model.name), first)
        job = dataclasses.replace(job, probes=tuple(benchmark.group(GROUP)), gpus=0.0)
        rows.append([model.name, *measured(job, args.seeds, args.many)])
        print(*rows[-1], flush=True)
    command = f"leakatk demo --seed 0; python -m perf.adaptive leakatk-store/runs/demo-* --seeds {args.seeds}"
    write(
        "adaptive",
        f"Samples for leak@{K} known to +-{HALF_WIDTH}, on the demo's models",
        f"{command} --many {args.many}",
        f"{len(benchmark.group(GROUP))} forget prompts, exact fact, T = 1, p = 1. Truth: {args.many} samples of every "
        f"prompt. Adaptive: really sequential on the model, pilot {PILOT}, mean of {args.seeds} seeds; its error "
        "is the root mean square of its distance to the truth. Equal: the samples a prompt that give every prompt the "
        "same number and the half-width that adaptive sampling states, from each prompt's chance to leak in the "
        "truth; its tokens by the mean length of a sample. The one pass that finds known answers samples no token.",
        ["model", "truth", "adaptive", "its half-width", "its error", "samples a prompt", "equal", "tokens saved"],
        rows,
    )


def measured(job: SampleJob, seeds: int, many: int) -> list[str]:
    with tempfile.TemporaryDirectory() as scratch:
        generations, scores = sampled(dataclasses.replace(job, n=many, seed=990), Path(scratch) / "many")
        chances = group_scores(scores)[GROUP].scores.mean(axis=1)
        length = tokens_of(generations) / (many * len(job.probes))
        truth = float((1 - (1 - chances) ** K).mean())
        found = [
            adaptively(dataclasses.replace(job, seed=seed), Path(scratch) / f"seed{seed}") for seed in range(seeds)
        ]
    leaks = np.array([leak.leak[-1] for leak, _ in found])
    width = float(np.mean([leak.half_width for leak, _ in found]))
    tokens = float(np.mean([count for _, count in found]))
    equal = equal_samples(chances, width)
    saved = "" if equal is None else f"{equal * len(job.probes) * length / tokens:.1f}x"
    return [
        f"{truth:.4f}",
        f"{leaks.mean():.4f}",
        f"{width:.4f}",
        f"{np.sqrt(((leaks - truth) ** 2).mean()):.4f}",
        f"{np.mean([leak.samples.mean() for leak, _ in found]):.0f}",
        "none" if equal is None else str(equal),
        saved,
    ]


def equal_samples(chances: np.ndarray, half_width: float) -> int | None:
    """The fewest samples of every prompt whose leak@K has the half-width, None where 20,000 do not or any do."""
    if half_width <= 0:
        return K
    low, high = K - 1, 20_000
    while high - low > 1:
        middle = (low + high) // 2
        wide = 1.96 * np.sqrt(rule_cost(chances, K, Rule(middle + 1, middle))[1] / len(chances)) > half_width
        low, high = (middle, high) if wide else (low, middle)
    return high if high < 20_000 else None


if __name__ == "__main__":
    main()
