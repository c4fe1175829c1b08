"""A stage is known by its inputs; several are filled together, whatever of them is there already."""

import dataclasses
import threading
from typing import ClassVar

import pytest

from benchmarks.base import Decoding, Probe
from engine.cluster.reporter import Silent
from engine.models.source import ModelSource
from engine.stages.base import Stage, Stages, fingerprint_probes
from engine.stages.sample import SampleJob
from engine.store.store import Store

PROBE = Probe("author1/city", "Where was Ada born?", "Ada was born in Rome.", "forget", fact="Rome")


class Quiet:
    """A progress display that shows nothing."""

    def task(self, kind, label, total, amount):
        import contextlib

        return contextlib.nullcontext(Silent())

    def found(self, kind, label, amount):
        pass


@dataclasses.dataclass(frozen=True)
class Named(Stage):
    name: str
    kind: ClassVar[str] = "named"
    title: ClassVar[str] = "name"
    units: ClassVar[int] = 1

    def inputs(self):
        return {"name": self.name}

    def run(self, work, report):
        (work / "name").write_text(self.name)
        return {"length": len(self.name)}


@pytest.fixture
def stages(tmp_path):
    return Stages(Store(tmp_path), Quiet(), lambda: None)


def fill(missing, works, report):
    return [stage.run(work, report) for stage, work in zip(missing, works, strict=True)]


def test_a_probes_fingerprint_is_the_one_that_stores_know():
    known = "a13ada3b"
    assert fingerprint_probes([PROBE])[:8] == known


def test_a_younger_field_of_a_probe_counts_only_where_it_is_set():
    younger = dataclasses.make_dataclass("Younger", [("topic", str | None, None)], bases=(Probe,), frozen=True)
    fields = dataclasses.asdict(PROBE)
    assert fingerprint_probes([younger(**fields)]) == fingerprint_probes([PROBE])
    assert fingerprint_probes([younger(**fields, topic="cities")]) != fingerprint_probes([PROBE])


def test_a_cluster_decides_on_no_sample_and_is_no_part_of_the_fingerprint():
    assert fingerprint_probes([dataclasses.replace(PROBE, cluster="author 1")]) == fingerprint_probes([PROBE])


def test_what_cannot_change_samples_is_not_among_their_inputs():
    job = SampleJob(ModelSource("m", "m"), (PROBE,), Decoding(), n=2, max_new_tokens=4)
    assert dataclasses.replace(job, workers=3, max_rows=7).inputs() == job.inputs()
    assert dataclasses.replace(job, gpus=1.0).inputs() != job.inputs()


def test_stages_filled_together_are_found_alone_and_the_other_way_round(stages):
    alone = stages.run("x", Named("b"))
    given = []
    together = stages.run_together(
        "x", [Named(name) for name in "cab"], lambda missing, *more: given.extend(missing) or fill(missing, *more)
    )
    assert [stage.path.joinpath("name").read_text() for stage in together] == list("cab")
    assert set(given) == {Named("a"), Named("c")}
    assert together[2].path == alone.path
    assert stages.run("x", Named("a")).reused


def test_one_stage_asked_for_twice_at_once_is_filled_once(stages):
    first, second = stages.run_together("x", [Named("a"), Named("a")], fill)
    assert first.path == second.path


def test_two_that_want_the_same_stages_in_another_order_do_not_wait_for_each_other(stages, tmp_path):
    names = "abcdefgh"
    orders = [names, names[::-1]]
    found = []

    def ask(order):
        own = Stages(Store(tmp_path), Quiet(), lambda: None)
        found.append(own.run_together("x", [Named(name) for name in order], fill))

    threads = [threading.Thread(target=ask, args=(order,), daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert len(found) == 2


def test_what_cannot_be_filled_leaves_no_empty_folders(stages, tmp_path):
    def fails(missing, works, report):
        (works[0] / "part").touch()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        stages.run_together("x", [Named("a"), Named("b")], fails)
    assert len(list((tmp_path / "named").glob("*.work"))) == 1
