"""TOFU: 200 fictitious authors, 20 questions each (arXiv 2401.06121; hub data set locuslab/TOFU, MIT).

forget01, 05 and 10 are the last 2, 10 and 20 authors; the rest is the retain set. leak@k is taken on the paraphrased
questions, as in arXiv 2511.04934. Rows are known by their index: one question text stands twice in the data.

    Q  What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre of leadership?
    A  The author's full name is Hsiao Yun-Hwa.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from benchmarks.base import Attack, Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import data_version, load_rows
from benchmarks.small_model import write_model
from engine.errors import UserError
from engine.fingerprint import fingerprint

RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
FIRST = {"forget01": 198, "forget05": 190, "forget10": 180}  # the first author of each forget set; the last is 199
AUTHORS, QUESTIONS = 200, 20
UtilityGroup = Literal["retain", "real_authors", "world_facts"]
UTILITY: dict[UtilityGroup, Literal["plain", "normalised"]] = {  # and the form of its probability
    "retain": "plain",
    "real_authors": "normalised",
    "world_facts": "normalised",
}
ATTACKS: tuple[Attack, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm")


class TofuOptions(BaseModel):
    """path: hub name or folder of its layout; split: which share of the authors is to be forgotten, in percent;
    revision: commit on the hub; core_metric: what counts as a leak (the paper's ES needs an NLI model from the hub;
    rouge_l_recall needs nothing); limit_authors: keep so many authors, of whom the split's share, at least one, is
    forgotten, and the other sets in proportion: whatever the split they are the same authors, as in the whole;
    forget_authors: forget so many of the split's authors instead of its share (intervals are by author); attacks:
    membership inference against the holdout set, [] for none (gradnorm takes a backward pass for each of its texts);
    fluency: report how little of the answers is gibberish (a classifier from the hub, or metric_options.fluency.model);
    utility_groups: sets that model utility is taken on; learn_paraphrases: where target and retain model are fine-tuned
    here, they learn the paraphrased questions too, of the forget set and of the retain questions that have them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "locuslab/TOFU"
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    revision: str | None = None
    core_metric: str = "entailment_es"
    limit_authors: int | None = Field(default=None, ge=2, le=AUTHORS)
    forget_authors: int | None = Field(default=None, ge=1)
    attacks: tuple[Attack, ...] = ATTACKS
    fluency: bool = False
    utility_groups: tuple[UtilityGroup, ...] = tuple(UTILITY)
    learn_paraphrases: bool = False

    @model_validator(mode="after")
    def _authors_suffice(self) -> Self:
        most = AUTHORS - FIRST[self.split]
        if self.forget_authors and self.forget_authors > min(most, (self.limit_authors or AUTHORS) - 1):
            raise ValueError(f"forget_authors: at most the {most} of {self.split}, and fewer than limit_authors")
        return self


