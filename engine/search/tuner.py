"""Hyperparameter search on a leak@k objective with Ray Tune: suggest, unlearn, look, stop what cannot win, report.

An experiment and a Space come in; a Search comes out: every trial, the winner, and the experiment that reruns it alone.
Killed, the same search goes on: finished trials are kept, running ones find their finished stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.config.experiment import Experiment, parse_experiment
from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.models.source import ModelSource
from engine.pipeline.model_builder import Maker
from engine.pipeline.planning import announce, planned
from engine.pipeline.run import experiment_fingerprint, prepared
from engine.search.final_selection import finals
from engine.search.space import Rung, Space
from engine.search.trial import failure, look_again, reported, trial
from engine.search.trial_evaluation import Setting, kept, least
from engine.stages.base import Stages
from engine.store.store import Store
from engine.train.loop import gpus_a_worker

TRIAL_MEMORY = 200 * 2**20  # bytes; a trial only waits for its stages and takes no share of a CPU from them
PREFIX = "trial_"


@dataclasses.dataclass(frozen=True)
class Trial:
    """One point and the last look at it (engine/search/trial.py says what each number is)."""

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
            return "keeps too little"
        if self.seen["full"]:
            return "full"
        return f"stopped at epoch {self.seen['epoch']:g}" if self.seen["epoch"] else f"stopped at n = {self.seen['n']}"


@dataclasses.dataclass(frozen=True)
class Search:
    """A finished search. seconds: of this call; folder: where it is kept."""

    trials: list[Trial]
    setting: Setting
    folder: Path
    seconds: float

    @property
    def best(self) -> Trial | None:
        """The feasible trial, sampled in full, with the least leakage on the prompts that decide."""
        return min((each for each in self.trials if each.won), key=lambda each: each.seen["leak"], default=None)

    @property
    def front(self) -> list[Trial]:
        """The trials, sampled in full, that no other beats in both leakage and utility, by rising utility."""
        full = [each for each in self.trials if each.seen["full"]]

        def beaten(one: Trial) -> bool:
            return any(
                other.seen["leak"] <= one.seen["leak"]
                and other.seen["utility"] >= one.seen["utility"]
                and (other.seen["leak"], other.seen["utility"]) != (one.seen["leak"], one.seen["utility"])
                for other in full
            )

        return sorted((each for each in full if not beaten(each)), key=lambda each: each.seen["utility"])

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
    group = space.objective.group or benchmark.protocol.leak_group
    metric = space.objective.metric or benchmark.protocol.core_metric
    ray_cluster.connect(distributed_training=True)
    at_once = concurrent_trials(space, experiment)
    with Progress(quiet) as progress:
        stages = Stages(store, progress, lambda: None)
        maker = Maker(experiment, benchmark, stages)
        every = experiment.model_copy(update={"methods": (space.section({}),) * trials_of(space) * space.seeds})
        announce(planned(every, benchmark, maker.base, store), progress.say)
        with ThreadPoolExecutor(2) as pool:
            retain, target = pool.submit(_yardstick, maker, space), pool.submit(maker.target)
        setting = Setting(experiment, space, store.address, group, metric, retain=retain.result())
        target_keeps = kept(setting, stages, benchmark, target.result().source, "target")
        setting = dataclasses.replace(setting, least=least(setting, target_keeps))
        trials = _decided(_tuned(setting, folder, progress, at_once), setting, folder)
    return Search(trials, setting, folder, round(time.monotonic() - clock, 1))


def _yardstick(maker: Maker, space: Space) -> ModelSource | None:
    """The retain model where the objective is the excess over it."""
    retain = maker.retain() if space.objective.excess else None
    return retain.source if retain is not None else None


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
    """Trials at once: as many as the cluster has CPUs and GPUs for. UserError, with what is missing, where not even one
    has room.

    A trial's training and its sampling follow each other, so it needs the larger of the two: one CPU a training worker,
    Ray Train's controller and the trial itself taking none; sampling takes more workers where they are free. Stages
    give back what they hold before the next asks, so trials cannot block each other.
    """
    sections = [experiment.train_section(space.section(point)) for point in space.corner_points()]
    sampling = experiment.sampling.gpus or 0.0
    room = trials_of(space)
    for what, total, needed in (
        ("CPUs", ray_cluster.resources()[0], max(each.workers for each in sections)),
        ("GPUs", ray_cluster.resources()[1], max(sampling, *(each.workers * gpus_a_worker(each) for each in sections))),
    ):
        if needed > total:
            raise UserError(
                f"tune: one trial needs {needed:g} {what} for its workers, the cluster has {total:g}: "
                f"{needed - total:g} too few; ask for fewer workers"
            )
        if needed:
            room = min(room, int(total / needed + 1e-9))
    return room


def _tuned(setting: Setting, folder: Path, progress: Progress, at_once: int) -> list[Trial]:
    from ray import tune

    os.environ.setdefault("RAY_TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # what a kill can cost of Ray Tune's own account
    held = tune.PlacementGroupFactory([{"memory": TRIAL_MEMORY}])
    trainable = tune.with_resources(tune.with_parameters(trial, setting=setting), held)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet_tune():
        if tune.Tuner.can_restore(str(folder)):
            progress.say(f"going on with the search in {folder}")
            tuner = tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, resume_errored=True)
        else:
            progress.say(f"{trials_of(setting.space)} trials, {at_once} at once")
            tuner = _new_tuner(trainable, setting, folder, at_once)
        grid: Any = tuner.fit()
    trials = []
    for number, result in enumerate(grid):
        seen = dict(result.metrics or {})
        if "leak" not in seen:
            seen = failure(str(result.error or "ended before its first look"))
        name = Path(result.path).name if result.path else str(number)
        trials.append(Trial(name.removeprefix(PREFIX), dict(result.config or {}), reported(seen)))
    return trials


def _decided(trials: list[Trial], setting: Setting, folder: Path) -> list[Trial]:
    """The trials after the finals, whose looks are said and recorded as those before."""
    from engine.search.scheduler import Record, describe

    record, by_id = Record(folder), {each.id: each for each in trials}

    def again(name: str, rung: Rung) -> dict[str, Any]:
        values = by_id[name].values
        seen = look_again(values, setting, rung)
        if not any(row["trial"] == name and row["seen"]["n"] == seen["n"] for row in record.rows):  # not a rerun
            record.add(name, values, seen)
        print(describe(name, values, seen), file=sys.stderr, flush=True)
        return seen

    ladder = (*setting.space.rungs, setting.whole)
    seen = finals({each.id: each.seen for each in trials}, ladder, again)
    return [dataclasses.replace(each, seen=seen[each.id]) for each in trials]


def _new_tuner(trainable: Any, setting: Setting, folder: Path, at_once: int) -> Any:
    from ray import tune

    from engine.search.scheduler import RECORD, Budget, Race, Told

    space = setting.space
    (folder / RECORD).unlink(missing_ok=True)
    budgeted = space.tokens is not None or space.hours is not None
    return tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher(space, setting.experiment.seed),
            scheduler=Race(folder, space.asha),
            num_samples=trials_of(space),
            max_concurrent_trials=at_once,
            reuse_actors=True,
            trial_dirname_creator=_folder_name,
        ),
        run_config=tune.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            stop=Budget(folder, space.tokens, space.hours) if budgeted else None,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=3),  # a lost node; a trial's own failures are reports
            callbacks=[Told()],
        ),
    )


def _folder_name(each: Any) -> str:
    return f"{PREFIX}{each.trial_id}"


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


def trials_of(space: Space) -> int:
    """Trials of a search; of a grid, its points."""
    if space.search != "grid":
        return space.trials
    return math.prod(len(parameter.choice or ()) for parameter in space.parameters.values())


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
