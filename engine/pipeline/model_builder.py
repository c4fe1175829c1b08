"""Making an experiment's models: target and retain model, one model for each method, RULE and its controls.

An experiment and its stages come in, finished models come out, each with what it took. Knows nothing of evaluation or
of which models are made side by side.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from benchmarks.base import Benchmark, Decoding, Example, Probe
from engine.cluster.units import read_units
from engine.config.experiment import Experiment
from engine.config.sections import MethodSection, TrainSection
from engine.errors import UserError
from engine.evaluation.jobs import job_for
from engine.jsonl import JsonObject
from engine.models.size import ModelSize, model_size
from engine.models.source import ModelSource, model_source
from engine.pipeline.alternate_answers import alternate_probes, paired, refusals
from engine.pipeline.memory_model import sure_memory
from engine.pipeline.model_checks import check_model
from engine.pipeline.rule import Rule, RuleRun
from engine.reporting.records import RuleRound
from engine.stages.base import Stages, source_of
from engine.stages.base_model import BaseModelJob, brings_model
from engine.stages.reference import ReferenceJob, read_reference
from engine.stages.sample_endpoint import endpoint
from engine.train.job import TrainJob, in_pieces
from engine.train.launch import train
from engine.train.sharded_reference import reference_stage

if TYPE_CHECKING:
    from methods.base import Method


@dataclasses.dataclass(frozen=True)
class BuiltModel:
    """A model that the experiment trained or was given, and what that took."""

    name: str
    role: str
    source: ModelSource
    method: JsonObject
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    rounds: tuple[RuleRound, ...] = ()
    request: int | None = None


class ModelBuilder:
    """The models of one experiment. `forget`: the forget examples of the request that is unlearned; `start`: the model
    that it is unlearned from, the target model or what the request before left."""

    def __init__(self, experiment: Experiment, benchmark: Benchmark, stages: Stages) -> None:
        self.experiment, self.benchmark, self.stages = experiment, benchmark, stages
        self.base = self._base()
        self.given_retain = self._given_retain()
        anew = next((each for each in experiment.methods if _starts_anew(each)), None)
        if experiment.finetune_section is None and anew is not None:
            raise UserError(
                f"methods: {anew.name} starts from the pretrained model, which is not known here; give model.finetune "
                "with model.path the pretrained model, or the retrained model as model.retain"
            )

    def _base(self) -> ModelSource:
        """The model that target and retain model are fine-tuned from."""
        model = self.experiment.model
        if model.path is not None and model.endpoint is not None:
            return endpoint(name=model.path, **model.endpoint.model_dump())
        if model.path is not None:
            return model_source(model.path, model.revision, model.trust_remote_code)
        if not brings_model(self.benchmark):
            raise UserError(f"model.path: benchmark {self.benchmark.name} brings no model; give a folder or hub name")
        options, seed = self.experiment.benchmark.options, self.experiment.seed
        job = BaseModelJob(self.benchmark, options, seed, self.experiment.portable)
        return source_of(self.stages.run("base model", job))

    @functools.cached_property
    def size(self) -> ModelSize | None:
        return model_size(self.base) if isinstance(self.base, ModelSource) else None

    def _given_retain(self) -> ModelSource | None:
        """The retain model that the experiment names, None where it names none."""
        model = self.experiment.model
        if model.retain is None:
            return None
        if model.endpoint is not None:
            return endpoint(name=model.retain, **model.endpoint.model_dump())
        return model_source(model.retain, model.retain_revision, model.trust_remote_code, "model.retain")

    def check(self) -> None:
        """UserError unless the models that the experiment names can be used as it asks."""
        model = self.experiment.model
        if model.endpoint is not None:
            return
        if model.path is not None:
            check_model(self.base, model, "model.path")
        if self.given_retain is not None:
            check_model(self.given_retain, model, "model.retain")

    def target(self) -> BuiltModel:
        if self.experiment.model.finetune is None:
            return BuiltModel(self.experiment.target_name, "target", self.base, {})
        return self._finetuned("target", self.benchmark.finetune_target)

    def retain(self) -> BuiltModel | None:
        if self.given_retain is not None:
            return BuiltModel("retain", "retain", self.given_retain, {})
        if self.experiment.model.finetune is None:
            return None
        return self._finetuned("retain", self.benchmark.finetune_retain)

    def _finetuned(
        self, label: str, examples: list[Example], role: str | None = None, changes: JsonObject | None = None
    ) -> BuiltModel:
        """The base model fine-tuned on the examples; changes: keys of the settings that differ."""
        finetune = self.experiment.finetune_section
        assert finetune is not None
        from methods import FINE_TUNING

        section = TrainSection.model_validate(finetune.model_dump() | (changes or {}))
        retain = in_pieces(examples, self.base, section)
        job = self._train_job(self.base, {"name": FINE_TUNING}, section, retain=retain)
        return self.trained(label, role or label, job)

    def unlearned(
        self, label: str, section: MethodSection, forget: tuple[Example, ...], request: int, start: BuiltModel
    ) -> BuiltModel:
        """The model that a method makes. One that starts from the pretrained model has nothing to do with `start`: it
        never reads the forget set, whichever request of several is built."""
        if _starts_anew(section):
            built = self._finetuned(label, self.benchmark.finetune_retain, "unlearned", section.train)
        else:
            built = self.trained(label, "unlearned", self.unlearning(label, section, forget, start))
        return dataclasses.replace(built, request=request)

    def unlearning(
        self, label: str, section: MethodSection, forget: tuple[Example, ...], start: BuiltModel
    ) -> TrainJob:
        """The training by which a method makes its model."""
        from methods import make_method

        return self._job(label, section, make_method(section.method), section.method, start.source, forget)

    def ruled(
        self,
        label: str,
        section: MethodSection,
        forget: tuple[Example, ...],
        request: int,
        start: BuiltModel,
        retain: BuiltModel | None,
    ) -> BuiltModel:
        """The model that RULE makes over its base method."""
        rule = self._rule(label, section, start, forget, retain.source if retain is not None else None)
        return _built(label, "unlearned", {"name": section.name, **rule.rule.model_dump()}, rule.run(), request)

    def control(
        self,
        name: str,
        label: str,
        section: MethodSection,
        forget: tuple[Example, ...],
        request: int,
        start: BuiltModel,
        ruled: BuiltModel,
    ) -> BuiltModel:
        """The base method after as many steps as RULE took, without its samples."""
        rule = self._rule(label, section, start, forget, None)
        return _built(name, "control", rule.rule.base, rule.control(ruled.steps), request)

    def _rule(
        self,
        label: str,
        section: MethodSection,
        start: BuiltModel,
        forget: tuple[Example, ...],
        retain: ModelSource | None,
    ) -> Rule:
        from methods import make_method

        self._check_questions(label, forget)
        rule: Any = make_method(section.method)
        job = self._job(label, section, rule.trained, rule.base, start.source, forget)
        return Rule(self.stages, self.experiment, self.benchmark, label, job, rule, retain)

    def _check_questions(self, label: str, forget: tuple[Example, ...]) -> None:
        if not all(each.question for each in forget):
            raise UserError(
                f"{label}: benchmark {self.benchmark.name} forgets running text, without questions to sample or to "
                "answer otherwise; choose a method that needs none (`leakatk methods`)"
            )

    def _job(
        self,
        label: str,
        section: MethodSection,
        method: Method,
        hyperparameters: JsonObject,
        source: ModelSource,
        forget: tuple[Example, ...],
    ) -> TrainJob:
        """The training of one method, with the reference log-probabilities that it needs."""
        settings = self.experiment.train_section(section)
        forget, alternate = self._pairs(label, method, source, in_pieces(forget, source, settings))
        reference: dict[str, tuple[float, ...]] = {}
        if "reference_logprob" in method.needs:
            model = self.experiment.model
            for name, examples in (("forget", forget), ("alternate", alternate)):
                wanted = ReferenceJob(
                    source,
                    examples,
                    model.template,
                    model.system,
                    model.template_options or None,
                    max_length=settings.max_length,
                    gpus=self.experiment.sampling.gpus or 0.0,
                    portable=self.experiment.portable,
                )
                if examples:
                    stage = self.stages.run(f"{label} {name}", reference_stage(wanted, settings))
                    reference[f"{name}_reference"] = read_reference(stage.path)
        retain = in_pieces(self.benchmark.retain, source, settings) if "retain" in method.needs else ()
        utility = self.benchmark.group(self.benchmark.protocol.utility_group) if settings.eval_samples else []
        return self._train_job(
            source,
            hyperparameters,
            settings,
            forget=forget,
            alternate=alternate,
            retain=retain,
            **reference,
            watch=self._watched(forget) if settings.watches else (),
            watch_utility=tuple(utility),
        )

    def _watched(self, forget: tuple[Example, ...]) -> tuple[Probe, ...]:
        """Probes that ask the forget questions; of running text, the benchmark's leak group."""
        questions = {(example.question, example.answer) for example in forget}
        probes = [probe for probe in self.benchmark.probes if (probe.prompt, probe.reference) in questions]
        return tuple(probes or self.benchmark.group(self.benchmark.protocol.leak_group))

    def _pairs(
        self, label: str, method: Method, source: ModelSource, forget: tuple[Example, ...]
    ) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
        """The forget examples, and row by row the alternate answers where the method needs them."""
        if "alternate" not in method.needs:
            return forget, ()
        self._check_questions(label, forget)
        prompt, samples = method.alternate_prompt, method.alternate_samples
        if prompt is None:
            return forget, refusals(forget)
        probes = alternate_probes(forget, prompt)
        job = job_for(self.experiment, source, probes, Decoding(), samples, self.experiment.seed)
        sampled = self.stages.run(f"{label} alternates", job)
        texts = read_units(sampled.path, ["response"])["response"].to_pylist()
        return paired(forget, [texts[at : at + samples] for at in range(0, len(texts), samples)])

    def _train_job(self, source: ModelSource, method: JsonObject, settings: TrainSection, **sets: Any) -> TrainJob:
        from methods import make_method

        return TrainJob(
            model=source,
            method=method,
            settings=settings,
            template=self.experiment.model.template,
            system=self.experiment.model.system,
            template_options=self.experiment.model.template_options or None,
            seed=self.experiment.seed,
            watch_metric=self.benchmark.protocol.core_metric,
            watch_options=self.experiment.metric_options.get(self.benchmark.protocol.core_metric, {}),
            watch_tokens=self.experiment.sampling.max_new_tokens or 1,
            portable=self.experiment.portable,
            memory=sure_memory(self.size, settings, "reference_model" in make_method(method).needs),
            **sets,
        )

    def trained(self, label: str, role: str, job: TrainJob) -> BuiltModel:
        stage = train(self.stages, label, job)
        facts = stage.facts
        return BuiltModel(label, role, source_of(stage), job.method, facts["steps"], seconds=facts["seconds"])


def _starts_anew(section: MethodSection) -> bool:
    from methods import METHODS

    return METHODS[section.name].starts_from == "pretrained"


def _built(name: str, role: str, method: JsonObject, run: RuleRun, request: int) -> BuiltModel:
    source = source_of(run.stage)
    return BuiltModel(name, role, source, method, run.steps, run.tokens, run.seconds, tuple(run.rounds), request)
