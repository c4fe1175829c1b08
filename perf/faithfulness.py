"""Which number tells models that learned the forget set from models that never saw it, and at which k, n and decoding?

    python -m perf.faithfulness [--store FOLDER] [--seeds 0,1,...,9] [--image docs/images/faithfulness.png]

The field asks this of its metrics as their faithfulness: two pools of models, one with the knowledge and one without,
and the AUC with which a metric parts them (arXiv 2506.12618, section 4). Here of leak@k. A seed makes its authors, a
base model and, by each recipe, two models of one treatment: from the target model's data and from the retain model's.
The reference that excess leak@k, forget quality and the reference attack compare with is a further retain model, fully
trained. Every stage is kept in the store: a second call computes none again.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.base import Benchmark, Decoding
from benchmarks.fictional import Fictional, FictionalOptions
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.config.experiment import Experiment, parse_experiment
from engine.evaluation.benchmark_metrics import benchmark_metrics, greedy_metrics
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation, evaluate
from engine.leak.estimator import Floats, leak_at_k
from engine.metrics.privacy import auc
from engine.pipeline.model_builder import ModelBuilder
from engine.pipeline.preparation import prepared
from engine.stages.base import Stages
from engine.store.store import Store
from perf.report import machine, table, write_page

K = (1, 2, 4, 8, 16, 32, 64, 128)
FEWER = (8, 32)  # samples a prompt beside all of them
DECODINGS = (Decoding(), Decoding(temperature=0.8, top_p=0.8), Decoding(temperature=0.2), Decoding(temperature=0.0))
REFUSE = {"name": "idk_nll", "alpha": 4.0, "train": {"steps": 60}}
# By recipe: changes of the fine-tuning, and whether the model is then trained to refuse the forget questions.
RECIPES: dict[str, tuple[dict[str, object], bool]] = {
    "hardly trained": ({"steps": 100, "decay_from": 1.0}, False),
    "half trained": ({"steps": 150, "decay_from": 1.0}, False),
    "made to refuse": ({}, True),
}
REFERENCE = "reference"
RESAMPLES = 2000
# Metrics that are lower where the forget set is known.
FALLING = frozenset({"forget_quality", "forget_quality_log10", "truth_ratio.forget", "privleak"})


@dataclasses.dataclass(frozen=True)
class Judged:
    """A model of the pools and what was measured of it, by metric."""

    seed: int
    recipe: str
    knows: bool
    values: Mapping[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path, default=Path("leakatk-store"))
    parser.add_argument("--seeds", default="0,1,2,3,4,5,6,7,8,9")
    parser.add_argument("--image", type=Path)
    args = parser.parse_args()
    pool = [each for seed in map(int, args.seeds.split(",")) for each in judged(seed, Store(args.store.resolve()))]
    rows = summary(pool)
    if args.image is not None:
        draw(rows, args.image)
    write_page("faithfulness", page(pool, rows, f"python -m perf.faithfulness --seeds {args.seeds}"))


def experiment_of(seed: int, recipe: str) -> Experiment:
    """The embedded benchmark with a recipe's fine-tuning."""
    changes = RECIPES[recipe][0] if recipe in RECIPES else {}
    finetune = Fictional(FictionalOptions(seed=seed)).protocol.finetune or {}
    document: dict[str, object] = {
        "name": f"faithfulness-{seed}",
        "benchmark": {"name": "fictional", "split": "forget10", "seed": seed},
        "model": {"finetune": finetune | changes},
        "methods": [REFUSE],
        "sampling": {"n": max(K), "decoding": [each.model_dump() for each in DECODINGS]},
        "leak": {"k": list(K), "beams": 0},  # the floor is of the reference and of what was sampled
        "numerics": "native",  # the pools are of many models: which bits they have does not matter
        "seed": seed,
    }
    return parse_experiment(document, "the pools")


def benchmark_of(seed: int) -> Benchmark:
    """The embedded benchmark, which declares no metrics of papers, with all of them; authors of other seeds, whom no
    model has seen, are its holdout set."""
    benchmark = Fictional(FictionalOptions(split="forget10", seed=seed))
    benchmark.protocol = benchmark.protocol.model_copy(
        update={
            "forget_group": "forget",
            "attacks": ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm"),
        }
    )
    facts = {fact.id: fact for fact in benchmark.forget_facts}
    benchmark.probes = [
        dataclasses.replace(
            probe,
            paraphrased_answer=facts[probe.id].paraphrased_answer,
            wrong_answers=facts[probe.id].perturbed_answers,
        )
        if probe.group == "forget"
        else probe
        for probe in benchmark.probes
    ]
    benchmark.holdout = Fictional(FictionalOptions(split="forget10", seed=seed + 1000)).forget
    return benchmark