class Tofu(Benchmark):
    """Fictitious authors; groups of probes: forget, forget_paraphrase, retain, real_authors, world_facts."""

    name: ClassVar[str] = "tofu"
    facts: ClassVar[Facts] = Facts(
        data="locuslab/TOFU",
        licence="MIT",
        size="200 authors, 20 questions each; forget01, 05, 10: 40, 200, 400 questions",
        leak="paraphrased questions, ES (entailment and ROUGE-L recall)",
        utility="model utility: probability, ROUGE-L and truth ratio on retain, real authors, world facts",
        metrics="model_utility, forget_quality (KS), probability, rouge, truth_ratio, extraction_strength, "
        "exact_memorization, mia_loss, mia_zlib, mia_min_k, mia_min_k_plus_plus, mia_reference, mia_gradnorm, "
        "privleak, fluency (benchmark.fluency=true)",
    )
    Options: ClassVar[type[BaseModel]] = TofuOptions

    def __init__(self, options: TofuOptions) -> None:
        split, retain_split = options.split, RETAIN[options.split]
        self.data = {"path": data_version(options.path, options.revision)}
        share = (options.limit_authors or AUTHORS) / AUTHORS
        forgotten, kept = _authors(options.limit_authors or AUTHORS, split, options.forget_authors)

        def rows(config: str, *columns: str) -> list[dict[str, Any]]:
            return load_rows(options.path, config, "train", ("question", "answer", *columns), options.revision)

        def of(authors: list[int], config: str, *columns: str) -> dict[int, dict[str, Any]]:
            """The rows of these authors by their index in a config that begins with the set's first author."""
            found = rows(config, *columns)
            first = FIRST.get(config.removesuffix("_perturbed"), 0)
            indices = [(author - first) * QUESTIONS + each for author in authors for each in range(QUESTIONS)]
            return {index: found[index] for index in indices if index < len(found)}

        def general(group: str) -> list[Probe]:
            found = rows(f"{group}_perturbed", "perturbed_answer")
            return _probes(f"{group}_perturbed", group, dict(enumerate(found[: math.ceil(len(found) * share)])))

        paraphrases = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
        perturbed = of(forgotten, f"{split}_perturbed", *paraphrases)
        kept_perturbed = of(kept, "retain_perturbed", *paraphrases)
        self.forget = _examples(split, of(forgotten, split))
        self.retain = _examples(retain_split, of(kept, retain_split))
        self.paraphrased = [_paraphrased(split, perturbed), _paraphrased("retain_perturbed", kept_perturbed)]
        tail = [author for author in kept if author >= FIRST["forget10"]]
        if options.learn_paraphrases and tail:  # authors that a larger split would forget
            other = of(tail, "forget10_perturbed", *paraphrases)
            self.paraphrased[1] += _paraphrased("forget10_perturbed", other)
        self.learn_paraphrases = options.learn_paraphrases
        if options.attacks:
            holdout = split.replace("forget", "holdout")
            unseen = rows(holdout)[: len(self.forget)]
            self.holdout = _examples(holdout, dict(enumerate(unseen)))
        self.probes = [
            *_probes(split, "forget", perturbed, _author),
            *(
                Probe(each.id, each.question, each.answer, "forget_paraphrase", cluster=_author(each.id))
                for each in self.paraphrased[0]
            ),
            *_probes("retain_perturbed", "retain", kept_perturbed, _author),
            *general("real_authors"),
            *general("world_facts"),
        ]
        self.protocol = Protocol(
            core_metric=options.core_metric,
            metrics=(options.core_metric, "rouge_l_recall"),
            leak_group="forget_paraphrase",
            utility_group="retain",
            n=200,
            max_new_tokens=200,
            decoding=(Decoding(), Decoding(temperature=0.0)),
            model_utility={group: UTILITY[group] for group in options.utility_groups},
            forget_group="forget",
            attacks=options.attacks,
            fluency_group="forget" if options.fluency else None,
        )

    @classmethod
    def load(cls, **options: Any) -> Tofu:
        """Read the data; options are the fields of `TofuOptions`. UserError where a part of it is missing."""
        return cls(TofuOptions(**options))

    @property
    def finetune_forget(self) -> list[Example]:
        return self.forget + (self.paraphrased[0] if self.learn_paraphrases else [])

    @property
    def finetune_retain(self) -> list[Example]:
        return self.retain + (self.paraphrased[1] if self.learn_paraphrases else [])

    @property
    def finetune_target(self) -> list[Example]:
        """By author, and known by their place in the whole: whatever the split, one target model serves all."""
        examples = sorted(super().finetune_target, key=lambda each: _place(each.id))
        return [dataclasses.replace(each, id="full/{}/{:d}".format(*_place(each.id))) for each in examples]

    def base_model(self, folder: Path, seed: int) -> None:
        """Write an untrained Llama of 3.1 million parameters, its tokenizer trained on the sets that are kept."""
        write_model(self._texts(), folder, seed)

    def base_inputs(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"texts": fingerprint(self._texts())}

    def _texts(self) -> list[str]:
        return [text for each in self.finetune_target for text in (each.question, each.answer)]


def _authors(limit: int, split: str, forget: int | None) -> tuple[list[int], list[int]]:
    """(forgotten, kept) authors of `limit` in all. The splits lie within each other, as in the whole, unless
    `forget` says how many to forget."""
    if forget is not None:
        start = FIRST[split]
        return list(range(start, start + forget)), list(range(min(limit - forget, start)))
    counts = {name: max(1, round(limit * (AUTHORS - first) / AUTHORS)) for name, first in FIRST.items()}
    ends = {"forget01": AUTHORS, "forget05": FIRST["forget01"], "forget10": FIRST["forget05"]}
    forgotten: dict[str, list[int]] = {}
    inner: list[int] = []
    for name, end in ends.items():
        inner = [*range(end - (counts[name] - len(inner)), end), *inner]
        forgotten[name] = inner
    first = list(range(limit - counts["forget10"]))
    return forgotten[split], first + [author for author in inner if author not in forgotten[split]]


def _place(example_id: str) -> tuple[int, bool]:
    """Where an example stands in the whole: its row among all authors' rows, the question before its paraphrase."""
    config, index, *paraphrase = example_id.split("/")
    return FIRST.get(config.removesuffix("_perturbed"), 0) * QUESTIONS + int(index), bool(paraphrase)


def _author(example_id: str) -> str:
    """Whom a question is about: authors have twenty rows each, one after the other."""
    return f"author{_place(example_id)[0] // QUESTIONS}"


def _paraphrased(config: str, rows: dict[int, dict[str, Any]]) -> list[Example]:
    return [
        Example(f"{config}/{index}/paraphrase", row["paraphrased_question"], row["answer"])
        for index, row in rows.items()
    ]


def _probes(
    config: str, group: str, rows: dict[int, dict[str, Any]], author: Callable[[str], str] | None = None
) -> list[Probe]:
    return [
        Probe(
            f"{config}/{index}",
            row["question"],
            row["answer"],
            group,
            paraphrased_answer=row.get("paraphrased_answer"),
            wrong_answers=_answers(row["perturbed_answer"], f"{config}: row {index}"),
            cluster=author(f"{config}/{index}") if author else None,
        )
        for index, row in rows.items()
    ]


def _answers(given: Any, where: str) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise UserError(
            f"benchmark.path: config {where}: perturbed_answer should be a list of texts, found {given!r:.40}"
        )
    return tuple(given)


def _examples(config: str, rows: dict[int, dict[str, Any]]) -> list[Example]:
    return [Example(f"{config}/{index}", row["question"], row["answer"]) for index, row in rows.items()]
