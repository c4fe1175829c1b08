"""Samples and scores do not depend on how the work was spread, interrupted or taken up again."""

import dataclasses
import os
import signal
import sys

import pytest
import ray

from benchmarks.base import Decoding
from engine.cluster.reporter import Silent
from engine.cluster.units import read_units
from engine.errors import DivergedError
from engine.models.source import model_source
from engine.stages.sample import SampleJob, fill_grid
from engine.stages.score import ScoreJob, group_scores


@pytest.fixture(scope="module")
def job(base_model, fictional):
    return SampleJob(
        model_source(str(base_model)), tuple(fictional.probes[:100]), Decoding(), n=16, max_new_tokens=8, seed=1
    )


def sampled(job, folder, report=None, workers=None):
    folder.mkdir(exist_ok=True)
    facts = dataclasses.replace(job, workers=workers).run(folder, report or Silent())
    return facts, read_units(folder)


@pytest.fixture(scope="module")
def expected(job, tmp_path_factory):
    return sampled(job, tmp_path_factory.mktemp("expected"))[1]


def test_every_prompt_gets_its_samples_in_order(job, expected):
    assert expected.num_rows == 100 * 16
    assert expected["sample"].to_pylist() == list(range(16)) * 100
    assert expected["prompt_id"].to_pylist()[::16] == [probe.id for probe in job.probes]


@pytest.mark.parametrize(("workers", "rows"), [(1, None), (1, 8), (2, 100)])
def test_samples_are_bit_identical_for_any_number_of_workers_and_batch_size(job, expected, tmp_path, workers, rows):
    _, table = sampled(dataclasses.replace(job, max_rows=rows), tmp_path / "out", workers=workers)
    assert table.equals(expected)


def test_decodings_in_one_pass_give_what_each_gives_and_only_missing_units_are_drawn_again(job, expected, tmp_path):
    cool = dataclasses.replace(job, decoding=Decoding(temperature=0.5, top_p=0.9))
    alone = sampled(cool, tmp_path / "alone")[1]
    works = [tmp_path / "grid", tmp_path / "cool"]
    for work in works:
        work.mkdir()
    facts = fill_grid([job, cool], works, Silent())
    assert [read_units(work).equals(table) for work, table in zip(works, (expected, alone), strict=True)] == [True] * 2
    assert [each["tokens"] for each in facts] == [sum(table["tokens"].to_pylist()) for table in (expected, alone)]
    kept = works[0] / "units" / "000001.parquet", works[1] / "units" / "000000.parquet"
    lost = works[0] / "units" / "000000.parquet", works[1] / "units" / "000001.parquet"
    before = [path.stat().st_mtime_ns for path in kept]
    for path in lost:
        path.unlink()
    fill_grid([job, cool], works, Silent())
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert [read_units(work).equals(table) for work, table in zip(works, (expected, alone), strict=True)] == [True] * 2


def test_a_model_that_has_diverged_is_named_as_that(job, base_model, tmp_path):
    import shutil

    from safetensors.numpy import load_file, save_file

    shutil.copytree(base_model, tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    weights = {name: value * float("nan") for name, value in weights.items()}
    save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
    lost = dataclasses.replace(job, model=model_source(str(tmp_path / "model")))
    with pytest.raises(DivergedError, match="not finite"):
        sampled(lost, tmp_path / "out")


class KillOnce(Silent):
    """A reporter that kills the worker of one unit with SIGKILL, once, before the unit is reported."""

    def __init__(self, marker, unit="?"):
        self.marker, self.unit = marker, unit

    def __call__(self, done, note="", force=False):
        if self.unit == "1" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def of(self, part):
        return KillOnce(self.marker, part)


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


def test_a_killed_worker_loses_and_doubles_nothing(job, expected, tmp_path):
    _, table = sampled(job, tmp_path / "out", KillOnce(tmp_path / "killed"))
    assert (tmp_path / "killed").exists()
    assert table.equals(expected)


def test_only_missing_units_are_sampled_again(job, expected, tmp_path):
    sampled(job, tmp_path / "out")
    units = sorted((tmp_path / "out" / "units").glob("*.parquet"))
    before = {unit.name: unit.stat().st_mtime_ns for unit in units}
    units[0].unlink()
    _, table = sampled(job, tmp_path / "out")
    after = {unit.name: unit.stat().st_mtime_ns for unit in (tmp_path / "out" / "units").glob("*.parquet")}
    assert table.equals(expected)
    assert [name for name in before if before[name] != after[name]] == [units[0].name]


def test_scores_stand_beside_their_samples(job, tmp_path):
    sampled(job, tmp_path / "generations")
    (tmp_path / "scores").mkdir()
    facts = ScoreJob(str(tmp_path / "generations"), job.units, "rouge_l_recall").run(tmp_path / "scores", Silent())
    assert facts["failed"] == 0
    groups = group_scores(tmp_path / "scores")
    assert {name: values.scores.shape for name, values in groups.items()} == {
        "forget": (72, 16),
        "forget_paraphrase": (28, 16),
    }
    assert groups["forget"].prompt_ids == [probe.id for probe in job.probes[:72]]