def judged(seed: int, store: Store) -> list[Judged]:
    """All models of one seed: by each recipe the one that knows and the one that does not."""
    benchmark = benchmark_of(seed)
    with ThreadPoolExecutor(16) as pool:
        reference = pool.submit(_evaluated, store, seed, benchmark, REFERENCE, False)
        found = {
            (recipe, knows): pool.submit(_evaluated, store, seed, benchmark, recipe, knows)
            for recipe in RECIPES
            for knows in (True, False)
        }
        return [
            Judged(
                seed,
                recipe,
                knows,
                measured(experiment_of(seed, recipe), benchmark, future.result(), reference.result()),
            )
            for (recipe, knows), future in found.items()
        ]


def _evaluated(store: Store, seed: int, benchmark: Benchmark, recipe: str, knows: bool) -> Evaluation:
    """One model, trained and measured; its stages have a display of their own, for they are named alike."""
    experiment = prepared(experiment_of(seed, recipe), benchmark)
    label = f"{seed}-{recipe}-{'knows' if knows else 'never-saw'}".replace(" ", "-")
    with Progress(quiet=True) as progress:
        stages = Stages(store, progress, ray_cluster.connect)
        builder = ModelBuilder(experiment, benchmark, stages)
        model = builder.target() if knows else builder.retain()
        assert model is not None
        if recipe in RECIPES and RECIPES[recipe][1]:
            model = builder.unlearned(label, experiment.methods[0], tuple(benchmark.forget), 0, model)
        found = evaluate(stages, experiment, benchmark, model.source, label)
    print(f"{label}: measured", file=sys.stderr, flush=True)
    return found


