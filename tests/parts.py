"""Every method for two steps, from a model that was fine-tuned for three; samples and likelihoods of the last. No Ray.

    python -m tests.parts FOLDER      prints digests of the bits that come out

Meant for the environment of engine/cluster/numerics.py, which torch reads when it is loaded, so that the digests are
those of every processor (tests/golden.json).
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

from benchmarks.base import Decoding
from benchmarks.fictional import Fictional
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.models.loading import worker_model
from engine.models.source import model_source
from engine.pipeline.alternate_answers import refusals
from engine.stages.likelihood import LikelihoodJob, token_likelihoods
from engine.stages.reference import ReferenceJob, answer_logprobs
from engine.stages.sample import SampleJob, sample_probes
from engine.train.job import TrainJob
from engine.train.launch import train_alone
from methods import FINE_TUNING, METHODS
from tests.golden import digest, weights

SETTINGS = TrainSection(steps=2, batch_size=4, retain_batch_size=6, lr=1e-2, weight_decay=0.0, warmup=0.0)
OPTIONS = {"rmu": {"layer": 0}, "pdu": {"eps": 1.0, "warmup_epochs": 0.4}}
SAMPLED = Decoding(), Decoding(temperature=0.8, top_p=0.9), Decoding(temperature=0.0)


def found(folder):
    """Digests by what they are of."""
    benchmark = Fictional.load()
    benchmark.base_model(folder / "base", seed=0)
    retain, forget = tuple(benchmark.retain[:20]), tuple(benchmark.forget[:8])
    fine_tuning = SETTINGS.model_copy(update={"steps": 3})
    job = TrainJob(
        model_source(str(folder / "base")), {"name": FINE_TUNING}, fine_tuning, retain + forget, portable=True
    )
    source, alternate = trained(job, folder / "target"), refusals(forget)
    reference = [tuple(answer_logprobs(ReferenceJob(source, each), False)) for each in (forget, alternate)]
    unlearning = TrainJob(
        source,
        {},
        SETTINGS,
        retain=retain,
        forget=forget,
        alternate=alternate,
        forget_reference=reference[0],
        alternate_reference=reference[1],
        portable=True,
    )
    bits = {
        "base": weights(folder / "base"),
        "target": weights(folder / "target" / "model"),
        "reference": text(reference),
    }
    for name in sorted(METHODS.keys() - {"rule"}):
        method = dataclasses.replace(unlearning, method={"name": name, **OPTIONS.get(name, {})})
        source = trained(method, folder / name)
        bits[name] = weights(folder / name / "model")
    loaded, probes = worker_model(source), tuple(benchmark.probes[:4])
    for decoding in SAMPLED:
        job = SampleJob(source, probes, decoding, 1 if decoding.greedy else 8, 8)
        drawn = sample_probes(*loaded, probes, job)
        bits[f"samples {decoding.name}"] = text([each.token_ids for of_probe in drawn for each in of_probe])
    rows = token_likelihoods(*loaded, forget, LikelihoodJob(source, forget, frozenset({forget[0].id})))
    return bits | {"likelihoods": text([dataclasses.asdict(row) for row in rows])}


def trained(job, folder):
    """The model of a training."""
    folder.mkdir()
    train_alone(job, str(folder), Silent())
    return model_source(str(folder / "model"))


def text(value):
    return digest(json.dumps(value).encode())


if __name__ == "__main__":
    print(json.dumps(found(Path(sys.argv[1]))))
