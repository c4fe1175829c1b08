"""TOFU: 200 fictitious authors, 20 questions each (arXiv 2401.06121; hub data set locuslab/TOFU, MIT).

forget01, 05 and 10 are the last 2, 10 and 20 authors; the rest is the retain set. leak@k is taken on the paraphrased
questions, as in arXiv 2511.04934. Rows are known by their index: one question text stands twice in the data.

    Q  What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre of leadership?
    A  The author's full name is Hsiao Yun-Hwa.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Attack, Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import load_rows
from benchmarks.tofu_model import write_model

RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SHARE = {"forget01": 0.01, "forget05": 0.05, "forget10": 0.1}  # of the authors, forgotten
AUTHORS, QUESTIONS = 200, 20
UtilityGroup = Literal["retain", "real_authors", "world_facts"]
UTILITY: dict[UtilityGroup, Literal["plain", "normalised"]] = {  # and the form of its probability
    "retain": "plain",
    "real_authors": "normalised",
    "world_facts": "normalised",
}
ATTACKS: tuple[Attack, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm")


class TofuOptions(BaseModel):
    """path: hub name or folder of its layout; revision: commit on the hub; core_metric: what counts as a leak (the
    paper's ES needs an NLI model from the hub; rouge_l_recall needs nothing); limit_authors: keep so many authors, the
    forgotten ones last and in the split's share, at least one, and the other sets in proportion; attacks: membership
    inference against the holdout set, [] for none (gradnorm takes a backward pass for each of its texts); fluency:
    report how little of the answers is gibberish (a classifier from the hub, or metric_options.fluency.model);
    utility_groups: sets that model utility is taken on; learn_paraphrases: where target and retain model are fine-tuned
    here, they learn the paraphrased questions too, of the forget set and of the retain questions that have them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "locuslab/TOFU"
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    revision: str | None = None
    core_metric: str = "entailment_es"
    limit_authors: int | None = Field(default=None, ge=2, le=AUTHORS)
    attacks: tuple[Attack, ...] = ATTACKS
    fluency: bool = False
    utility_groups: tuple[UtilityGroup, ...] = tuple(UTILITY)
    learn_paraphrases: bool = False


class Tofu(Benchmark):
    """Fictitious authors; groups of probes: forget, forget_paraphrase, retain, real_authors, world_facts."""

    name: ClassVar[str] = "tofu"
    facts: ClassVar[Facts] = Facts(
        data="locuslab/TOFU",
        licence="MIT",
        size="200 authors, 20 questions each; forget01, 05, 10: 40, 200, 400 questions",
        leak="paraphrased questions, ES (entailment and ROUGE-L recall)",
        utility="model utility: probability, ROUGE-L and truth ratio on retain, real authors, world facts",
    )
    Options: ClassVar[type[BaseModel]] = TofuOptions

    def __init__(self, options: TofuOptions) -> None:
        split, retain_split = options.split, RETAIN[options.split]
        kept = options.limit_authors or AUTHORS
        forgotten = max(1, round(kept * SHARE[split]))

        def rows(config: str, most: int | None, *columns: str) -> list[dict[str, Any]]:
            found = load_rows(options.path, config, "train", ("question", "answer", *columns), options.revision)
            return found[:most]

        def general(group: str) -> list[Probe]:
            found = rows(f"{group}_perturbed", None, "perturbed_answer")
            return _probes(f"{group}_perturbed", group, found[: math.ceil(len(found) * kept / AUTHORS)])

        forget_size, retain_size = forgotten * QUESTIONS, (kept - forgotten) * QUESTIONS
        paraphrases = ("paraphrased_question", "paraphrased_answer", "perturbed_answer")
        perturbed = rows(f"{split}_perturbed", forget_size, *paraphrases)
        self.forget = _examples(split, rows(split, forget_size))
        self.retain = _examples(retain_split, rows(retain_split, retain_size))
        kept_perturbed = rows("retain_perturbed", retain_size, *paraphrases)
        self.paraphrased = [_paraphrased(split, perturbed), _paraphrased("retain_perturbed", kept_perturbed)]
        self.learn_paraphrases = options.learn_paraphrases
        if options.attacks:
            holdout = split.replace("forget", "holdout")
            self.holdout = _examples(holdout, rows(holdout, forget_size))
        self.probes = [
            *_probes(split, "forget", perturbed),
            *(Probe(each.id, each.question, each.answer, "forget_paraphrase") for each in self.paraphrased[0]),
            *_probes("retain_perturbed", "retain", kept_perturbed),
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
            fluency=options.fluency,
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

    def base_model(self, folder: Path, seed: int) -> None:
        """Write an untrained Llama of 3.1 million parameters, its tokenizer trained on the sets that are kept."""
        examples = self.forget + self.retain + [each for paraphrased in self.paraphrased for each in paraphrased]
        write_model([text for each in examples for text in (each.question, each.answer)], folder, seed)


def _paraphrased(config: str, rows: list[dict[str, Any]]) -> list[Example]:
    return [
        Example(f"{config}/{index}/paraphrase", row["paraphrased_question"], row["answer"])
        for index, row in enumerate(rows)
    ]


def _probes(config: str, group: str, rows: list[dict[str, Any]]) -> list[Probe]:
    return [
        Probe(
            f"{config}/{index}",
            row["question"],
            row["answer"],
            group,
            paraphrased_answer=row.get("paraphrased_answer"),
            wrong_answers=tuple(row["perturbed_answer"]),
        )
        for index, row in enumerate(rows)
    ]


def _examples(config: str, rows: list[dict[str, Any]]) -> list[Example]:
    return [Example(f"{config}/{index}", row["question"], row["answer"]) for index, row in enumerate(rows)]
