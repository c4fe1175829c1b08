"""The experiment file: typed, validated, with its defaults from the benchmark's protocol.

YAML text and `--set key.path=value` overrides come in; a frozen `Experiment` comes out. Every mistake in it is a
UserError of one line. Knows nothing of how an experiment is run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from benchmarks import BENCHMARKS
from benchmarks.base import Decoding, Protocol
from engine.config.loader import Overrides, apply_overrides, read_yaml
from engine.config.sections import (
    AttackSection,
    BenchmarkSection,
    Label,
    LeakSection,
    MethodSection,
    ModelSection,
    Positive,
    SamplingSection,
    Section,
    TrainSection,
)
from engine.errors import UserError, known, validated
from engine.redact import refuse_secrets

LEAK_K_TOP_K = 50  # Hugging Face's default, which the code released with the paper leaves on


class Experiment(Section):
    """One experiment: a benchmark, a target model, methods, and how to train, sample, score and estimate.

    name: of the run, its folder and its record: letters, digits and `._-`, at most 80. benchmark: what is to be
    forgotten, what is to be kept, and what is asked. model: the target model, and the retain model to compare with.
    methods: what makes unlearned models of the target model (none: the target model alone is evaluated). train: how the
    methods train. sampling: what is drawn of each model. metrics: core metrics that score the samples, beside the
    benchmark's own, which always does (None: its protocol's). metric_options: by metric, its options, such as the path
    of its model (`leakatk score --help`). leak: at which k leak@k is reported. attacks: what is done to every finished
    model, to see whether it stays forgotten (`leakatk attacks`). requests: sizes, in forget examples, of unlearning
    requests made one after the other: each method unlearns the first part of the forget set, then from that model the
    next, and after each one leak@k of all requests so far is reported (None: as the benchmark says, mostly all at
    once). numerics: arithmetic on CPUs, `native`, the machine's fastest, or `portable`, slower, whose bits are the same
    on every x86-64 machine with AVX2 (None: as the benchmark says for a model that it brings, else native). seed: of
    all that is random in training and sampling.
    """

    name: Label = "experiment"
    benchmark: BenchmarkSection
    model: ModelSection = ModelSection()
    methods: tuple[MethodSection, ...] = Field(default=())
    train: TrainSection = TrainSection()
    sampling: SamplingSection = SamplingSection()
    metrics: tuple[str, ...] | None = None
    metric_options: dict[str, dict[str, object]] = {}
    leak: LeakSection = LeakSection()
    attacks: tuple[AttackSection, ...] = ()
    requests: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    numerics: Literal["native", "portable"] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)

    def train_section(self, method: MethodSection) -> TrainSection:
        """The training settings of one method: the experiment's with the method's own over them."""
        return TrainSection.model_validate(self.train.model_dump() | method.train)

    @property
    def finetune_section(self) -> TrainSection | None:
        if self.model.finetune is None:
            return None
        return TrainSection.model_validate(self.model.finetune)

    @property
    def portable(self) -> bool:
        """Whether arithmetic is the same on all CPUs."""
        return self.numerics == "portable"

    @property
    def target_name(self) -> str:
        """What tables call the target model: where nothing is unlearned from it, it is just the model."""
        return "target" if self.methods or self.model.finetune is not None else "model"

    @property
    def headline_decoding(self) -> Decoding | None:
        """The first decoding that samples: what RULE, a search and estimates beyond n go by. None where all are greedy
        or none is named."""
        return next((each for each in self.sampling.decoding or () if each.temperature > 0), None)

    def label(self, method: MethodSection) -> str:
        """The method's name in tables: its label, else its name in the style of `rule-npo`, base methods after it."""
        if method.label is not None:
            return method.label
        from methods import make_method

        return "-".join((method.name, *make_method(method.method).base_names)).replace("_", "-")

    def on_devices(self, gpus: float, fast_bf16: bool) -> Experiment:
        """The experiment with so many GPUs a sampling worker, and a precision where none or `auto` is asked for.
        fast_bf16: whether CPUs are fast at bfloat16. UserError where arithmetic is to be portable and cannot be."""
        asked = self.sampling.precision
        if asked == "bf16" and self.portable and not gpus:
            raise UserError(
                "sampling.precision: bf16 gives other bits on other processors; set numerics: native or precision: fp32"
            )
        fast = bool(gpus) or self.sampling.engine == "vllm" or (asked == "auto" and fast_bf16 and not self.portable)
        precision = ("bf16" if fast else "fp32") if asked in (None, "auto") else asked
        sampling = self.sampling.model_copy(update={"gpus": gpus, "precision": precision})
        return self.model_copy(update={"sampling": sampling})

    def with_protocol(self, protocol: Protocol) -> Experiment:
        """The experiment with every unset key filled from the benchmark's protocol; UserError where k > n."""
        decoding = self.sampling.decoding or protocol.decoding
        n = (self.sampling.n or protocol.n) if any(each.temperature > 0 for each in decoding) else 1
        if self.sampling.compat == "leak-k":
            decoding = tuple(each.model_copy(update={"top_k": each.top_k or LEAK_K_TOP_K}) for each in decoding)
        sampling = self.sampling.model_copy(
            update={
                "n": n,
                "max_new_tokens": self.sampling.max_new_tokens or protocol.max_new_tokens,
                "decoding": decoding,
            }
        )
        adaptive = self.sampling.adaptive
        most, name = (n, "sampling.n") if adaptive is None else (adaptive.max_samples, "sampling.adaptive.max_samples")
        if self.leak.k is not None and max(self.leak.k) > most:
            raise UserError(
                f"leak.k: {max(self.leak.k)} is more than {name} = {most}; sample more, ask for smaller k, or name an "
                "estimator for it in leak.beyond"
            )
        k = tuple(sorted(set(self.leak.k))) if self.leak.k else tuple(k for k in protocol.k if k <= most)
        train = TrainSection.model_validate(protocol.train | self.train.model_dump(exclude_unset=True))
        brought = self.model.path is None  # a given model is taken as it is
        own = protocol.finetune if brought else None
        finetune = self.model.finetune if self.model.finetune is not None else own
        metrics = self.metrics or protocol.metrics
        return self.model_copy(
            update={
                "train": train,
                "model": self.model.model_copy(update={"finetune": finetune}),
                "sampling": sampling,
                "metrics": tuple(dict.fromkeys((protocol.core_metric, *metrics))),
                "requests": self.requests or (protocol.requests if self.methods else None),
                "leak": self.leak.model_copy(update={"k": k}),
                "numerics": self.numerics
                or (protocol.numerics if brought and sampling.engine == "exact" else "native"),
            }
        )


