"""Which number, taken before an attack, orders unlearned models as leak@k after the attack does.

    python -m perf.foretell [--store FOLDER] [--seeds 0,1,2] [--methods npo,rmu] [--samples 64] [--write]

Each seed is one experiment in the store: the methods of docs/methods.md on the embedded benchmark, each of them
relearnt and rounded to 4 bits. A second call finds its stages finished. With --write the page goes to
perf/results/foretell.md, its table into docs/robustness.md.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
from scipy.stats import rankdata

from benchmarks.base import Example
from benchmarks.fictional import Fictional
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.config.experiment import Experiment, parse_experiment
from engine.config.sections import MethodSection
from engine.errors import DivergedError
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation, evaluate
from engine.metrics import memorization, privacy
from engine.pipeline.model_builder import BuiltModel, ModelBuilder
from engine.pipeline.preparation import prepared
from engine.reporting.records import Curve
from engine.robustness.base import Attack, ModelAttack, Setting
from engine.robustness.reading import attacks_of
from engine.stages.base import Stages
from engine.stages.likelihood import LikelihoodJob, Likelihoods, read_likelihoods
from engine.store.store import Store
from perf.attacks import DOCS
from perf.methods import experiment_of
from perf.report import insert, machine, table, write_page

ATTACKS = ({"name": "relearn", "share": 0.1, "steps": 50}, {"name": "quantize", "scheme": "nf4"})
OTHER_SEED = 1000  # whose authors no model has seen: the non-members of membership inference
FAR = "1000000"
RETAIN, GREEDY = "retain", "greedy"
BEAMS = 4
THREADS = 8  # they only wait for Ray
DRAWS = 2000
TEXT = """\
Which number, taken before an attack, orders unlearned models as leak@{k} after it does: Spearman's rho, the mean over
{seeds} seeds of the embedded benchmark (each makes other authors and other models), over {models} unlearned models a
seed, and how much more that is than the greedy answers' rho. In brackets 95 % of {draws} bootstrap draws of methods and
seeds. 1: the same order; 0: none.

Models: {names}; with the settings of docs/methods.md, `numerics: native`. {n} samples of each of 72 questions, exact
fact. Floor: the least that leaks at k = 10^6, from exact probabilities (beams: {beams}). Extraction strength, exact
memorization and membership inference (AUC against questions about authors whom no model has seen): of the forget
answers, teacher-forced."""


@dataclasses.dataclass(frozen=True)
class Model:
    """One model of one seed, unlearned or the retain model. before: numbers by name; after: leak@k at the largest k by
    attack."""

    seed: int
    name: str
    before: Mapping[str, float]
    after: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Order:
    """How well a number orders models: Spearman's rho, mean over seeds, with its interval."""

    rho: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True)
class Seed:
    """What all models of one seed share: the experiment as it is run, the embedded benchmark, and it with its leak
    group alone, which is all that is asked here."""

    experiment: Experiment
    benchmark: Fictional
    asked: Fictional
    stages: Stages
    target: BuiltModel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("leakatk-store"))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--methods", help="labels of these alone, with commas")
    parser.add_argument("--samples", type=int, default=64, help="a prompt")
    parser.add_argument("--write", action="store_true", help="write perf/results/foretell.md and the docs' table")
    args = parser.parse_args()
    store, found = Store(args.store.resolve()), []
    for seed in map(int, args.seeds.split(",")):
        found += models_of(seed, experiment(seed, args.methods, args.samples), store)
    options = re.sub(r"--store[ =]\S+ ?", "", " ".join(sys.argv[1:]))
    paragraphs = page(found, args.samples, f"python -m perf.foretell {options}".strip())
    if not args.write:
        print("\n\n".join(paragraphs))
        return
    write_page("foretell", paragraphs)
    insert(DOCS / "robustness.md", "foretell", "\n\n".join(paragraphs[1:]))


def experiment(seed: int, methods: str | None, samples: int) -> Experiment:
    """The experiment of docs/methods.md with attacks, fewer samples and a narrower search for likely answers."""
    whole = experiment_of(seed)
    chosen = [each for each in whole.methods if methods is None or whole.label(each) in methods.split(",")]
    chosen = [each for each in chosen if each.name != "dpo"]  # refusals are its other answers here: it is idk_dpo
    powers = [2**power for power in range(samples.bit_length()) if 2**power <= samples]
    # What is not set stays so: the benchmark's protocol fills it in.
    document = whole.model_dump(mode="json", exclude_unset=True) | {
        "name": f"foretell-{seed}",
        "methods": [each.model_dump(mode="json", exclude_unset=True) for each in chosen],
        "attacks": [dict(each) for each in ATTACKS],
        "sampling": {"n": samples},
        "leak": {"k": powers, "beams": BEAMS},
        "metrics": ["exact_fact"],
    }
    return parse_experiment(document, "perf.foretell")


