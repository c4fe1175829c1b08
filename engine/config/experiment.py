"""The experiment file: typed, validated, with its defaults from the benchmark's protocol.

YAML text and `--set key.path=value` overrides come in; a frozen `Experiment` comes out. Every mistake in it is a
UserError of one line. Knows nothing of how an experiment is run.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from benchmarks import BENCHMARKS
from benchmarks.base import Decoding, Protocol
from engine.config.loader import override, read_yaml
from engine.errors import UserError, known, validated
from engine.models.lora import LoraSection
from engine.redact import refuse_secrets

# The decodings that leak@k's paper reports (arXiv 2511.04934), its headline first.
GRID = (
    Decoding(),
    *(Decoding(temperature=t, top_p=p) for t in (1.0, 0.8, 0.2) for p in (1.0, 0.8, 0.2) if (t, p) != (1.0, 1.0)),
    Decoding(temperature=0.0),
)
GREEDY = (Decoding(temperature=0.0),)
LEAK_K_TOP_K = 50  # Hugging Face's default, which the code released with the paper leaves on
Positive = Annotated[int, Field(ge=1)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchmarkSection(Section):
    """Which benchmark; further keys are the benchmark's own options (`leakatk benchmarks` lists them)."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class TrainSection(Section):
    """How a model is trained.

    epochs (passes over the forget set, or over all data when fine-tuning) or steps, the latter wins; lr: peak learning
    rate; batch_size, retain_batch_size: sequences a step over all workers, of the forget and of the retain set (None:
    as many as of the forget set); micro_batch_size: sequences a worker takes at once, the rest is accumulated (None:
    no accumulation); workers, zero_stage (0-3), precision; warmup, decay_from: shares of the steps after which the
    linear warm-up ends and the linear decay to final_lr (a share of lr) begins; clip: largest gradient norm;
    checkpoint_every: steps between checkpoints; lora: train adapters instead of all weights; gpus: GPUs a worker (None:
    one where the cluster has as many), a fraction where several trainings share a device: one worker, zero_stage 0;
    offload: the optimizer's state (zero_stage 1 to 3), or the parameters too (zero_stage 3), in main memory: slower,
    for less of the GPU's.
    eval_samples: look at the model every eval_every steps: greedy core metric on the forget prompts, leak@eval_samples
    and utility on eval_prompts of them. stop_at_greedy, stop_at_leak: end once what is seen is at or below each given.
    """

    epochs: float = Field(default=10, gt=0)
    steps: Positive | None = None
    lr: float = Field(default=1e-5, gt=0)
    batch_size: Positive = 32
    retain_batch_size: Positive | None = None
    micro_batch_size: Positive | None = None
    workers: Positive = 1
    zero_stage: Literal[0, 1, 2, 3] = 0
    offload: Literal["optimizer", "parameters"] | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    weight_decay: float = Field(default=0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    warmup: float = Field(default=0.1, ge=0, le=1)
    decay_from: float = Field(default=0.1, ge=0, le=1)
    final_lr: float = Field(default=0.0, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0)
    max_length: Positive = 512
    checkpoint_every: Positive = 100
    eval_every: Positive = 2
    eval_samples: Positive | None = None
    eval_prompts: Positive = 16
    stop_at_greedy: float | None = Field(default=None, ge=0, le=1)
    stop_at_leak: float | None = Field(default=None, ge=0, le=1)
    lora: LoraSection | None = None
    gpus: float | None = Field(default=None, gt=0, le=1)

    @property
    def watches(self) -> bool:
        """Whether the model is looked at while it is trained."""
        return self.eval_samples is not None or self.stop_at_greedy is not None

    @model_validator(mode="after")
    def _seen_before_it_stops(self) -> TrainSection:
        if self.stop_at_leak is not None and self.eval_samples is None:
            raise ValueError("stop_at_leak needs eval_samples, the n of the leak@n that is looked at")
        return self

    @model_validator(mode="after")
    def _shares_alone(self) -> TrainSection:
        if self.gpus is not None and self.gpus < 1 and (self.workers > 1 or self.zero_stage > 0):
            raise ValueError("gpus below 1 takes workers: 1 and zero_stage: 0; more workers need a GPU each")
        return self

    @model_validator(mode="after")
    def _offloadable(self) -> TrainSection:
        least = {"optimizer": 1, "parameters": 3}.get(self.offload or "", 0)
        if self.zero_stage < least:
            raise ValueError(f"offload: {self.offload} needs zero_stage {least} or more, found {self.zero_stage}")
        return self

    @model_validator(mode="after")
    def _divisible(self) -> TrainSection:
        for name in ("batch_size", "retain_batch_size"):
            size = getattr(self, name)
            if size is not None and size % self.workers:
                raise ValueError(f"{name} {size} does not divide by workers {self.workers}")
        if self.micro_batch_size is not None and (self.batch_size // self.workers) % self.micro_batch_size:
            raise ValueError(
                f"batch_size {self.batch_size} over {self.workers} workers does not divide by "
                f"micro_batch_size {self.micro_batch_size}"
            )
        shares = self.batch_size // (self.micro_batch_size or self.batch_size // self.workers)
        if self.retain_batch_size is not None and self.retain_batch_size < shares:
            raise ValueError(
                f"retain_batch_size {self.retain_batch_size} is less than the step's {shares} micro-batches"
            )
        return self


class EndpointSection(Section):
    """An OpenAI-compatible server: its URL up to /v1, the environment variable of its key, and how it is asked.

    concurrency: requests at once to each model; retries, timeout (seconds): of a request. They never change results.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Positive = 16
    retries: int = Field(default=5, ge=0)
    timeout: float = Field(default=300.0, gt=0)


class ModelSection(Section):
    """The target model, and the retain model to compare with.

    path: hub name or folder; None: the benchmark's own untrained model. retain: likewise, a model that never saw the
    forget set. finetune: given, `path` is the pretrained model and both models are fine-tuned from it; its keys are
    those of `train`. revision: commit, branch or tag on the hub. endpoint: a server (its URL is enough) that has the
    models: `path` and `retain` are their names there, and they are evaluated as they are.
    """

    path: str | None = None
    retain: str | None = None
    revision: str | None = None
    retain_revision: str | None = None
    trust_remote_code: bool = False
    template: Literal["auto", "chat", "plain"] = "auto"
    system: str | None = None
    finetune: dict[str, Any] | None = None
    endpoint: EndpointSection | None = None

    @field_validator("endpoint", mode="before")
    @classmethod
    def _url_alone(cls, given: Any) -> Any:
        return {"url": given} if isinstance(given, str) else given


class MethodSection(Section):
    """One unlearning method; further keys are its hyperparameters (`leakatk methods` lists them).

    label: its name in tables (default: the method's name); train: keys of `train` that differ for it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    label: Label | None = None
    train: dict[str, Any] = {}

    @property
    def hyperparameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class AdaptiveSection(Section):
    """Draw as many samples of each prompt as leak@k needs (docs/statistics.md), instead of n of each: until the
    half-width of its sampling error at the largest leak.k is half_width, or a prompt has max_samples. pilot: samples of
    every prompt to begin with."""

    half_width: float = Field(default=0.02, gt=0, lt=1)
    pilot: int = Field(default=32, ge=4)
    max_samples: Positive = 2048


class SamplingSection(Section):
    """n samples a prompt (not greedy), of at most max_new_tokens, at each decoding; None: the benchmark's protocol.

    decoding: a list, or `grid`, the ten decodings of leak@k's paper, or `greedy`, one answer a prompt as the papers of
    the benchmarks do, with leak@1 of that answer. workers: sampling tasks at once (None: as many as the cluster has
    room for); it never changes results. gpus: GPUs a sampling worker, may be a fraction (None: one where the cluster
    has any, else 0). max_rows: cache rows held at once (None: from free memory).
    adaptive: spend samples where leak@k by the core metric needs them, in place of n; other metrics are of greedy
    answers alone then. reweight: take the decodings after the first sampled one, where valid, from its samples by
    importance weights, the core metric alone; the first must be the full distribution (top_p 1, no top_k).

    compat: leak-k samples as the code released with arXiv 2511.04934 does, to compare with its published numbers, which
    is not what the paper says it does: top_k = 50 wherever none is given (the default of Hugging Face's generate, left
    on under "T = 1, p = 1"), and prompts decoded to text without special tokens and tokenised again, so that a chat
    prompt reaches the model without its turn marks. Evaluation samples so; RULE draws with the same top_k. Training,
    RULE and likelihoods see proper prompts, and failed scores do not become zeros.
    """

    n: Positive | None = None
    max_new_tokens: Positive | None = None
    decoding: tuple[Decoding, ...] | None = None
    workers: Positive | None = None
    gpus: float | None = Field(default=None, ge=0)
    max_rows: Positive | None = None
    compat: Literal["leak-k"] | None = None
    adaptive: AdaptiveSection | None = None
    reweight: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> SamplingSection:
        if self.adaptive is not None and self.reweight:
            raise ValueError("adaptive and reweight exclude each other: weights need the same n of every prompt")
        return self

    @field_validator("decoding", mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        named = {"grid": GRID, "greedy": GREEDY}
        if isinstance(given, str) and given not in named:
            raise ValueError("expected a list of {temperature, top_p}, grid or greedy")
        return named[given] if isinstance(given, str) else given

    @field_validator("decoding")
    @classmethod
    def _some(cls, given: tuple[Decoding, ...] | None) -> tuple[Decoding, ...] | None:
        if given is not None and not given:
            raise ValueError("expected at least one decoding")
        return given


class BeyondSection(Section):
    """leak@k at k above the number of samples, only by the estimators named here, each with its interval and warnings:
    beta-binomial, a model of how prompts' chances to leak are spread (binary metrics); importance, the target model's
    samples weighted by how likely the judged model is to give them."""

    k: Annotated[tuple[Positive, ...], Field(min_length=1)]
    estimators: Annotated[tuple[Literal["beta-binomial", "importance"], ...], Field(min_length=1)]


class LeakSection(Section):
    """k at which leak@k is reported and the confidence of its intervals. beams: width of the beam search that looks for
    leaking answers whose exact probability bounds leak@k from below, 0 = the reference and the sampled answers alone.
    """

    k: tuple[Positive, ...] | None = None
    confidence: float = Field(default=0.95, gt=0, lt=1)
    beams: int = Field(default=16, ge=0)
    beyond: BeyondSection | None = None


class Experiment(Section):
    """One experiment: a benchmark, a target model, methods, and how to train, sample, score and estimate.

    metric_options: by metric, its options, such as the path of its model (`leakatk score --help`). requests: sizes, in
    forget examples, of unlearning requests made one after the other: each method unlearns the first part of the forget
    set, then from that model the next, and after each one leak@k of all requests so far is reported (None: as the
    benchmark says, mostly all at once).
    """

    name: Label = "experiment"
    benchmark: BenchmarkSection
    model: ModelSection = ModelSection()
    methods: tuple[MethodSection, ...] = Field(default=())
    train: TrainSection = TrainSection()
    sampling: SamplingSection = SamplingSection()
    metrics: tuple[str, ...] | None = None
    metric_options: dict[str, dict[str, Any]] = {}
    leak: LeakSection = LeakSection()
    requests: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    seed: int = Field(default=0, ge=0, lt=2**63)

    def train_section(self, method: MethodSection) -> TrainSection:
        """The training settings of one method: the experiment's with the method's own over them."""
        return TrainSection.model_validate(self.train.model_dump() | method.train)

    @property
    def finetune_section(self) -> TrainSection | None:
        if self.model.finetune is None:
            return None
        return TrainSection.model_validate(self.model.finetune)

    def label(self, method: MethodSection) -> str:
        """The method's name in tables: its label, else its name in the style of `rule-npo`."""
        if method.label is not None:
            return method.label
        if method.name == "rule":
            base = method.hyperparameters.get("base", {"name": "npo"})  # methods/rule.py's default
            return f"rule-{base['name']}".replace("_", "-")
        return method.name.replace("_", "-")

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
        sampled = next((each for each in decoding if each.temperature > 0), None)
        if self.sampling.reweight and sampled is not None and (sampled.top_p < 1 or sampled.top_k is not None):
            raise UserError(
                f"sampling.reweight: the first sampled decoding must have top_p 1 and no top_k, found top_p "
                f"{sampled.top_p:g}, top_k {sampled.top_k}: its samples cannot stand for what it cuts off"
            )
        train = TrainSection.model_validate(protocol.train | self.train.model_dump(exclude_unset=True))
        own = protocol.finetune if self.model.path is None else None  # a given model is taken as it is
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
            }
        )


def load_experiment(path: Path | str, overrides: list[str] | None = None) -> Experiment:
    """Read an experiment file; overrides are `key.path=value`, the value in YAML. UserError for any mistake in them."""
    document = read_yaml(Path(path), "keys such as benchmark, model, methods")
    for each in overrides or []:
        override(document, each)
    return parse_experiment(document, str(path))


def parse_experiment(document: dict[str, Any], source: str) -> Experiment:
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
    if experiment.methods or model.finetune is not None:
        raise UserError(
            f"{source}: model.endpoint: models behind a server are evaluated only; leave out methods, finetune"
        )


def _check_methods(experiment: Experiment, source: str) -> None:
    if not experiment.methods:
        return
    from methods import METHODS  # imports torch

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


def _check_metrics(experiment: Experiment, source: str) -> None:
    from engine.metrics import METRICS, find_metric

    for metric in (*(experiment.metrics or ()), *experiment.metric_options):
        known(metric, METRICS, f"{source}: metrics", "leakatk score --help")
    for metric in experiment.metrics or ():
        options = experiment.metric_options.get(metric)
        if options or METRICS[metric].module not in ("exact", "rouge"):
            find_metric(metric, options)
