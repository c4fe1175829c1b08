"""Several decodings of one model share its prompts' prefill, and each is as if it had been sampled alone."""

import dataclasses

import pyarrow.parquet
import pytest

from benchmarks.base import Decoding
from engine.cluster.reporter import Silent
from engine.decode import sampler
from engine.models.source import model_source
from engine.stages import sample
from engine.stages.base import Stages
from engine.stages.sample import GridJob, SampleJob, sample_grid
from engine.store.store import Store

DECODINGS = (Decoding(), Decoding(temperature=0.8, top_p=0.8), Decoding(temperature=0.2, top_p=0.2, top_k=3))


@pytest.fixture
def jobs(base_model, fictional):
    job = SampleJob(model_source(str(base_model)), tuple(fictional.probes[:20]), DECODINGS[0], n=6, max_new_tokens=5)
    return tuple(dataclasses.replace(job, decoding=each) for each in DECODINGS)


@pytest.fixture
def prefills(monkeypatch):
    """The number of prompts in each prefill."""
    counts = []
    read = sampler.prefilled
    monkeypatch.setattr(
        sampler, "prefilled", lambda model, prompts: counts.append(len(prompts)) or read(model, prompts)
    )
    return counts


def test_a_pass_reads_each_prompt_once_and_draws_what_each_decoding_draws_alone(jobs, prefills, tmp_path):
    tables, _ = GridJob(jobs, tuple(str(tmp_path / name) for name in "abc")).compute(0)
    assert sum(prefills) == 20
    assert len({tuple(table["response"].to_pylist()) for table in tables.values()}) == 3
    for job, name in zip(jobs, "abc", strict=True):
        assert tables[str(tmp_path / name)].equals(job.compute(0)[0])


def test_a_decoding_whose_unit_is_there_is_not_drawn_again(jobs, tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder in folders:
        folder.mkdir()
    pyarrow.parquet.write_table(jobs[1].compute(0)[0], folders[1] / "000000.parquet")
    tables, _ = GridJob(jobs, tuple(map(str, folders))).compute(0)
    assert set(tables) == {str(folders[0]), str(folders[2])}


class Quiet:
    """A progress display that shows nothing."""

    def task(self, kind, label, total, amount):
        import contextlib

        return contextlib.nullcontext(Silent())

    def found(self, kind, label, amount):
        pass


@pytest.fixture
def passes(monkeypatch):
    """The decodings of each pass; a pass writes nothing but its facts."""
    found = []

    def run(jobs, works, report):
        found.append({job.decoding for job in jobs})
        assert all(work.is_dir() for work in works)
        return [{"decoding": job.decoding.model_dump()} for job in jobs]

    monkeypatch.setattr(sample, "fill_grid", run)
    return found


def test_each_decoding_is_a_stage_of_its_own_and_only_new_ones_are_drawn(jobs, passes, tmp_path):
    bound = Stages(Store(tmp_path), Quiet(), lambda: None)
    (alone,) = sample_grid(bound, "x", jobs[1:2])
    together = sample_grid(bound, "x", jobs)
    again = sample_grid(bound, "x", jobs[::-1])
    assert passes == [{jobs[1].decoding}, {jobs[0].decoding, jobs[2].decoding}]
    assert together[1].path == alone.path
    assert [stage.path for stage in again[::-1]] == [stage.path for stage in together]
    assert [stage.facts["decoding"] for stage in together] == [each.model_dump() for each in DECODINGS]


def test_a_pass_that_fails_leaves_every_stage_to_be_gone_on_with(jobs, monkeypatch, tmp_path):
    def fails(jobs, works, report):
        for work in works:
            (work / "units").mkdir()
        raise RuntimeError("killed")

    monkeypatch.setattr(sample, "fill_grid", fails)
    with pytest.raises(RuntimeError, match="killed"):
        sample_grid(Stages(Store(tmp_path), Quiet(), lambda: None), "x", jobs)
    assert len(list((tmp_path / "sample").glob("*.work/units"))) == 3
