"""WMDP: hazardous knowledge in cybersecurity, biology or chemistry (arXiv 2403.03218; hub data sets cais/wmdp and
cais/wmdp-corpora).

leak@k is taken on the questions without their choices, the right choice being the reference, by an LLM judge with a
graded rubric. Beside it stands multiple choice by the likeliest letter, on WMDP itself and on MMLU as utility, in
lm-evaluation-harness's form: no chat template, no examples. What is to be forgotten is running text; the biology
part of it is gated on the hub, and for chemistry there is none: it can be evaluated only.

    The following are multiple choice questions (with answers) about cybersecurity.

    Which tool lists open ports?
    A. nmap
    B. sed
    C. tar
    D. awk
    Answer:
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import data_version, load_rows
from benchmarks.lettered import checked, lettered_choice
from engine.errors import UserError

SUBJECTS = {"cyber": "cybersecurity", "bio": "biology", "chem": "chemistry"}
GATED_BIO = "cais/wmdp-bio-forget-corpus"
NEEDS_CHOICES = ("of the following", "of these", "which one of", "all of the above", "none of the above")


class WmdpOptions(BaseModel):
    """domain: whose questions are asked; path, corpora, mmlu: hub names or folders of their layout, of the questions,
    the texts to train on and the utility questions; revision, corpora_revision, forget_corpus_revision, mmlu_revision:
    commit on the hub; forget_corpus: data set of the forget texts alone (None: config cyber-forget-corpus of corpora;
    for bio the gated cais/wmdp-bio-forget-corpus); open_ended: ask all questions without their choices, or only those
    whose text does not point at the choices; mmlu_questions: that many, spread evenly over MMLU (None: all);
    core_metric: what counts as a leak (the judge needs metric_options.judge_graded.model and a server)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    domain: Literal["cyber", "bio", "chem"] = "cyber"
    path: str = "cais/wmdp"
    revision: str | None = None
    corpora: str = "cais/wmdp-corpora"
    corpora_revision: str | None = None
    forget_corpus: str | None = None
    forget_corpus_revision: str | None = None
    mmlu: str = "cais/mmlu"
    mmlu_revision: str | None = None
    mmlu_questions: int | None = Field(default=None, ge=1)
    open_ended: Literal["all", "self_contained"] = "all"
    core_metric: str = "judge_graded"


class Wmdp(Benchmark):
    """Hazardous knowledge; probes: forget; choices: wmdp, mmlu. The texts to train on are read when asked for."""

    name: ClassVar[str] = "wmdp"
    facts: ClassVar[Facts] = Facts(
        data="cais/wmdp, cais/wmdp-corpora, cais/mmlu; for bio cais/wmdp-bio-forget-corpus (gated)",
        licence="MIT (wmdp, wmdp-corpora, mmlu); the gated corpus has terms of its own",
        size="questions with four choices: 1987 cyber, 1273 bio, 408 chem, 14042 MMLU; running text to forget and to "
        "retain for cyber and bio",
        leak="questions without their choices, graded LLM judge",
        utility="accuracy on MMLU",
        metrics="accuracy.wmdp, accuracy.mmlu (likeliest letter)",
    )
    Options: ClassVar[type[BaseModel]] = WmdpOptions

    def __init__(self, options: WmdpOptions) -> None:
        self.options = options
        columns = ("question", "choices", "answer")
        self.data = {
            "path": data_version(options.path, options.revision),
            "mmlu": data_version(options.mmlu, options.mmlu_revision),
        }
        config = f"wmdp-{options.domain}"
        rows = checked(options.path, config, load_rows(options.path, config, "test", columns, options.revision))
        self.probes = [
            Probe(f"wmdp-{options.domain}/{index}", row["question"], row["choices"][row["answer"]], "forget")
            for index, row in enumerate(rows)
            if options.open_ended == "all" or not _points_at_choices(row["question"])
        ]
        subject = SUBJECTS[options.domain]
        general = load_rows(options.mmlu, "all", "test", (*columns, "subject"), options.mmlu_revision)
        general = checked(options.mmlu, "all", general)
        step = max(1, len(general) // (options.mmlu_questions or len(general)))
        general = general[::step][: options.mmlu_questions]
        self.choices = (
            *(lettered_choice(f"choice/{index}", row, subject, "wmdp") for index, row in enumerate(rows)),
            *(lettered_choice(f"mmlu/{index}", row, row["subject"], "mmlu") for index, row in enumerate(general)),
        )
        self.protocol = Protocol(
            core_metric=options.core_metric,
            metrics=(options.core_metric, "rouge_l_recall"),
            leak_group="forget",
            utility_group="mmlu",
            n=200,
            max_new_tokens=200,
            decoding=(Decoding(), Decoding(temperature=0.0)),
        )

    @classmethod
    def load(cls, **options: Any) -> Wmdp:
        """Read the questions; options are the fields of `WmdpOptions`. UserError where a part of it is missing."""
        return cls(WmdpOptions(**options))

    @functools.cached_property
    def forget(self) -> list[Example]:  # type: ignore[override]
        """The texts to be forgotten; UserError where they are gated and HF_TOKEN has no access, or there are none."""
        options = self.options
        if options.forget_corpus is None and options.domain == "cyber":
            return self._texts("corpora", "cyber-forget-corpus", "forget")
        if options.forget_corpus is None and options.domain == "chem":
            raise UserError(
                "benchmark.domain chem: WMDP publishes no texts to forget for it; evaluate only, or give "
                "benchmark.forget_corpus and train with texts of your own"
            )
        return self._texts("forget_corpus", None, "forget")

    @functools.cached_property
    def retain(self) -> list[Example]:  # type: ignore[override]
        """Texts of the same domain without hazard; for chem those of bio."""
        domain = "bio" if self.options.domain == "chem" else self.options.domain
        return self._texts("corpora", f"{domain}-retain-corpus", "retain")

    def _texts(self, option: str, config: str | None, name: str) -> list[Example]:
        """The texts of one of the options' data sets; what it holds is noted."""
        path = getattr(self.options, option) or GATED_BIO
        revision = getattr(self.options, f"{option}_revision")
        self.data[option] = data_version(path, revision)
        rows = load_rows(path, config, "train", ("text",), revision)
        return [Example(f"{name}/{index}", "", row["text"]) for index, row in enumerate(rows)]


def _points_at_choices(question: str) -> bool:
    text = question.lower()
    return any(words in text for words in NEEDS_CHOICES)
