"""TOFU: 200 fictitious authors, 20 questions each (arXiv 2401.06121; hub data set locuslab/TOFU, MIT).

forget01, 05 and 10 are the last 2, 10 and 20 authors; the rest is the retain set. leak@k is taken on the paraphrased
questions, as in arXiv 2511.04934. Rows are known by their index: one question text stands twice in the data.

    Q  What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre of leadership?
    A  The author's full name is Hsiao Yun-Hwa.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Attack, Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import load_rows

RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
SHARE = {"forget01": 0.01, "forget05": 0.05, "forget10": 0.1}  # of the authors, forgotten
AUTHORS, QUESTIONS = 200, 20
ATTACKS: tuple[Attack, ...] = ("loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm")


class TofuOptions(BaseModel):
    """path: hub name or folder of its layout; revision: commit on the hub; core_metric: what counts as a leak (the
    paper's ES needs an NLI model from the hub; rouge_l_recall needs nothing); limit_authors: keep so many authors, the
    forgotten ones last and in the split's share, at least one, and the other sets in proportion; attacks: membership
    inference against the holdout set, [] for none (gradnorm takes a backward pass for each of its texts); fluency:
    report how little of the answers is gibberish (a classifier from the hub, or metric_options.fluency.model)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "locuslab/TOFU"
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    revision: str | None = None
    core_metric: str = "entailment_es"
    limit_authors: int | None = Field(default=None, ge=2, le=AUTHORS)
    attacks: tuple[Attack, ...] = ATTACKS
    fluency: bool = False


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
        if options.attacks:
            holdout = split.replace("forget", "holdout")
            self.holdout = _examples(holdout, rows(holdout, forget_size))
        self.probes = [
            *_probes(split, "forget", perturbed),
            *(
                Probe(f"{split}/{index}/paraphrase", row["paraphrased_question"], row["answer"], "forget_paraphrase")
                for index, row in enumerate(perturbed)
            ),
            *_probes("retain_perturbed", "retain", rows("retain_perturbed", retain_size, *paraphrases)),
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
            model_utility={"retain": "plain", "real_authors": "normalised", "world_facts": "normalised"},
            forget_group="forget",
            attacks=options.attacks,
            fluency=options.fluency,
        )

    @classmethod
    def load(cls, **options: Any) -> Tofu:
        """Read the data; options are the fields of `TofuOptions`. UserError where a part of it is missing."""
        return cls(TofuOptions(**options))


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