def models_of(seed: int, experiment: Experiment, store: Store) -> list[Model]:
    """The retain model and every unlearned model of a seed, RULE's control among them, with all numbers; one that
    diverges is named and left out."""
    benchmark = Fictional.load(split="forget10", seed=seed)
    experiment = prepared(experiment, benchmark)
    asked = copy.copy(benchmark)
    asked.probes = benchmark.group(benchmark.protocol.leak_group)
    with Progress() as progress, ThreadPoolExecutor(THREADS) as pool:
        stages = Stages(store, progress, lambda: ray_cluster.connect(False))
        builder = ModelBuilder(experiment, benchmark, stages)
        shared = Seed(experiment, benchmark, asked, stages, builder.target())
        retain = pool.submit(lambda: [measured(shared, cast(BuiltModel, builder.retain()), seed)])
        futures = [retain] + [
            pool.submit(_built_and_measured, shared, builder, section, seed) for section in experiment.methods
        ]
        return [model for future in futures for model in future.result()]


def _built_and_measured(shared: Seed, builder: ModelBuilder, section: MethodSection, seed: int) -> list[Model]:
    label, forget = shared.experiment.label(section), tuple(shared.benchmark.forget)
    try:
        if section.name != "rule":
            return [measured(shared, builder.unlearned(label, section, forget, 0, shared.target), seed)]
        ruled = builder.ruled(label, section, forget, 0, shared.target, builder.retain())
        control = builder.control("npo-control", label, section, forget, 0, shared.target, ruled)
        return [measured(shared, each, seed) for each in (ruled, control)]
    except DivergedError as error:
        print(f"seed {seed}: {label} failed: {error}", file=sys.stderr)
        return []


def measured(shared: Seed, model: BuiltModel, seed: int) -> Model:
    """All numbers of one model before attacks, and leak@k after each."""
    evaluation = evaluate(shared.stages, shared.experiment, shared.asked, model.source, model.name)
    curve = _curve(shared, evaluation)
    before = {GREEDY: evaluation.greedy_means("exact_fact")[curve.group]}
    before |= {f"leak@{k}": leak for k, leak in zip(curve.k, curve.leak, strict=True)}
    before |= {"floor at k = 10^6": (curve.far_floor or {})[FAR]}
    before |= teacher_forced(shared, model, strangers(shared.benchmark, seed + OTHER_SEED))
    after = {
        attack.title: _leak_after(shared, model, attack) for attack in attacks_of(shared.experiment, shared.benchmark)
    }
    return Model(seed, model.name, before, after)


def _leak_after(shared: Seed, model: BuiltModel, attack: Attack) -> float:
    """leak@k at the largest k after an attack on weights, of what it leaves to judge."""
    assert isinstance(attack, ModelAttack)
    label = f"{model.name} {attack.title}"
    setting = Setting(shared.stages, shared.experiment, shared.benchmark, shared.target.source)
    judged = copy.copy(shared.asked)
    judged.probes = attack.judged(shared.asked)
    source = attack.attacked(setting, label, model.source) or model.source
    return _curve(shared, evaluate(shared.stages, shared.experiment, judged, source, label, bounds=False)).leak[-1]


def _curve(shared: Seed, evaluation: Evaluation) -> Curve:
    (curve,) = curves(shared.experiment, evaluation, None)
    return curve


def strangers(own: Fictional, seed: int) -> list[Example]:
    """The forget set of another seed, without authors whose names this one has as well."""
    other = Fictional.load(split="forget10", seed=seed)
    known = {example.question for example in (*own.forget, *own.retain)}
    taken = {fact.author for fact in other.forget_facts if fact.question in known}
    return [
        Example(f"stranger {each.id}", each.question, each.answer)
        for each in other.forget_facts
        if each.author not in taken
    ]


