"""A whole run: an experiment is run, its results, scores, pictures and report are written, MLflow gets its record.

An Experiment comes in; a WrittenRun says where the files are. The command line and the Python API both end runs here;
nothing is printed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.experiment import Experiment
from engine.pipeline.identity import run_folder
from engine.pipeline.interruption import Ending
from engine.pipeline.run import Attacker, run
from engine.reporting.attack_figures import write_attack_figures
from engine.reporting.figures import PICTURE, write_figures
from engine.reporting.html_report import REPORT, write_report
from engine.reporting.results import ModelResults, Results
from engine.reporting.run_folder import share_run
from engine.reporting.scores import SCORES, write_scores
from engine.store.files import locked
from engine.store.manifest import versions
from engine.store.store import Store
from engine.tracking.mlflow_run import results_digest
from engine.tracking.sync import Recorded, record_soon
from engine.tracking.system_metrics import SystemMetrics

if TYPE_CHECKING:
    import pandas

MARK = ".written.json"  # of whose results the folder's files are


@dataclasses.dataclass(frozen=True)
class WrittenRun:
    """A run whose results are on disk. folder: its run folder, which has all of these and results.json."""

    results: Results
    folder: Path
    picture: Path
    report: Path
    scores: Path

    @property
    def models(self) -> ModelResults:
        """The results of each model, by position or by name."""
        return self.results.models

    @property
    def failed(self) -> dict[str, str]:
        """Why methods failed, by their name in tables."""
        return self.results.failed

    def table(self) -> pandas.DataFrame:
        """As Results.table: a row for each model, group, metric, decoding and k."""
        return self.results.table()

    def _repr_html_(self) -> str:
        return self.results._repr_html_()


def run_experiment(
    experiment: Experiment,
    store: Store,
    quiet: bool = False,
    attacker: Attacker | None = None,
    whole_plan: bool = False,
) -> WrittenRun:
    """Run an experiment from end to end and write its run folder. UserError for mistakes found on the way.

    SIGTERM or ctrl-C, where this is the main thread: trainings save a checkpoint, the run is marked as interrupted and
    the process ends. quiet: no progress on stderr. attacker: makes the experiment's attacks. whole_plan: say all of the
    plan.
    """
    with SystemMetrics() as system, Ending(store.root) as ending:
        results = run(experiment, store, quiet, ending, attacker, whole_plan)
    return finish_run(results, store, system)


def finish_run(results: Results, store: Store, system: SystemMetrics | None = None) -> WrittenRun:
    """Write results.json, scores, pictures and report into the run's folder; a store at a URL gets a copy.

    A folder that has them from the same results, by the same versions, is left as it is.
    """
    folder = run_folder(store, results)
    written = WrittenRun(results, folder, picture=folder / PICTURE, report=folder / REPORT, scores=folder / SCORES)
    mark = json.dumps({"results": results_digest(results), "versions": versions()})
    with locked(store.root / "runs.lock"):  # the same experiment may end twice at once
        if _stands(written, mark):
            return written
        (folder / MARK).unlink(missing_ok=True)
        results.write(folder)
        if system is not None:
            system.write(folder)
        write_figures(results, folder)
        write_scores(results, folder, store.root)
        write_report(results, folder, store.root)
        write_attack_figures(results, folder)
        share_run(folder)
        (folder / MARK).write_text(mark)
    return written


def _stands(written: WrittenRun, mark: str) -> bool:
    """Whether all of it is there, made from the same results."""
    files = (written.folder / MARK, written.picture, written.report, written.scores, written.folder / "results.json")
    return all(path.exists() for path in files) and files[0].read_text() == mark


def record_run(written: WrittenRun, store: Store) -> Recorded:
    """Record a written run in MLflow: after it was shown, for a server may take its time. Never raises for a server."""
    return record_soon(written.results, written.folder, store.root)
