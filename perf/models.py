"""The demo's own models for benchmarks, trained on the spot in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import BENCHMARKS
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from engine.models.loading import load_model
from engine.models.source import ModelSource, model_source
from engine.train.job import TrainJob
from engine.train.launch import train_alone

SEED = 0
RMU = {"name": "rmu", "layer": 1, "c": 4.0, "alpha": 2.0}


def demo_models(folder: Path) -> dict[str, Any]:
    """name -> (model, tokenizer): the demo's target and retain model, the target model unlearned by RMU, and the
    untrained model that they start from."""
    from engine.models.tokenization import load_tokenizer

    benchmark = BENCHMARKS["fictional"].load(seed=SEED)
    benchmark.base_model(folder / "untrained", SEED)
    base = model_source(str(folder / "untrained"))
    settings = TrainSection.model_validate(benchmark.protocol.finetune)
    sources = {}
    for name, examples in (
        ("target", benchmark.finetune_forget + benchmark.finetune_retain),
        ("retain", benchmark.finetune_retain),
    ):
        (folder / name).mkdir()
        job = TrainJob(base, {"name": "retrain"}, settings, retain=tuple(examples), seed=SEED)
        train_alone(job, str(folder / name), Silent())
        sources[name] = ModelSource(str(folder / name / "model"), name)
    (folder / "rmu").mkdir()
    unlearning = TrainSection.model_validate(benchmark.protocol.train | {"steps": 40})
    forget, retain = tuple(benchmark.forget), tuple(benchmark.retain)
    job = TrainJob(sources["target"], RMU, unlearning, retain=retain, forget=forget, seed=SEED)
    train_alone(job, str(folder / "rmu"), Silent())
    sources |= {"rmu": ModelSource(str(folder / "rmu" / "model"), "rmu"), "untrained": base}
    return {name: (load_model(source), load_tokenizer(source.path)) for name, source in sources.items()}
