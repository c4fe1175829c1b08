"""Hyperparameter search on a leak@k objective with Ray Tune: suggest, unlearn, look, stop what cannot win, report.

An experiment and a Space come in; a Search comes out: every trial, the winner, and the experiment that reruns it alone.
Killed, the same search goes on: finished trials are kept, running ones find their finished stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS
from engine import cluster
from engine.errors import UserError
from engine.experiment import Experiment, parse_experiment
from engine.maker import Maker
from engine.pipeline import experiment_fingerprint, prepared
from engine.progress import Progress
from engine.spaces import Space
from engine.stages import Stages
from engine.store import Store, fingerprint
from engine.trial import Setting, _greedy, failure, trial

TRIAL_CPU = 0.01  # a trial only waits for its stages


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point and the last look at it (engine/trial.py says what each number is)."""

    id: str
    values: dict[str, Any]
    seen: dict[str, Any]

    @property
    def won(self) -> bool:
        """Whether it was sampled in full and keeps its utility."""
        return bool(self.seen["full"] and self.seen["feasible"])

    @property
    def state(self) -> str:
        if self.seen["failed"]:
            return "failed"
        if not self.seen["feasible"]:
            return "utility too low"
        return "full" if self.seen["full"] else f"stopped at n = {self.seen['n']}"


@dataclasses.dataclass(frozen=True)
class Search:
    """A finished search. least_utility: what a trial had to keep; seconds: of this call; folder: where it is kept."""

    trials: list[Trial]
    setting: Setting
    folder: Path
    seconds: float

    @property
    def best(self) -> Trial | None:
        """The feasible trial, sampled in full, with the least leakage on the prompts that decide."""
        return min((each for each in self.trials if each.won), key=lambda each: each.seen["leak"], default=None)

    @property
    def tokens(self) -> int:
        return sum(each.seen["tokens"] for each in self.trials)


def search(experiment: Experiment, space: Space, store: Store, quiet: bool = False) -> Search:
    """Search, or go on with a search that was cut off. UserError where the cluster is too small for one trial."""
    clock = time.monotonic()
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    experiment = prepared(experiment, benchmark)
    identity = fingerprint([experiment_fingerprint(experiment), space.model_dump(mode="json")])
    folder = store.root / "tune" / f"{experiment.name}-{space.method}-{identity[:8]}"
    cluster.connect(distributed_training=True)
    with Progress(quiet) as progress:
        stages = Stages(store, progress, experiment.sampling.workers, lambda: None)
        setting = Setting(
            experiment,
            space,
            str(store.root),
            0.0,
            space.objective.group or benchmark.protocol.leak_group,
            space.objective.metric or benchmark.protocol.core_metric,
        )
        if not benchmark.group(setting.group):
            groups = ", ".join(dict.fromkeys(probe.group for probe in benchmark.probes))
            raise UserError(f"objective.group: no probes {setting.group!r}; benchmark {benchmark.name} has {groups}")
        target = Maker(experiment, benchmark, stages).target()
        utility = _greedy(setting, stages, benchmark, target.source)[1]
        setting = dataclasses.replace(setting, least_utility=space.utility * utility)
        trials = _tuned(setting, folder, progress)
    return Search(trials, setting, folder, round(time.monotonic() - clock, 1))


def best_experiment(found: Search) -> Experiment | None:
    """The experiment that reruns the winner alone: same stages, same numbers."""
    if found.best is None:
        return None
    experiment, section = found.setting.experiment, found.setting.space.section(found.best.values)
    document = experiment.model_dump(mode="json") | {
        "name": f"{experiment.name}-best",
        "methods": [section.model_dump(mode="json", exclude_unset=True)],
    }
    return parse_experiment(document, "the winner")


