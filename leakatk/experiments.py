"""What the command line's `run`, `evaluate` and `tune` do, for scripts and notebooks: whole runs and all they leave.

An experiment comes in; a run comes out whose results, report and MLflow record are written. The engine does the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from engine.cli import switch_reports_off
from engine.config.experiment import Experiment, evaluation_of, load_experiment
from engine.errors import UserError
from engine.store.store import Store

if TYPE_CHECKING:
    from engine.pipeline.finish import WrittenRun
    from engine.reporting.results import Results
    from engine.search.finish import FinishedSearch

Where = Store | Path | str | None


def run(experiment: Experiment | Path | str, store: Where = None, *, quiet: bool = False) -> WrittenRun:
    """Run an experiment from end to end, as `leakatk run` does: train, sample, score, results, report, MLflow.

    Methods that failed are named, with their reason, in `.failed` of what is returned. Raises UserError for mistakes.

    experiment: an Experiment or the path of its file. store: a folder or s3://BUCKET/PREFIX (None: LEAKATK_STORE, else
    ./leakatk-store); what it holds is not computed again. quiet: no progress on stderr.
    """
    switch_reports_off()
    from engine.pipeline.finish import record_run, run_experiment
    from engine.robustness.runner import Attacks

    kept = _store(store)
    written = run_experiment(_experiment(experiment), kept, quiet, Attacks())
    recorded = record_run(written, kept)
    if recorded.state == "waiting":
        warnings.warn(f"not in MLflow yet: {recorded.reason}; `leakatk sync` records it", stacklevel=2)
    return written


def evaluate(
    model: str | Path,
    *,
    benchmark: str,
    retain: str | Path | None = None,
    endpoint: str | None = None,
    key_variable: str | None = None,
    set: Mapping[str, object] | None = None,  # the name of the command line's option
    store: Where = None,
    quiet: bool = False,
) -> WrittenRun:
    """leak@k and utility of a model that exists, as `leakatk evaluate`: nothing is trained.

    model: a folder or hub name; retain: likewise, a model that never saw the forget set, for the excess. endpoint: the
    URL of an OpenAI-compatible server that has them by these names, its key in the environment variable key_variable.
    set: keys of the experiment that differ from the benchmark's protocol, {"sampling.n": 64}. The rest as `run`.
    """
    path = None if retain is None else str(retain)
    experiment = evaluation_of(str(model), benchmark, path, endpoint, key_variable, set or {})
    return run(experiment, store, quiet=quiet)


def search(
    space: Path | str, experiment: Experiment | Path | str, store: Where = None, *, quiet: bool = False
) -> FinishedSearch:
    """Search a method's hyperparameters for little leakage at kept utility, then run the winner, as `leakatk tune`.

    space: a file, or the name of a space that ships, such as "npo". Killed, the same call goes on. In what is returned
    `winner` (results in full) and `best_file` are None where no trial kept enough. The rest as `run`.
    """
    switch_reports_off()
    from engine.search.finish import run_search
    from engine.search.space import space_for

    given = _experiment(experiment)
    checked = space_for(space, given)
    return run_search(given, checked, _store(store), quiet)


def read_results(run: Path | str) -> Results:
    """The results of a finished run: its folder, STORE/runs/NAME, on this machine or at s3://. UserError if none."""
    from engine.reporting import results
    from engine.reporting.run_folder import run_path

    return results.read_results(run_path(str(run)))


def _experiment(given: Experiment | Path | str) -> Experiment:
    return given if isinstance(given, Experiment) else load_experiment(given)


def _store(given: Where) -> Store:
    from engine.store.location import store_path

    if not isinstance(given, Store | str | Path | None):
        raise UserError(f"store: give a folder, s3://BUCKET/PREFIX or a leakatk.Store, found {given!r}")
    return given if isinstance(given, Store) else Store(store_path(given))
