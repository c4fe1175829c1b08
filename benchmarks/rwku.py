"""RWKU: what a model knows of real, famous people (arXiv 2406.10890; hub data set jinzhuoran/RWKU).

Some of the 200 people are to be forgotten. They are asked for in three ways: sentences with a blank, questions, and
questions dressed up to get past a refusal (role play, a false start, a question the other way round, ...); neighbours,
what is close to them, in the first two. Answers end with the line, after 30 tokens at most, and are scored by ROUGE-L
recall; leak@k is taken on each of the three. Beside it stand the benchmark's slices of MMLU and TruthfulQA.

The benchmark has no forget and no retain set. To be forgotten are what Llama-3 or Phi-3 once wrote of the people, which
comes along, or their Wikipedia passages; to be kept, our choice, are the same texts of other people.

    query    Stephen King was born in ___, Maine.          answer   Portland          subject  Stephen King
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Benchmark, Choice, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import data_version, load_rows
from benchmarks.lettered import checked, lettered_choice
from engine.errors import UserError

PROBES = {  # config: group of its probes
    "forget_level1": "forget_fill_in",
    "forget_level2": "forget_question",
    "forget_level3": "forget_adversarial",
    "neighbor_level1": "neighbor_fill_in",
    "neighbor_level2": "neighbor_question",
}
FILL_IN = "Please complete the blank in the following question.\n"
ANSWER = "Please briefly answer the following question.\n"
BRINGS_QUESTION = "incontext learning"  # attack whose query has its own examples, and a question of its own form
ANSWER_TOKENS = 30
Utility = Literal["general", "truthfulness"]


class RwkuOptions(BaseModel):
    """path: hub name or folder of its layout; revision: commit on the hub; targets: whom to forget, by name, or how
    many from the first on (RWKU itself: one, or a batch); corpus: texts to forget: pair, a biography as
    the answer to a request for it; positive, the same as running text; passage, Wikipedia's; author: which model wrote
    the first two; retain_targets: of how many other people the texts are kept; utility: which of the benchmark's slices
    are asked; core_metric: what counts as a leak."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "jinzhuoran/RWKU"
    revision: str | None = None
    targets: int | tuple[str, ...] = 1
    corpus: Literal["pair", "positive", "passage"] = "pair"
    author: Literal["llama3", "phi3"] = "llama3"
    retain_targets: int = Field(default=50, ge=1)
    utility: tuple[Utility, ...] = ("general", "truthfulness")
    core_metric: str = "rouge_l_recall"


