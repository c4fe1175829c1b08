"""A whole search: the search, its winner run in full, and all that a reader wants of both, written and recorded.

An experiment and a Space come in, a FinishedSearch comes out. The command line and the Python API both end searches
here; nothing is printed.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from engine.config.experiment import Experiment
from engine.jsonl import JsonObject
from engine.pipeline.interruption import Ending
from engine.pipeline.run import run
from engine.reporting.results import Results
from engine.reporting.run_folder import share_run
from engine.robustness.runner import Attacks
from engine.search.figures import write_figures
from engine.search.mlflow_run import record_search
from engine.search.result import Search
from engine.search.space import Space
from engine.search.summary import Halves, as_json, halves, rank_correlation, write_best
from engine.search.tuner import search
from engine.store.store import Store

if TYPE_CHECKING:
    import pandas


@dataclasses.dataclass(frozen=True)
class FinishedSearch:
    """A search whose files are written. best_file: the winner's experiment file, and winner: its results in full, both
    None where no trial won; halves: its leak@k by part of the prompts; document: what search.json holds."""

    search: Search
    winner: Results | None
    best_file: Path | None
    halves: Halves
    pictures: list[Path]
    document: JsonObject

    def table(self) -> pandas.DataFrame:
        """A row a trial, the winner first: its point in columns `values.NAME` and what its last look measured."""
        import pandas

        return pandas.json_normalize(self.document["trials"])

    def _repr_html_(self) -> str:
        return str(self.table().to_html(index=False, float_format="{:.3g}".format, na_rep=""))


def run_search(
    experiment: Experiment, space: Space, store: Store, quiet: bool = False, whole_plan: bool = False
) -> FinishedSearch:
    """Search, run the winner in full, write search.json, best.yaml and the pictures, record all in MLflow.

    SIGTERM or ctrl-C, where this is the main thread: finished work is kept and the process ends. quiet: no progress.
    """
    with Ending(store.root) as ending:
        result = search(experiment, space, store, quiet, whole_plan, ending)
        best = result.best_experiment()
        winner = run(best, store, quiet=quiet, ending=ending, attacker=Attacks()) if best is not None else None
    best_file = write_best(best, result) if best is not None else None
    parts = halves(result, winner, store.root) if winner is not None else {}
    pictures = write_figures(result)
    document = as_json(result, winner, parts)
    (result.folder / "search.json").write_text(json.dumps(document, indent=1))
    share_run(result.folder)
    record_search(result, rank_correlation(result)[0], pictures, store.root)
    return FinishedSearch(result, winner, best_file, parts, pictures, document)
