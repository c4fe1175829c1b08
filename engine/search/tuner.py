"""Hyperparameter search on a leak@k objective with Ray Tune: suggest, unlearn, estimate, stop what cannot win.

An experiment and a Space come in; a Search comes out, with every trial. Killed, the same search goes on: finished
trials are kept, running ones find their finished stages.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import BENCHMARKS
from engine.cluster import ray_cluster
from engine.cluster.progress import Progress
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.jsonl import JsonObject
from engine.models.source import ModelSource
from engine.pipeline.identity import contents, experiment_fingerprint
from engine.pipeline.interruption import Ending
from engine.pipeline.model_builder import ModelBuilder
from engine.pipeline.model_checks import check_metrics
from engine.pipeline.preparation import prepared, refuse_blind
from engine.pipeline.run_plan import announce, planned
from engine.robustness.base import Attack
from engine.robustness.reading import attacks_of, reads_of
from engine.search.final_selection import sample_finalists
from engine.search.objective import objective_attack
from engine.search.result import Search, Trial
from engine.search.scheduler import Budget, PrintReports, SearchScheduler
from engine.search.space import Rung, Space
from engine.search.suggestions import optuna_search
from engine.search.trial import sample_further, trainable
from engine.search.trial_evaluation import Setting, kept, least
from engine.search.trial_log import LOG_FILE, TrialLog
from engine.search.trial_report import TrialReport, report_line
from engine.stages.base import Stages
from engine.stages.likelihood import LIKELIHOOD_VERSION
from engine.stages.sample import SAMPLE_VERSION
from engine.stages.score import SCORE_VERSION
from engine.store.store import Store
from engine.train.launch import cpus_a_worker, gpus_a_worker
from engine.train.loop import TRAIN_VERSION
from methods import versions_of

if TYPE_CHECKING:
    from ray.tune import Result, Trainable, Tuner
    from ray.tune.experiment import Trial as RayTrial

VERSIONS = (TRAIN_VERSION, SAMPLE_VERSION, SCORE_VERSION, LIKELIHOOD_VERSION)  # of what trials' reports are made by
TRIAL_MEMORY = 200 * 2**20  # bytes; a trial only waits for its stages and takes no share of a CPU from them
PREFIX = "trial_"


def search(
    experiment: Experiment,
    space: Space,
    store: Store,
    quiet: bool = False,
    whole_plan: bool = False,
    ending: Ending | None = None,
) -> Search:
    """Search, or go on with a search that was cut off. UserError where the cluster is too small for one trial.

    ending: told what there is to end where a signal asks for it.
    """
    clock = time.monotonic()
    benchmark = BENCHMARKS[experiment.benchmark.name].load(**experiment.benchmark.options)
    experiment = prepared(experiment, benchmark)
    attacks = attacks_of(experiment, benchmark)  # the winner's run makes them: a mistake is told before any trial
    attack = objective_attack(space.objective, experiment, benchmark)
    every_attack = attacks if attack is None else [*attacks, attack]
    known = experiment_fingerprint(experiment, contents(experiment, benchmark) | reads_of(every_attack, benchmark))
    identity = fingerprint(
        [known, _identity(space), versions_of(space.section(space.corner_points()[0]).method), VERSIONS]
    )
    folder = store.root / "tune" / f"{experiment.name}-{space.method}-{identity[:8]}"
    group = space.objective.group or benchmark.protocol.leak_group
    metric = space.objective.metric or benchmark.protocol.core_metric
    refuse_blind(metric, benchmark, group, experiment)
    ray_cluster.connect(distributed_training=True)
    at_once = concurrent_trials(space, experiment, attack)
    with Progress(quiet) as progress:
        if ending is not None:
            ending.about(experiment, identity, folder, progress, search=True)
        stages = Stages(store, progress, lambda: None)
        builder = ModelBuilder(experiment, benchmark, stages)
        check_metrics(experiment, benchmark)
        builder.check()
        every = experiment.model_copy(update={"methods": (space.section({}),) * space.trial_count * space.seeds})
        announce(planned(every, benchmark, builder.base, store), progress.say, whole_plan)
        with ThreadPoolExecutor(2) as pool:
            retain, target = pool.submit(_retain_model, builder, space), pool.submit(builder.target)
        before = target.result().source
        setting = Setting(
            experiment, space, store.address, group, metric, retain=retain.result(), attack=attack, target=before
        )
        target_keeps = kept(setting, stages, benchmark, before, "target")
        setting = dataclasses.replace(setting, least=least(setting, target_keeps))
        trials = _with_finalists_sampled(_tuned(setting, folder, progress, at_once), setting, folder, progress)
    return Search(trials, setting, folder, round(time.monotonic() - clock, 1))


def _identity(space: Space) -> JsonObject:
    """What a search is known by; a key that is younger than many a store is left out where it is not used."""
    document = space.model_dump(mode="json")
    if space.objective.attack is None:
        del document["objective"]["attack"]
    return document


def _retain_model(builder: ModelBuilder, space: Space) -> ModelSource | None:
    """The retain model where the objective is the excess over it."""
    retain = builder.retain() if space.objective.excess else None
    return retain.source if retain is not None else None


def concurrent_trials(space: Space, experiment: Experiment, attack: Attack | None = None) -> int:
    """Trials at once: as many as the cluster has CPUs and GPUs for. UserError, with what is missing, where not even one
    has room.

    A trial's training, its attack and its sampling follow each other, so it needs the largest of them: the CPUs of its
    training workers, Ray Train's controller and the trial itself taking none; sampling takes more workers where they
    are free. Stages give back what they hold before the next asks, so trials cannot block each other.
    """
    sections = [experiment.train_section(space.section(point)) for point in space.corner_points()]
    if attack is not None and (section := attack.training(experiment)) is not None:
        sections.append(section)
    sampling = experiment.sampling.gpus or 0.0
    room = space.trial_count
    training = max(section.workers * gpus_a_worker(section) for section in sections)
    cpus, gpus = ray_cluster.resources()
    for what, total, needed in (
        ("CPUs", cpus, max(section.workers * cpus_a_worker(section, experiment.portable) for section in sections)),
        ("GPUs", gpus, max(sampling, training)),
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
    runs = tune.with_parameters(trainable, setting=setting, board=progress.shared_board())
    runs = tune.with_resources(runs, held)
    folder.mkdir(parents=True, exist_ok=True)
    with _quiet_tune():
        if tune.Tuner.can_restore(str(folder)):
            progress.say(f"going on with the search in {folder}")
            tuner = _restored(runs, folder)
        else:
            progress.say(f"{setting.space.trial_count} trials, {at_once} at once")
            tuner = _new_tuner(runs, setting, folder, at_once)
        grid = tuner.fit()
    return [_trial(number, grid[number]) for number in range(len(grid))]


def _restored(runs: type[Trainable], folder: Path) -> Tuner:
    """Ray Tune's account of a search that began before. UserError where another version of this code wrote it."""
    from ray import tune

    try:
        return tune.Tuner.restore(str(folder), runs, resume_unfinished=True, resume_errored=True)
    except (AttributeError, ImportError) as error:  # it holds objects of our classes, by module and name
        raise UserError(
            f"{folder}: another version of leakatk began this search; move the folder away and run the same command: "
            "the search starts anew and finds its finished stages"
        ) from error


