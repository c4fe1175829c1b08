"""The training of an attack: the experiment's own settings, for so many steps of plain fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.base import Example
from engine.config.experiment import Experiment
from engine.config.sections import TrainSection
from engine.errors import UserError, validated
from engine.models.size import model_size
from engine.models.source import ModelSource
from engine.pipeline.memory_model import sure_memory
from engine.train.job import TrainJob, in_pieces

# What ends a training early, or looks at it, belongs to unlearning.
PLAIN = {"stop_at_greedy": None, "stop_at_leak": None, "eval_samples": None}
OWN = {"steps": "the attack's own `steps`", "epochs": "the attack's own `steps`"}
OWN |= dict.fromkeys(PLAIN, "`steps` alone: an attack's training does not end early")


def fine_tuning(
    experiment: Experiment, settings: TrainSection, model: ModelSource, examples: Sequence[Example], seed: int
) -> TrainJob:
    """Plain fine-tuning of `model` on the examples."""
    from methods import FINE_TUNING

    return TrainJob(
        model=model,
        method={"name": FINE_TUNING},
        settings=settings,
        retain=in_pieces(list(examples), model, settings),
        template=experiment.model.template,
        system=experiment.model.system,
        template_options=experiment.model.template_options or None,
        seed=seed,
        portable=experiment.portable,
        memory=sure_memory(model_size(model), settings),
    )


def settings_of(experiment: Experiment, attack: str, changes: dict[str, object], steps: int) -> TrainSection:
    """The experiment's `train` with the attack's `changes` and `steps`. UserError for a key or value that is wrong."""
    for key in sorted(OWN.keys() & changes.keys()):
        raise UserError(f"attacks: {attack}: train: {key}: give {OWN[key]}")
    values = experiment.train.model_dump() | PLAIN | changes | {"steps": steps}
    return validated(TrainSection, values, f"attacks: {attack}: train")
