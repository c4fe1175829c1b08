"""The sections of an experiment file: their keys, defaults and what values may stand together.

Parsed values come in, frozen models come out. Knows nothing of files, or of other sections than its own.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from benchmarks.base import Decoding
from engine.models.lora import LoraSection

# The decodings that leak@k's paper reports (arXiv 2511.04934), its headline first.
GRID = (
    Decoding(),
    *(Decoding(temperature=t, top_p=p) for t in (1.0, 0.8, 0.2) for p in (1.0, 0.8, 0.2) if (t, p) != (1.0, 1.0)),
    Decoding(temperature=0.0),
)
GREEDY = (Decoding(temperature=0.0),)
Positive = Annotated[int, Field(ge=1)]
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BenchmarkSection(Section):
    """name: which benchmark; further keys are the benchmark's own options (`leakatk benchmarks` lists them)."""

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, object]:
        return dict(self.model_extra or {})


class TrainSection(Section):
    """How a model is trained, by AdamW.

    epochs: passes over the forget set, or over all data when fine-tuning; steps: in place of epochs, so many optimizer
    steps; lr: peak learning rate; batch_size: sequences of the forget set a step, over all workers; retain_batch_size:
    likewise of the retain set (None: as many as of the forget set); micro_batch_size: sequences a worker takes at once,
    the rest is accumulated (None: no accumulation).
    workers: processes that share each step; zero_stage: what DeepSpeed splits among them: 1 the optimizer's state, 2
    the gradients too, 3 the weights too (0 with one worker: without DeepSpeed); offload: the optimizer's state
    (zero_stage 1 to 3), or the parameters too (zero_stage 3), in main memory: slower, for less of the GPU's; precision:
    of the computation, and under DeepSpeed of the weights that it computes with; gpus: GPUs a worker (None: one where
    the cluster has as many), a fraction where several trainings share a device: one worker, zero_stage 0; cpus: CPUs
    and threads a worker (None: a quarter of a machine's, shared by the workers, at least one).
    weight_decay, betas: of AdamW; warmup: share of the steps after which the linear warm-up ends; decay_from: share of
    the steps after which the linear decay to final_lr begins; final_lr: where it ends, a share of lr; clip: largest
    gradient norm; max_length: tokens of a sequence, longer ones are cut; checkpoint_every: steps between checkpoints;
    lora: train adapters instead of all weights.
    eval_samples: look at the model while it is trained: greedy core metric on the forget prompts, leak@eval_samples and
    utility; eval_every: steps between looks; eval_prompts: prompts of each group that leak@k and utility are taken on;
    stop_at_greedy, stop_at_leak: end once what is seen is at or below each given.
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
    cpus: Positive | None = None

    @property
    def alone(self) -> bool:
        """Whether one worker trains, without DeepSpeed, whose own arithmetic is not portable: the norm that gradients
        are clipped by ends in MKL's square root (engine/cluster/numerics.py)."""
        return self.workers == 1 and self.zero_stage == 0

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
    """An OpenAI-compatible server, and how it is asked, which never changes results.

    url: up to /v1; key_variable: the environment variable that holds its key; concurrency: requests at once to each
    model; retries: of a request that failed; timeout: of a request, in seconds.
    """

    url: str
    key_variable: str = "OPENAI_API_KEY"
    concurrency: Positive = 16
    retries: int = Field(default=5, ge=0)
    timeout: float = Field(default=300.0, gt=0)


