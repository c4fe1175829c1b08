"""TOFU: 200 fictitious authors, 20 questions each (arXiv 2401.06121; hub data set locuslab/TOFU, MIT).

forget01, 05 and 10 are the last 2, 10 and 20 authors; the rest is the retain set. leak@k is taken on the paraphrased
questions, as in arXiv 2511.04934. Rows are known by their index: one question text stands twice in the data.

    Q  What is the full name of the author born in Taipei, Taiwan on 05/11/1991 who writes in the genre of leadership?
    A  The author's full name is Hsiao Yun-Hwa.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.base import Benchmark, Decoding, Example, Probe, Protocol
from benchmarks.hub import load_rows

RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}


class TofuOptions(BaseModel):
    """path: hub name or folder of its layout; revision: commit on the hub; core_metric: what counts as a leak (the
    paper's ES needs an NLI model from the hub; rouge_l_recall needs nothing)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str = "locuslab/TOFU"
    split: Literal["forget01", "forget05", "forget10"] = "forget10"
    revision: str | None = None
    core_metric: str = "entailment_es"


class Tofu(Benchmark):
    """Fictitious authors; groups of probes: forget, forget_paraphrase, retain, real_authors, world_facts."""

    name: ClassVar[str] = "tofu"
    Options: ClassVar[type[BaseModel]] = TofuOptions

    def __init__(self, options: TofuOptions) -> None:
        def rows(config: str, *columns: str) -> list[dict[str, Any]]:
            return load_rows(options.path, config, "train", columns, options.revision)

        def probes(config: str, group: str) -> list[Probe]:
            return [
                Probe(f"{config}/{index}", row["question"], row["answer"], group)
                for index, row in enumerate(rows(config, "question", "answer"))
            ]

        perturbed = rows(f"{options.split}_perturbed", "question", "answer", "paraphrased_question")
        self.forget = _examples(options.split, rows(options.split, "question", "answer"))
        self.retain = _examples(RETAIN[options.split], rows(RETAIN[options.split], "question", "answer"))
        self.probes = [
            *(Probe(each.id, each.question, each.answer, "forget") for each in self.forget),
            *(
                Probe(
                    f"{options.split}/{index}/paraphrase",
                    row["paraphrased_question"],
                    row["answer"],
                    "forget_paraphrase",
                )
                for index, row in enumerate(perturbed)
            ),
            *probes("retain_perturbed", "retain"),
            *probes("real_authors_perturbed", "real_authors"),
            *probes("world_facts_perturbed", "world_facts"),
        ]
        self.protocol = Protocol(
            core_metric=options.core_metric,
            metrics=(options.core_metric, "rouge_l_recall"),
            leak_group="forget_paraphrase",
            utility_group="retain",
            n=200,
            max_new_tokens=200,
            decoding=(Decoding(), Decoding(temperature=0.0)),
        )

    @classmethod
    def load(cls, **options: Any) -> Tofu:
        """Read the data; options are the fields of `TofuOptions`. UserError where a part of it is missing."""
        return cls(TofuOptions(**options))


def _examples(config: str, rows: list[dict[str, Any]]) -> list[Example]:
    return [Example(f"{config}/{index}", row["question"], row["answer"]) for index, row in enumerate(rows)]