def load_experiment(path: Path | str, overrides: Overrides = ()) -> Experiment:
    """Read an experiment file. UserError for any mistake in it.

    overrides: what differs from the file: texts "train.lr=2e-5", the value in YAML, or a mapping {"train.lr": 2e-5}.
    """
    document = read_yaml(Path(path), "keys such as benchmark, model, methods")
    apply_overrides(document, overrides)
    return parse_experiment(document, str(path))


def evaluation_of(
    model: str,
    benchmark: str,
    retain: str | None = None,
    endpoint: str | None = None,
    key_variable: str | None = None,
    overrides: Overrides = (),
    attacks: Sequence[str] = (),
) -> Experiment:
    """The experiment that evaluates a model which exists: no training, leak@k and utility, excess over `retain`.

    model, retain: folders or hub names; with endpoint, an OpenAI-compatible server, their names there. key_variable:
    the environment variable of its key. attacks: names of attacks, with their default options. UserError for any
    mistake.
    """
    section: dict[str, object] = {"path": model, "retain": retain}
    if endpoint:
        section["endpoint"] = {"url": endpoint} | ({"key_variable": key_variable} if key_variable else {})
    document: dict[str, object] = {"name": "evaluate", "benchmark": {"name": benchmark}, "model": section}
    if attacks:
        document["attacks"] = [{"name": name} for name in attacks]
    apply_overrides(document, overrides)
    return parse_experiment(document, "leakatk evaluate")


