"""What every unlearning benchmark is made of: a forget set, a retain set, probes and a protocol.

Knows texts; knows nothing of tokenizers, models or Ray.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field


@dataclasses.dataclass(frozen=True)
class Example:
    """One item to train on. `id` is stable and unique in the benchmark; `question` is empty for running text."""

    id: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True)
class Probe:
    """One prompt to sample from. `reference` is the answer to score against; `fact`, where a benchmark knows it, is the
    shortest text whose presence means that the knowledge is there. `group` names the set that it is reported with.
    `paraphrased_answer` and `wrong_answers`, worded alike, are what the truth ratio compares; a set without paraphrases
    compares with `reference`. `cluster` names what the probe shares with others, such as their author: those of a
    cluster leak together.

    raw: the prompt is running text, given to the model without any template. max_new_tokens: most tokens of an answer,
    where fewer than the protocol's. stop: texts that end an answer, which is cut before the first of them.
    cut_reference: the reference, too, is cut to as many tokens as an answer may have.

    given_tokens, given_text: so many tokens of the reference, or its beginning up to there, stand after the prompt
    where the answer begins: they are not part of the answer, and the rest of reference and fact is what it is scored
    against. shots: questions with answers that stand before the prompt as earlier turns.
    """

    id: str
    prompt: str
    reference: str
    group: str
    fact: str | None = None
    paraphrased_answer: str | None = None
    wrong_answers: tuple[str, ...] = ()
    raw: bool = False
    max_new_tokens: int | None = None
    stop: tuple[str, ...] = ()
    cut_reference: bool = False
    cluster: str | None = None
    given_tokens: int | None = None
    given_text: str | None = None
    shots: tuple[tuple[str, str], ...] | None = None


def probe_clusters(benchmark: Benchmark) -> dict[str, str]:
    """The cluster of each probe about the forget set that has one, by the probe's id."""
    return {
        probe.id: probe.cluster
        for probe in benchmark.probes
        if probe.cluster is not None and is_leak_group(probe.group)
    }


def is_leak_group(group: str) -> bool:
    """Groups of prompts about the forget set are named forget, forget_paraphrase, ..."""
    return group.startswith("forget")


@dataclasses.dataclass(frozen=True)
class Choice:
    """One multiple-choice question: running text that the likeliest of `options` is to continue; `answer` is the index
    of the right one. `group` names the set whose accuracy it counts in."""

    id: str
    prompt: str
    options: tuple[str, ...]
    answer: int
    group: str


@dataclasses.dataclass(frozen=True)
class Facts:
    """What `leakatk benchmarks` says of a benchmark: data sets, licence and size as published, and on what and by which
    metric leak@k and utility are taken; metrics: what is reported beside them."""

    data: str
    licence: str
    size: str
    leak: str
    utility: str
    metrics: str


Attack = Literal["loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm"]