def _switches(given: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
    """ValueError for a word in place of a switch: to a template any text is true."""
    for name, value in given.items():
        if isinstance(value, str) and value.lower() in ("yes", "no", "on", "off"):
            raise ValueError(f"{name}: write true or false, found {value}")
    return given


class ModelSection(Section):
    """The target model, and the retain model to compare with.

    path: hub name or folder (None: the benchmark's own untrained model). retain: likewise, a model that never saw the
    forget set. revision, retain_revision: commit, branch or tag on the hub. trust_remote_code: run the Python code that
    comes with the model. template: chat (the tokenizer's own), plain (`Question: ...`, `Answer: ...` in two lines,
    OpenUnlearning's for base models), llama-2 (`[INST] ... [/INST]...`, TOFU's own), each with the end token after the
    answer; auto: chat where the tokenizer has a chat template, else plain. system: the system prompt (None: that of the
    model's family). template_options: handed to the chat template, such as `enable_thinking: true` (thinking is off
    where a template has a switch for it). finetune: given, `path` is the pretrained model and both models are
    fine-tuned from it; its keys are those of `train`. endpoint: a server (its URL is enough) that has the models:
    `path` and `retain` are their names there, and they are evaluated as they are.
    """

    path: str | None = None
    retain: str | None = None
    revision: str | None = None
    retain_revision: str | None = None
    trust_remote_code: bool = False
    template: Literal["auto", "chat", "plain", "llama-2"] = "auto"
    system: str | None = None
    template_options: Annotated[dict[str, bool | int | float | str], AfterValidator(_switches)] = {}
    finetune: dict[str, object] | None = None
    endpoint: EndpointSection | None = None

    @field_validator("endpoint", mode="before")
    @classmethod
    def _url_alone(cls, given: object) -> object:
        return {"url": given} if isinstance(given, str) else given


class MethodSection(Section):
    """One unlearning method.

    name: which method; further keys are its hyperparameters (`leakatk methods` lists them). label: its name in tables
    (None: the method's name). train: keys of `train` that differ for it.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str
    label: Label | None = None
    train: dict[str, object] = {}

    @property
    def hyperparameters(self) -> dict[str, object]:
        return dict(self.model_extra or {})

    @property
    def method(self) -> dict[str, object]:
        """The method's name and hyperparameters."""
        return {"name": self.name, **self.hyperparameters}


class AttackSection(Section):
    """One attack on every finished model.

    name: which attack; further keys are its options (`leakatk attacks` lists them).
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str

    @property
    def options(self) -> dict[str, object]:
        return dict(self.model_extra or {})


class AdaptiveSection(Section):
    """Draw as many samples of every prompt as leak@k needs (docs/statistics.md), instead of n: more, round by round.

    half_width: enough are drawn once the half-width of its sampling error at the largest leak.k is this in every leak
    group. pilot: samples to begin with, at least one more than the largest leak.k. max_samples: most of a prompt.
    """

    half_width: float = Field(default=0.02, gt=0, lt=1)
    pilot: int = Field(default=32, ge=4)
    max_samples: Positive = 2048


class SamplingSection(Section):
    """What is drawn of each model; a key that is not set is the benchmark's protocol's.

    n: samples a prompt at each decoding that is not greedy. max_new_tokens: most tokens of a sample. decoding: a list,
    or `grid`, the ten decodings of leak@k's paper, or `greedy`, one answer a prompt as the papers of the benchmarks do,
    with leak@1 of that answer. workers: sampling tasks at once (None: as many as the cluster has room for), which never
    changes results. gpus: GPUs a sampling worker, may be a fraction (None: one where the cluster has any, else 0).
    cpus: CPUs and threads of each (None: what their number leaves). precision: of the weights and the computation
    (None: bf16 on a GPU, else fp32; auto: bf16 on a CPU too that is fast at it); fp32 on CPUs gives the same bits on
    the same kind of machine. engine: `exact`, this project's own sampler, or `vllm`, for large models, whose samples
    follow the same law, drawn by a generator of its own (bf16 unless asked otherwise); auto: vllm where it is
    installed, there is a GPU, and the model is large. tensor_parallel: GPUs that share a model under vllm. max_rows:
    cache rows held at once (None: from free memory). adaptive: draw until leak@k by the core metric is known well
    enough, in place of n.

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
    cpus: Positive | None = None
    precision: Literal["fp32", "bf16", "auto"] | None = None
    engine: Literal["exact", "vllm", "auto"] = "exact"
    tensor_parallel: Positive = 1
    max_rows: Positive | None = None
    compat: Literal["leak-k"] | None = None
    adaptive: AdaptiveSection | None = None

    @model_validator(mode="after")
    def _shared_by_vllm(self) -> SamplingSection:
        if self.tensor_parallel > 1 and self.engine != "vllm":
            raise ValueError("tensor_parallel: GPUs share a model under engine: vllm alone")
        return self

    @field_validator("decoding", mode="before")
    @classmethod
    def _by_name(cls, given: object) -> object:
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
    """leak@k at k above the number of samples, by models of what was not drawn, with intervals and warnings.

    k: where, above the number of samples. estimators: beta-binomial, a model of how prompts' chances to leak are spread
    (binary metrics), and importance, the target model's samples weighted by how likely the judged model is to give
    them.
    """

    k: Annotated[tuple[Positive, ...], Field(min_length=1)]
    estimators: Annotated[tuple[Literal["beta-binomial", "importance"], ...], Field(min_length=1)]


class LeakSection(Section):
    """At which k leak@k is reported, and what beside it.

    k: at most sampling.n (None: the benchmark's protocol's). confidence: of the intervals and bounds. beams: width of
    the beam search that looks for leaking answers whose exact probability bounds leak@k from below, 0 = the reference
    and the sampled answers alone. beyond: leak@k at k above the number of samples, by a model of what was not drawn.
    """

    k: tuple[Positive, ...] | None = None
    confidence: float = Field(default=0.95, gt=0, lt=1)
    beams: int = Field(default=16, ge=0)
    beyond: BeyondSection | None = None