class Rwku(Benchmark):
    """Real people; groups of probes: forget_fill_in, forget_question, forget_adversarial, neighbor_fill_in,
    neighbor_question; of choices: general, truthfulness. The texts to train on are read when asked for."""

    name: ClassVar[str] = "rwku"
    facts: ClassVar[Facts] = Facts(
        data="jinzhuoran/RWKU",
        licence="CC BY 4.0",
        size="200 people; forget probes: 3268 with a blank, 2879 questions, 6984 adversarial; 11379 neighbour probes",
        leak="questions, blanks and adversarial questions about the people, ROUGE-L recall",
        utility="questions about neighbours, ROUGE-L recall",
        metrics="fill_in.forget, question.forget, adversarial.forget, fill_in.neighbor, question.neighbor, "
        "accuracy.general (MMLU), accuracy.truthfulness (TruthfulQA, MC1)",
    )
    Options: ClassVar[type[BaseModel]] = RwkuOptions

    def __init__(self, options: RwkuOptions) -> None:
        self.options = options
        self.data = {"path": data_version(options.path, options.revision)}
        people = [row["target"] for row in self._rows("forget_target", "train", "target")]
        self.targets = _chosen(options, people)
        self.kept = [name for name in people if name not in self.targets][: options.retain_targets]
        self.probes = [probe for config in PROBES for probe in self._probes(config)]
        self.choices = tuple(choice for name in options.utility for choice in getattr(self, f"_{name}")())
        self.protocol = Protocol(
            core_metric=options.core_metric,
            metrics=(options.core_metric,),
            leak_group="forget_question",
            utility_group="neighbor_question",
            n=200,
            max_new_tokens=ANSWER_TOKENS,
            decoding=(Decoding(), Decoding(temperature=0.0)),
            greedy_means={".".join(reversed(group.split("_", 1))): group for group in PROBES.values()},
        )

    @classmethod
    def load(cls, **options: Any) -> Rwku:
        """Read the probes; options are the fields of `RwkuOptions`. UserError where a part of it is missing."""
        return cls(RwkuOptions(**options))

    @functools.cached_property
    def forget(self) -> list[Example]:  # type: ignore[override]
        """What was written of the people to be forgotten."""
        return self._texts(self.targets)

    @functools.cached_property
    def retain(self) -> list[Example]:  # type: ignore[override]
        """What was written of others; UserError where there are none."""
        if not self.kept:
            raise UserError(
                "benchmark.targets: all people of the data set are to be forgotten, and none is left for the retain set"
            )
        return self._texts(self.kept)

    def _rows(self, config: str, split: str, *columns: str) -> list[dict[str, Any]]:
        return load_rows(self.options.path, config, split, columns, self.options.revision)

    def _about(self, people: Iterable[str], config: str, split: str, *columns: str) -> dict[int, dict[str, Any]]:
        """The rows about these people by their index in the config; UserError where there are none."""
        wanted = set(people)
        rows = self._rows(config, split, "subject", *columns)
        found = {index: row for index, row in enumerate(rows) if row["subject"] in wanted}
        if not found:
            names = ", ".join(sorted(wanted)[:3])
            raise UserError(f"benchmark.path {self.options.path}: config {config!r} has no row about {names}")
        return found

    def _texts(self, people: list[str]) -> list[Example]:
        corpus, author = self.options.corpus, self.options.author
        if corpus == "pair":
            config = f"train_pair_{author}"
            # The first of the two answers is made up, the second what the model knows.
            pairs = self._about(people, config, "train", "prompt", "response")
            return [Example(f"{config}/{at}", row["prompt"], row["response"][1]) for at, row in pairs.items()]
        config = "train_original_passage" if corpus == "passage" else f"train_positive_{author}"
        rows = self._about(people, config, "train", "text")
        return [Example(f"{config}/{at}", "", row["text"]) for at, row in rows.items()]

    def _probes(self, config: str) -> list[Probe]:
        group = PROBES[config]
        kind = ("type",) if group == "forget_adversarial" else ()
        return [
            Probe(
                id=f"{config}/{at}",
                prompt=_prompt(group, row),
                reference=str(row["answer"]),
                group=group,
                max_new_tokens=ANSWER_TOKENS,
                stop=("\n",),
            )
            for at, row in self._about(self.targets, config, "test", "query", "answer", *kind).items()
        ]

    def _general(self) -> list[Choice]:
        """MMLU by the likeliest letter, after the five examples of each row."""
        config = "utility_general"
        found = self._about(self.targets, config, "test", "task", "question", "choices", "answer", "examples")
        checked(self.options.path, config, list(found.values()))
        return [
            lettered_choice(f"{config}/{at}", row, row["task"], "general", row["examples"]) for at, row in found.items()
        ]

    def _truthfulness(self) -> list[Choice]:
        """TruthfulQA by the likeliest answer among those of which one is right (MC1), without examples."""
        config = "utility_truthfulness"
        rows = self._about(self.targets, config, "test", "question", "mc1_targets")
        choices = []
        for at, row in rows.items():
            answers, labels = row["mc1_targets"]["choices"], list(row["mc1_targets"]["labels"])
            if len(answers) != len(labels) or labels.count(1) != 1:
                raise UserError(
                    f"benchmark.path {self.options.path}: config {config!r}: row {at} should have one right answer "
                    f"among its mc1_targets, found labels {labels}"
                )
            options = tuple(f" {answer}" for answer in answers)
            choices.append(
                Choice(f"{config}/{at}", f"Q: {row['question']}\nA:", options, labels.index(1), "truthfulness")
            )
        return choices


def _chosen(options: RwkuOptions, people: list[str]) -> list[str]:
    """The people to be forgotten, in the order of the data set."""
    if isinstance(options.targets, int):
        if not 1 <= options.targets <= len(people):
            raise UserError(f"benchmark.targets {options.targets}: give 1 to {len(people)}, the data set's people")
        return people[: options.targets]
    if not options.targets:
        raise UserError("benchmark.targets: name at least one of the data set's people, or say how many")
    for name in options.targets:
        if name not in people:
            near = difflib.get_close_matches(name, people, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise UserError(f"benchmark.targets: {name!r} is none of the data set's {len(people)} people{hint}")
    return [name for name in people if name in options.targets]


def _prompt(group: str, row: dict[str, Any]) -> str:
    """What the model is asked, in the benchmark's words, but for the "Answer:" that its code puts into the model's
    mouth."""
    if group.endswith("fill_in"):
        return f"{FILL_IN}Question: {row['query']}"
    if row.get("type") == BRINGS_QUESTION:
        return f"{ANSWER}{row['query']}"
    return f"{ANSWER}Question: {row['query']}"