def concurrent_trials(space: Space, experiment: Experiment) -> int:
    """Trials at once: as many as the cluster has room for with their training workers. UserError where it has none."""
    cpus, gpus = cluster.resources()
    workers = experiment.train.workers
    overhead = 1 if workers > 1 or experiment.train.zero_stage > 0 else 0  # Ray Train's own process
    needed = workers + overhead + TRIAL_CPU
    if needed > cpus:
        raise UserError(
            f"tune: one trial needs {needed:g} CPUs (train.workers = {workers} and its own), the cluster has {cpus:g}: "
            f"{needed - cpus:g} too few; ask for fewer workers"
        )
    room = int(cpus // needed) if overhead else int(cpus // workers)
    if gpus:
        room = min(room, max(1, int(gpus // workers)))
    return max(1, min(room, space.trials))


def _tuned(setting: Setting, folder: Path, progress: Progress) -> list[Trial]:
    from ray import tune

    os.environ.setdefault("RAY_TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    trainable = tune.with_resources(tune.with_parameters(trial, setting=setting), {"CPU": TRIAL_CPU})
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _quiet_tune():
        if tune.Tuner.can_restore(str(folder)):
            progress.say(f"going on with the search in {folder}")
            tuner = tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
        else:
            tuner = _new_tuner(trainable, setting, folder)
        grid: Any = tuner.fit()
    trials = []
    for number, result in enumerate(grid):
        seen = dict(result.metrics or {})
        if "leak" not in seen:
            seen = failure(str(result.error or "ended before its first look"))
        name = Path(result.path).name if result.path else str(number)
        trials.append(Trial(name.split("_")[1] if "_" in name else name, dict(result.config or {}), _own(seen)))
    return trials


def _new_tuner(trainable: Any, setting: Setting, folder: Path) -> Any:
    from ray import tune

    from engine.race import Race, TokenBudget, Told

    space = setting.space
    pareto = space.search == "pareto"
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher(space, setting.experiment.seed),
            scheduler=None if pareto else Race(),
            num_samples=grid_size(space) if space.search == "grid" else space.trials,
            max_concurrent_trials=concurrent_trials(space, setting.experiment),
            time_budget_s=space.hours * 3600 if space.hours else None,
            reuse_actors=True,
            trial_dirname_creator=lambda each: f"trial_{each.trial_id}",
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=TokenBudget(space.tokens) if space.tokens else None,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=3),  # a lost node; a trial's own failures are reports
            callbacks=[Told()],
        ),
    )


def searcher(space: Space, seed: int) -> Any:
    """Optuna behind Ray Tune; one sampler for each kind of search."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if space.search == "grid":
        sampler: Any = optuna.samplers.GridSampler(
            {name: list(each.choice or ()) for name, each in space.parameters.items()}, seed
        )
    elif space.search == "random":
        sampler = optuna.samplers.RandomSampler(seed=seed)
    else:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=max(4, space.trials // 4))
    metric, mode = (["leak", "utility"], ["min", "max"]) if space.search == "pareto" else ("value", "min")
    return OptunaSearch(_Suggest(space), metric=metric, mode=mode, sampler=sampler)


class _Suggest:
    """A point of the space, suggested by an Optuna trial; parameters whose `when` does not hold are left out."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, trial: Any) -> None:
        values: dict[str, Any] = {}
        for name, parameter in self.space.parameters.items():
            if any(values.get(other) not in allowed for other, allowed in parameter.when.items()):
                continue
            if parameter.choice is not None:
                values[name] = trial.suggest_categorical(name, list(parameter.choice))
            elif parameter.int is not None:
                values[name] = trial.suggest_int(name, *parameter.int)
            elif parameter.loguniform is not None:
                values[name] = trial.suggest_float(name, *parameter.loguniform, log=True)
            elif parameter.uniform is not None:
                values[name] = trial.suggest_float(name, *parameter.uniform)


def grid_size(space: Space) -> int:
    """Points of a grid."""
    size = 1
    for parameter in space.parameters.values():
        size *= len(parameter.choice or ())
    return size


def _own(seen: dict[str, Any]) -> dict[str, Any]:
    """A report without what Ray Tune adds to it."""
    return {name: seen[name] for name in failure("") if name in seen}


@contextlib.contextmanager
def _quiet_tune() -> Any:
    """Ray Tune's own words kept off the terminal: the engine says what happens."""
    import logging
    import warnings

    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:  # noqa: PTH123
        warnings.simplefilter("ignore")
        stdout = sys.stdout
        sys.stdout = nowhere
        try:
            yield
        finally:
            sys.stdout = stdout