def _trial(number: int, result: Result) -> Trial:
    name = Path(result.path).name if result.path else str(number)
    if result.metrics and "leak" in result.metrics:
        report = TrialReport.from_dict(result.metrics)
    else:
        report = TrialReport.of_failure(str(result.error or "ended before its first report"))
    return Trial(name.removeprefix(PREFIX), dict(result.config or {}), report)


def _with_finalists_sampled(trials: list[Trial], setting: Setting, folder: Path, progress: Progress) -> list[Trial]:
    """The trials, the finalists among them sampled in full, which is printed and logged as all before."""
    log, by_id = TrialLog(folder), {trial.id: trial for trial in trials}

    def sample(name: str, rung: Rung) -> TrialReport:
        values = by_id[name].values
        report = sample_further(values, setting, rung, progress.shared_board())
        if not any(row.trial == name and row.report.n == report.n for row in log.rows):  # not a rerun
            log.add(name, values, report)
        print(report_line(name, values, report), file=sys.stderr, flush=True)
        return report

    ladder = (*setting.space.rungs, setting.full)
    reports = sample_finalists({trial.id: trial.report for trial in trials}, ladder, sample)
    return [dataclasses.replace(trial, report=reports[trial.id]) for trial in trials]


def _new_tuner(runs: type[Trainable], setting: Setting, folder: Path, at_once: int) -> Tuner:
    from ray import tune

    space = setting.space
    (folder / LOG_FILE).unlink(missing_ok=True)
    budgeted = space.tokens is not None or space.hours is not None
    return tune.Tuner(
        runs,
        tune_config=tune.TuneConfig(
            search_alg=optuna_search(space, setting.experiment.seed),
            scheduler=SearchScheduler(folder, space.asha),
            num_samples=space.trial_count,
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
            callbacks=[PrintReports()],
        ),
    )


def _folder_name(trial: RayTrial) -> str:
    return f"{PREFIX}{trial.trial_id}"


@contextlib.contextmanager
def _quiet_tune() -> Iterator[None]:
    """Ray Tune's own messages kept off the terminal: the engine says what happens."""
    import logging
    import warnings

    for name in ("ray.tune", "ray.train", "ray"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nowhere:
        warnings.simplefilter("ignore")
        stdout = sys.stdout
        sys.stdout = nowhere
        try:
            yield
        finally:
            sys.stdout = stdout
