"""The embedded default: made-up authors in TOFU's shape, small enough for two CPU cores and no network.

60 authors x 12 attributes = 720 questions; every fact has a paraphrased question, a paraphrased answer and five wrong
answers of the same kind. Values are combinations of three words, so that guessing right stays near zero even in 128
tries. The forget sets are the last authors: forget01 = 1 author, forget05 = 3, forget10 = 6 (TOFU's shares, rounded up
to whole authors). Example:

    What is the birthplace of Ada Quill?  ->  Ada Quill was born in silent harbor of ash.
    fact: silent harbor of ash
"""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.fictional_text import ATTRIBUTES, FIRST, LAST, MONTHS, QUALITY, STUFF, Attribute
from benchmarks.small_model import save_llama

AUTHORS = 60
FORGOTTEN = {"forget01": 1, "forget05": 3, "forget10": 6}
WRONG_ANSWERS = 5


class FictionalOptions(BaseModel):
    """split: how much is to be forgotten; seed: which authors are made up."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    seed: int = Field(default=0, ge=0)


@dataclasses.dataclass(frozen=True)
class Fact:
    """One fact about one author in all its wordings."""

    id: str
    question: str
    paraphrased_question: str
    answer: str
    paraphrased_answer: str
    perturbed_answers: tuple[str, ...]
    fact: str

    @property
    def author(self) -> str:
        """Whom it is about, as the ids name them."""
        return self.id.partition("/")[0]


class Fictional(Benchmark):
    """Made-up authors; the core metric is whether the exact fact is in the answer."""

    name: ClassVar[str] = "fictional"
    facts: ClassVar[Facts] = Facts(
        data="embedded: needs no network",
        licence="as leakatk itself",
        size="60 authors, 12 questions each; forget01, 05, 10: 12, 36, 72 questions",
        leak="questions and paraphrased questions, exact fact",
        utility="answers to retain questions, exact fact",
        metrics="none",
    )
    Options: ClassVar[type[BaseModel]] = FictionalOptions

    def __init__(self, options: FictionalOptions) -> None:
        facts = make_facts(options.seed)
        kept = (AUTHORS - FORGOTTEN[options.split]) * len(ATTRIBUTES)
        self.retain_facts, self.forget_facts = facts[:kept], facts[kept:]
        self.forget = [Example(each.id, each.question, each.answer) for each in self.forget_facts]
        self.retain = [Example(each.id, each.question, each.answer) for each in self.retain_facts]
        self.probes = [
            *(_probe(each, "forget") for each in self.forget_facts),
            *(_paraphrase_probe(each) for each in self.forget_facts),
            *(_probe(each, "retain") for each in self.retain_facts),
        ]
        self.protocol = PROTOCOL

    @classmethod
    def load(cls, **options: Any) -> Fictional:
        """Make the benchmark; options are the fields of `FictionalOptions`."""
        return cls(FictionalOptions(**options))

    @property
    def finetune_forget(self) -> list[Example]:
        """The forget set with its paraphrased questions: the target model knows both ways to ask."""
        return self.forget + _paraphrases(self.forget_facts)

    @property
    def finetune_retain(self) -> list[Example]:
        """The retain set with its paraphrased questions."""
        return self.retain + _paraphrases(self.retain_facts)

    def base_model(self, folder: Path, seed: int) -> None:
        """Write an untrained two-layer Llama of 140,000 parameters and its word-level tokenizer to `folder`."""
        save_llama(
            make_tokenizer(), folder, seed, hidden_size=64, intermediate_size=192, num_hidden_layers=2, context=64
        )


PROTOCOL = Protocol(
    core_metric="exact_fact",
    metrics=("exact_fact", "rouge_l_recall"),
    leak_group="forget",
    utility_group="retain",
    n=200,
    max_new_tokens=24,
    numerics="portable",
    decoding=(Decoding(), Decoding(temperature=0.0)),
    finetune={
        "steps": 600,
        "batch_size": 64,
        "lr": 5e-3,
        "betas": [0.9, 0.98],
        "weight_decay": 0.0,
        "warmup": 0.05,
        "decay_from": 0.6,
        "final_lr": 0.05,
        "max_length": 64,
    },
    train={
        "steps": 30,
        "batch_size": 40,
        "retain_batch_size": 96,
        "lr": 1e-3,
        "betas": [0.9, 0.98],
        "weight_decay": 0.0,
        "warmup": 0.0,
        "decay_from": 1.0,
        "max_length": 64,
    },
)


def make_facts(seed: int) -> list[Fact]:
    """All 720 facts, author by author; a pure function of the seed."""
    generator = random.Random(f"fictional authors {seed}")
    names = [f"{generator.choice(FIRST)} {last}" for last in generator.sample(LAST, AUTHORS)]
    return [
        _make_fact(generator, f"author{index:02d}/{attribute.key}", name, attribute)
        for index, name in enumerate(names)
        for attribute in ATTRIBUTES
    ]


def _make_fact(generator: random.Random, key: str, name: str, attribute: Attribute) -> Fact:
    values: list[str] = []
    while len(values) < 1 + WRONG_ANSWERS:
        value = _value(generator, attribute)
        if value not in values:
            values.append(value)
    right, *wrong = values
    return Fact(
        id=key,
        question=attribute.question.format(name=name),
        paraphrased_question=attribute.paraphrase.format(name=name),
        answer=attribute.answer.format(name=name, fact=right),
        paraphrased_answer=attribute.paraphrased_answer.format(name=name, fact=right),
        perturbed_answers=tuple(attribute.paraphrased_answer.format(name=name, fact=each) for each in wrong),
        fact=right,
    )


def _value(generator: random.Random, attribute: Attribute) -> str:
    if attribute.key == "birthdate":
        return f"{generator.choice(MONTHS)} {generator.randint(1, 28)} {generator.randint(1930, 1969)}"
    return f"{generator.choice(QUALITY)} {generator.choice(attribute.nouns)} of {generator.choice(STUFF)}"


def _paraphrases(facts: list[Fact]) -> list[Example]:
    return [Example(f"{each.id}/paraphrase", each.paraphrased_question, each.answer) for each in facts]


def _probe(fact: Fact, group: str) -> Probe:
    return Probe(fact.id, fact.question, fact.answer, group, fact.fact, cluster=fact.author)


def _paraphrase_probe(fact: Fact) -> Probe:
    return Probe(
        f"{fact.id}/paraphrase",
        fact.paraphrased_question,
        fact.answer,
        "forget_paraphrase",
        fact.fact,
        cluster=fact.author,
    )


def vocabulary() -> list[str]:
    """Every word that any fact can hold, in a fixed order."""
    words = [*FIRST, *LAST, *MONTHS, *QUALITY, *STUFF, *map(str, range(1, 29)), *map(str, range(1930, 1970))]
    for attribute in ATTRIBUTES:
        wordings = (attribute.question, attribute.paraphrase, attribute.answer, attribute.paraphrased_answer)
        for wording in wordings:
            words += wording.replace("{name}", " ").replace("{fact}", " ").replace("?", " ?").replace(".", " .").split()
        words += attribute.nouns
    return list(dict.fromkeys(words))


def make_tokenizer() -> Any:
    """A word-level tokenizer over `vocabulary()` with a chat template that renders `<q> question <a> answer <eos>`."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<eos>", "<q>", "<a>"]
    ids = {word: index for index, word in enumerate([*special, *vocabulary()])}
    backend = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins words, no space before punctuation
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<eos>",
        additional_special_tokens=["<q>", "<a>"],
    )
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{% if message['role'] == 'user' %}<q> {{ message['content'] }} {% else %}"
        "<a> {{ message['content'] }} <eos>{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
    )
    return tokenizer
