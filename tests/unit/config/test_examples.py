"""The example experiments are whole, and the list of benchmarks tells what each is."""

import json
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS
from engine.cli import main
from engine.config.experiment import load_experiment

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_a_valid_experiment(path):
    experiment = load_experiment(path)
    assert experiment.methods
    assert path.read_text().startswith("# ")


def test_every_benchmark_has_an_example():
    assert {load_experiment(path).benchmark.name for path in EXAMPLES} == set(BENCHMARKS)


def test_the_list_of_benchmarks_tells_data_licence_and_metrics(capsys):
    assert main(["benchmarks", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == set(BENCHMARKS)
    assert rows["tofu"]["facts"]["licence"] == "MIT"
    assert "corpus" in rows["muse"]["options"]
    assert all(
        row["facts"].keys() == {"data", "licence", "size", "leak", "utility", "metrics"} for row in rows.values()
    )


def test_the_embedded_benchmarks_stated_sizes_are_counted(fictional):
    size = BENCHMARKS["fictional"].facts.size
    assert size.startswith("60 authors, 12 questions each")
    assert len(fictional.forget) + len(fictional.retain) == 60 * 12
    forget = [len(BENCHMARKS["fictional"].load(split=split).forget) for split in ("forget01", "forget05", "forget10")]
    assert size.endswith(", ".join(map(str, forget)) + " questions")