def parse_experiment(document: dict[str, object], source: str) -> Experiment:
    """Validate a parsed experiment with its methods and benchmark options; `source` names it in errors."""
    refuse_secrets(document, source)
    experiment = validated(Experiment, document, source)
    benchmark = experiment.benchmark
    known(benchmark.name, BENCHMARKS, f"{source}: benchmark.name", "leakatk benchmarks")
    validated(BENCHMARKS[benchmark.name].Options, benchmark.options, f"{source}: benchmark")
    if experiment.model.finetune is not None:
        validated(TrainSection, experiment.model.finetune, f"{source}: model.finetune")
    _check_endpoint(experiment, source)
    _check_methods(experiment, source)
    _check_adapters(experiment, source)
    _check_metrics(experiment, source)
    return experiment


def _check_endpoint(experiment: Experiment, source: str) -> None:
    from engine.models.openai_client import checked_url

    model = experiment.model
    if model.endpoint is None:
        return
    checked_url(model.endpoint.url, f"{source}: model.endpoint")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", model.endpoint.key_variable):  # not shown: it may be the key itself
        raise UserError(
            f"{source}: model.endpoint.key_variable: not the name of an environment variable; the key itself stands in "
            "the environment alone"
        )
    if model.path is None:
        raise UserError(f"{source}: model.path: name the model as the server at model.endpoint knows it")
    if model.template == "llama-2":
        raise UserError(f"{source}: model.template: llama-2 is for models that run here; a server takes chat or plain")
    if experiment.methods or model.finetune is not None:
        raise UserError(
            f"{source}: model.endpoint: models behind a server are evaluated only; leave out methods, finetune"
        )


def _check_methods(experiment: Experiment, source: str) -> None:
    if not experiment.methods:
        return
    from methods import METHODS

    labels = []
    for index, method in enumerate(experiment.methods):
        where = f"{source}: methods[{index}]"
        known(method.name, METHODS, f"{where}.name", "leakatk methods")
        validated(METHODS[method.name], method.hyperparameters, f"{where} ({method.name})")
        validated(TrainSection, experiment.train.model_dump() | method.train, f"{where}.train")
        labels.append(experiment.label(method))
    for label in labels:
        if labels.count(label) > 1 or label in ("target", "retain"):
            raise UserError(f"{source}: methods: the name {label} is taken; give this method a `label` of its own")


def _check_adapters(experiment: Experiment, source: str) -> None:
    """UserError where methods would start from an adapter that cannot be started from."""
    finetune = experiment.finetune_section
    if finetune is None or finetune.lora is None or finetune.lora.merge:
        return
    for index, method in enumerate(experiment.methods):
        settings = experiment.train_section(method)
        if settings.zero_stage == 3:
            why = f"methods[{index}] loads the target model in shards (ZeRO-3), into which no adapter can be merged"
        elif settings.lora is not None and not settings.lora.merge and experiment.sampling.engine == "vllm":
            why = "vLLM serves one adapter beside a whole model, not a method's adapter on the target's"
        else:
            continue
        raise UserError(f"{source}: model.finetune.lora: {why}; set model.finetune.lora.merge: true")


def _check_metrics(experiment: Experiment, source: str) -> None:
    from engine.metrics import METRICS, find_metric

    for metric in (*(experiment.metrics or ()), *experiment.metric_options):
        known(metric, METRICS, f"{source}: metrics", "leakatk score --help")
    for metric in experiment.metrics or ():
        options = experiment.metric_options.get(metric)
        if options or METRICS[metric].module not in ("exact", "rouge"):
            find_metric(metric, options)
