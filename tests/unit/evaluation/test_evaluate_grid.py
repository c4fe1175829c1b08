"""An evaluation draws all its decodings of a model but the greedy one in one pass."""

from types import SimpleNamespace

from benchmarks.base import Decoding
from engine.config.experiment import Experiment
from engine.evaluation.sampling import GREEDY, Subject, draw
from engine.models.source import ModelSource


def test_the_decodings_share_a_pass_and_greedy_asks_every_group_once(fictional):
    grid = tuple(Decoding(temperature=t, top_p=p) for t, p in ((1.0, 1.0), (0.2, 0.8), (1.0, 0.2)))
    settings = {
        "benchmark": {"name": "fictional"},
        "sampling": {"n": 4, "decoding": [each.model_dump() for each in grid]},
    }
    experiment = Experiment.model_validate(settings).with_protocol(fictional.protocol)
    passes = []

    def run_together(label, jobs, fill):
        passes.append((label, [(job.decoding, job.n, len(job.probes)) for job in jobs]))
        return [f"stage of {job.decoding.name}" for job in jobs]

    subject = Subject(SimpleNamespace(run_together=run_together), experiment, fictional, ModelSource("m", "m"), "npo")
    assert draw(subject, grid, 1) == [f"stage of {each.name}" for each in grid]
    assert draw(subject, [GREEDY], 1) == ["stage of greedy"]
    forget = sum(probe.group.startswith("forget") for probe in fictional.probes)
    assert passes == [
        ("npo T1-p1, T0.2-p0.8, T1-p0.2", [(each, 4, forget) for each in grid]),
        ("npo greedy", [(Decoding(temperature=0.0), 1, len(fictional.probes))]),
    ]