def teacher_forced(shared: Seed, model: BuiltModel, others: Sequence[Example]) -> dict[str, float]:
    """Extraction strength, exact memorization, and the AUC of membership inference by loss and by Min-40%."""
    members = shared.benchmark.forget
    examples = (*members, *others)
    stage = shared.stages.run(model.name, LikelihoodJob(model.source, examples))
    read = read_likelihoods(stage.path, examples)
    rows = read.of([(each.question, each.answer) for each in members])
    right = [[row.argmax for row in rows], [row.token_ids for row in rows]]
    loss, lowest = ([score(read, each) for each in (members, others)] for score in (_loss, _min_k))
    return {
        "extraction strength": memorization.extraction_strength(*right),
        "exact memorization": memorization.exact_memorization(*right),
        "membership by loss": privacy.auc(*loss),
        "membership by Min-40%": privacy.auc(*lowest),
    }


def _loss(read: Likelihoods, examples: Sequence[Example]) -> Any:
    return privacy.loss_score(read.nll([(each.question, each.answer) for each in examples]))


def _min_k(read: Likelihoods, examples: Sequence[Example]) -> Any:
    return privacy.min_k_score([row.logprobs for row in read.of([(each.question, each.answer) for each in examples])])


def order(models: Sequence[Model], number: str, attack: str, less: str | None = None, draws: int = DRAWS) -> Order:
    """Spearman's rho of a number before and leak@k after an attack: the mean over seeds, and 95 % of bootstrap draws of
    seeds and of methods (the same methods in every seed of a draw). less: another number, whose rho is taken off, that
    of the same draw."""
    seeds, names = (list(dict.fromkeys(getattr(each, field) for each in models)) for field in ("seed", "name"))
    numbers = [number] if less is None else [number, less]
    pairs = np.full((len(numbers), len(seeds), len(names), 2), np.nan)
    for place, each_number in enumerate(numbers):
        for each in models:
            pair = each.before[each_number], each.after[attack]
            pairs[place, seeds.index(each.seed), names.index(each.name)] = pair
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        chosen = pairs[:, rng.integers(len(seeds), size=len(seeds))]
        drawn.append(_rho(chosen[:, :, rng.integers(len(names), size=len(names))]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Order(_rho(pairs), float(low), float(high))


def _rho(pairs: np.ndarray) -> float:
    """Mean rho of the first number less that of the others; pairs [numbers, seeds, models, 2]."""
    first, *others = map(_mean_rho, pairs)
    return first - sum(others)


def _mean_rho(pairs: np.ndarray) -> float:
    """Mean over seeds of Spearman's rho; pairs [seeds, models, 2], NaN for a model that a seed lacks."""
    return float(np.mean([spearman(*each[~np.isnan(each).any(axis=1)].T) for each in pairs]))


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """The correlation of ranks, ties at their mean rank; 0 where one of the two is the same for all."""
    ranks = rankdata(one), rankdata(other)
    if any(len(each) == 0 or np.ptp(each) == 0 for each in ranks):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def page(models: Sequence[Model], samples: int, command: str) -> list[str]:
    """The page: what was done, and a row a number."""
    unlearned = [each for each in models if each.name != RETAIN]
    attacks, numbers = list(models[0].after), list(models[0].before)
    rows = [
        [number, *(_text(order(unlearned, number, attack, less)) for attack in attacks for less in (None, GREEDY))]
        for number in numbers
    ]
    names = list(dict.fromkeys(each.name for each in unlearned))
    k = 2 ** (samples.bit_length() - 1)
    text = TEXT.format(
        k=k,
        seeds=len({each.seed for each in models}),
        models=len(names),
        draws=DRAWS,
        names=", ".join(names),
        n=samples,
        beams=BEAMS,
    )
    header = [
        "number before",
        *(each for attack in attacks for each in (f"leak@{k} after {attack}", "more than greedy's")),
    ]
    title = f"leak@{k} of every model, before and after: the median of the seeds, the lowest and highest in brackets."
    found = table(["model", GREEDY, "no attack", *attacks], _rows(models, f"leak@{k}", attacks))
    return ["# What foretells leakage after an attack", machine(command), text, table(header, rows), title, found]


def _rows(models: Sequence[Model], number: str, attacks: Sequence[str]) -> list[list[str]]:
    """A row a model, by rising leakage after the first attack."""
    by_name: dict[str, list[Model]] = {}
    for each in models:
        by_name.setdefault(each.name, []).append(each)
    rows = []
    for name in sorted(by_name, key=lambda name: statistics.median(each.after[attacks[0]] for each in by_name[name])):
        before = [[each.before[column] for each in by_name[name]] for column in (GREEDY, number)]
        after = [[each.after[attack] for each in by_name[name]] for attack in attacks]
        rows.append([name, *map(_spread, (*before, *after))])
    return rows


def _text(found: Order) -> str:
    return f"{found.rho:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