class Decoding(BaseModel):
    """How samples are drawn.

    temperature: 0 = greedy. top_p: of the likeliest tokens that make so much of the probability. top_k: of so many of
    the likeliest tokens (None: of all).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=1)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature == 0

    @property
    def restricted(self) -> bool:
        """Whether top_p or top_k cuts off tokens."""
        return not self.greedy and (self.top_p < 1 or self.top_k is not None)

    @property
    def name(self) -> str:
        """Short name in tables and folders: T1-p1, T0.8-p0.2-k50, greedy."""
        if self.greedy:
            return "greedy"
        top_k = f"-k{self.top_k}" if self.top_k else ""
        return f"T{self.temperature:g}-p{self.top_p:g}{top_k}"


class Protocol(BaseModel):
    """A benchmark's own way to be measured; every part can be overridden by the experiment.

    core_metric says what counts as a leak; leak_group and utility_group name the groups of probes that leak@k and the
    utility are taken on (greedy answers; where utility_group is a group of choices, accuracy); n samples a prompt; k at
    which leak@k is reported. train, finetune: keys of the experiment's `train` and `model.finetune` sections that suit
    the benchmark's own model, where it brings one.

    What is reported beside leak@k (engine/evaluation/benchmark_metrics.py), nothing by default. model_utility: groups
    of probes whose probability, ROUGE and truth ratio make it, each with the form of its probability, plain or
    normalised over the wrong answers; it is then the model's utility. forget_group: probes that forget quality,
    extraction strength and exact memorization are taken on. greedy_means: by name of the metric, the group whose mean
    ROUGE of greedy answers it is. attacks: membership inference, `members` against `holdout`. published_auc: AUC of
    Min-40% of the retain model that the benchmark's authors trained, for privleak_published. rouge: which ROUGE.
    fluency_group: probes whose greedy answers a classifier looks at, how little of them is gibberish. requests: sizes
    of the requests in which a method is to unlearn the forget set, one after the other (None: at once). numerics: the
    arithmetic on CPUs, of the model that the benchmark brings.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    core_metric: str
    metrics: tuple[str, ...]
    leak_group: str
    utility_group: str
    n: int = 200
    max_new_tokens: int = 200
    decoding: tuple[Decoding, ...] = (Decoding(), Decoding(temperature=0.0))
    k: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)
    train: dict[str, Any] = {}
    finetune: dict[str, Any] | None = None
    model_utility: dict[str, Literal["plain", "normalised"]] = {}
    forget_group: str | None = None
    greedy_means: dict[str, str] = {}
    attacks: tuple[Attack, ...] = ()
    published_auc: float | None = None
    rouge: str = "rouge_l_recall"
    fluency_group: str | None = None
    requests: tuple[int, ...] | None = None
    numerics: Literal["native", "portable"] = "native"


class Benchmark:
    """Base of all benchmarks. `load(**options)` takes the fields of `Options` and returns a filled benchmark.

    forget, retain: what to forget and what to keep. probes: all prompts, of every group; those whose group begins with
    "forget" are about the forget set. choices: multiple-choice questions, if any. finetune_forget, finetune_retain:
    what a target model is fine-tuned on, where it is more than the two sets (paraphrases), and a retain model, the
    latter alone; finetune_target: both in the target model's order. members, holdout: what membership inference is to
    tell apart; holdout is like the members, but no model has seen it (empty: there is none).
    data: what the data sets that were read hold, by option of the benchmark: a commit or a digest (benchmarks/hub.py).
    """

    name: ClassVar[str]
    facts: ClassVar[Facts]
    Options: ClassVar[type[BaseModel]]
    forget: list[Example]
    retain: list[Example]
    probes: list[Probe]
    choices: tuple[Choice, ...] = ()
    protocol: Protocol
    holdout: list[Example] = []
    data: dict[str, str] = {}

    @property
    def members(self) -> list[Example]:
        return self.forget

    @property
    def finetune_forget(self) -> list[Example]:
        return self.forget

    @property
    def finetune_retain(self) -> list[Example]:
        return self.retain

    @property
    def finetune_target(self) -> list[Example]:
        return self.finetune_forget + self.finetune_retain

    @classmethod
    def load(cls, **options: Any) -> Benchmark:
        raise NotImplementedError

    def base_model(self, folder: Path, seed: int) -> None:
        """Write an untrained model with tokenizer to `folder`; only benchmarks that bring their own model have one."""
        raise NotImplementedError(f"{self.name} brings no model of its own")

    def base_inputs(self, options: dict[str, Any]) -> dict[str, Any]:
        """What the model of `base_model` depends on, beside its seed: the benchmark's options, or less."""
        return options | ({"data": self.data} if self.data else {})

    def example_of(self, probe: Probe) -> str | None:
        """Id of the forget example that a probe is about, None where that is not known: a probe has the id of its
        example, a paraphrase something after a slash."""
        ids = {example.id for example in self.forget}
        return next((each for each in (probe.id, probe.id.rpartition("/")[0]) if each in ids), None)

    def group(self, name: str) -> list[Probe]:
        """The probes of one group, in order."""
        return [probe for probe in self.probes if probe.group == name]