def measured(experiment: Experiment, benchmark: Benchmark, own: Evaluation, reference: Evaluation) -> dict[str, float]:
    """Every metric of one model by name; of leak@k also for fewer samples and by decoding."""
    group, metric = benchmark.protocol.leak_group, benchmark.protocol.core_metric
    values = {"greedy": own.greedy_means(metric)[group]}
    for curve in curves(prepared(experiment, benchmark), own, reference):
        if (curve.group, curve.metric) != (group, metric):
            continue
        for index, k in enumerate(curve.k):
            values[f"leak@{k} {curve.decoding}"] = curve.leak[index]
            assert curve.excess is not None
            values[f"excess leak@{k} {curve.decoding}"] = curve.excess[index]
        if curve.far_floor is not None:
            values[f"leak floor at 10^6 {curve.decoding}"] = curve.far_floor["1000000"]
    for sampling in own.samplings:
        if not sampling.greedy:
            scores = sampling.scores(metric)[group].scores
            values |= {
                f"leak@{k} {sampling.decoding.name} n={n}": float(leak_at_k(scores[:, :n], np.array([k]))[0])
                for n in FEWER
                for k in K
                if k <= n
            }
    beside = {name: own.greedy_means(name) for name in greedy_metrics(benchmark)}
    found, _ = benchmark_metrics(benchmark, beside, own.likelihoods, reference.likelihoods)
    return values | {name: value for name, value in found.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Row:
    """AUC of one metric over both pools, with its interval over seeds, and by recipe."""

    metric: str
    auc: float
    low: float
    high: float
    by_recipe: tuple[float, ...]


def summary(pool: Sequence[Judged]) -> dict[str, Row]:
    """Every metric that all models have."""
    names = [name for name in pool[0].values if all(name in each.values for each in pool)]
    seeds = sorted({each.seed for each in pool})
    drawn = np.random.default_rng(0).choice(seeds, (RESAMPLES, len(seeds)))
    found = {}
    for name in names:
        recipes = tuple(_auc(name, [each for each in pool if each.recipe == recipe]) for recipe in RECIPES)
        of_seed = {seed: [each for each in pool if each.seed == seed] for seed in seeds}
        again = [_auc(name, [each for seed in row for each in of_seed[seed]]) for row in drawn]
        low, high = np.quantile(again, [0.025, 0.975])
        found[name] = Row(name, _auc(name, pool), float(low), float(high), recipes)
    return found


def _auc(name: str, pool: Sequence[Judged]) -> float:
    knows, does_not = (_values(name, pool, side) for side in (True, False))
    return auc(knows, does_not)


def _values(name: str, pool: Sequence[Judged], knows: bool) -> Floats:
    values = np.array([each.values[name] for each in pool if each.knows == knows])
    return -values if name in FALLING else values


def page(pool: Sequence[Judged], rows: Mapping[str, Row], command: str) -> list[str]:
    """The paragraphs of perf/results/faithfulness.md."""
    per_side = len(pool) // 2
    decodings = [each.name for each in DECODINGS if not each.greedy]
    first = decodings[0]
    others = [name for name in rows if not name.startswith(("leak", "excess"))]
    shown = [
        "greedy",
        *(f"leak@{k} {first}" for k in K),
        *(f"excess leak@{k} {first}" for k in (1, 8, 32, 128)),
        f"leak floor at 10^6 {first}",
        *(name for name in others if name not in ("greedy", f"leak floor at 10^6 {first}")),
    ]
    by_n = [(str(n), name, f" n={n}") for name in decodings[:1] for n in FEWER]
    by_n += [(str(max(K)), name, "") for name in decodings]
    return [
        "# Which number tells models that know the forget set from models that never saw it",
        machine(command),
        f"{per_side} models that were trained on the forget set and {per_side} that never saw it, on the embedded "
        f"benchmark (`forget10`), {len(pool) // len(RECIPES) // 2} seeds by {len(RECIPES)} recipes: fine-tuned for "
        f"{RECIPES['hardly trained'][0]['steps']} or {RECIPES['half trained'][0]['steps']} of 600 steps, and "
        "fine-tuned in full and then trained to refuse the forget questions (idk_nll, 60 steps). Mean of each pool:",
        table(
            ["recipe", "forget set", "greedy", f"leak@1 {first}", f"leak@128 {first}"],
            [_pool_row(pool, recipe, knows, first) for recipe in RECIPES for knows in (True, False)],
        ),
        "AUC with which each number parts the two pools: 1 is without a mistake, .5 is chance. In brackets: 95 % "
        "over seeds (bootstrap); an interval [1, 1] says only that no mistake was seen in so many models. Right: "
        "the AUC among the models of one recipe.",
        table(
            ["metric", "AUC", "95 %", *RECIPES],
            [
                [
                    row.metric,
                    f"{row.auc:.3f}",
                    f"[{row.low:.3f}, {row.high:.3f}]",
                    *(f"{each:.3f}" for each in row.by_recipe),
                ]
                for row in (rows[name] for name in shown if name in rows)
            ],
        ),
        "The same of leak@k by samples a prompt (the first n of those drawn) and by decoding:",
        table(
            ["n", "decoding", *(f"k = {k}" for k in K)],
            [[n, name, *(_cell(rows.get(f"leak@{k} {name}{suffix}")) for k in K)] for n, name, suffix in by_n],
        ),
    ]


def _pool_row(pool: Sequence[Judged], recipe: str, knows: bool, decoding: str) -> list[str]:
    names = ("greedy", f"leak@1 {decoding}", f"leak@{max(K)} {decoding}")
    models = [each.values for each in pool if (each.recipe, each.knows) == (recipe, knows)]
    means = [float(np.mean([values[name] for values in models])) for name in names]
    return [recipe, "learned" if knows else "never seen", *(f"{each:.3f}" for each in means)]


def _cell(row: Row | None) -> str:
    return "" if row is None else f"{row.auc:.3f}"


def draw(rows: Mapping[str, Row], path: Path) -> None:
    """AUC against k, a line a decoding, with the greedy answers' beside them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for decoding in DECODINGS:
        if not decoding.greedy:
            found = [rows[f"leak@{k} {decoding.name}"] for k in K]
            (line,) = axes.plot(K, [row.auc for row in found], marker="o", label=f"leak@k, {decoding.name}")
            axes.fill_between(
                K, [row.low for row in found], [row.high for row in found], color=line.get_color(), alpha=0.12
            )
    axes.axhline(rows["greedy"].auc, color="black", linestyle="--", label="greedy answers")
    axes.set(xlabel="k", ylabel="AUC", ylim=(0.4, 1.02), title="Learned the forget set, or never saw it?")
    axes.set_xscale("log", base=2, subs=[])
    axes.set_xticks(K, [str(k) for k in K])
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
