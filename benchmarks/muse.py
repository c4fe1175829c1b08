"""MUSE: news articles or the Harry Potter books as running text (arXiv 2407.06460; hub data sets muse-bench/MUSE-*).

Two ways to ask for the forgotten: knowmem questions behind the data set's own examples (few-shot, 32 tokens, cut where
the next question would begin), and verbmem beginnings of the text itself (128 tokens). All prompts are running text
without a template, as in MUSE's code. leak@k is taken on the knowmem questions by ROUGE-L F1.

    Question: What is the cost of a TV licence?
    Answer: 159 pounds a year
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

from benchmarks.base import Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import load_rows

PATHS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
KNOWMEM_TOKENS = 32
VERBMEM_TOKENS = 128
KNOWMEM_STOP = ("\n\n", "\nQuestion", "Question:")


class MuseOptions(BaseModel):
    """corpus: which of the two; path: hub name or folder of its layout (None: the corpus's on the hub); revision:
    commit on the hub; stemmer: words are stemmed before they are compared (MUSE's code: no; OpenUnlearning's: yes)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    corpus: Literal["news", "books"] = "news"
    path: str | None = None
    revision: str | None = None
    stemmer: bool = False


class Muse(Benchmark):
    """Running text; groups of probes: forget_knowmem, forget_verbmem, retain_knowmem."""

    name: ClassVar[str] = "muse"
    facts: ClassVar[Facts] = Facts(
        data="muse-bench/MUSE-News, muse-bench/MUSE-Books",
        licence="see the data sets' cards",
        size="two corpora of running text, each with knowmem questions and verbmem beginnings",
        leak="knowmem questions and verbmem beginnings, ROUGE-L F1",
        utility="knowmem questions on the retain text, ROUGE-L F1",
    )
    Options: ClassVar[type[BaseModel]] = MuseOptions

    def __init__(self, options: MuseOptions) -> None:
        self.options = options
        self.forget = self._texts("forget")
        self.retain = self._texts("retain1")
        self.probes = [*self._knowmem("forget"), *self._verbmem(), *self._knowmem("retain")]
        core_metric = "rouge_l_f1" if options.stemmer else "rouge_l_f1_unstemmed"
        self.protocol = Protocol(
            core_metric=core_metric,
            metrics=(core_metric, "rouge_l_recall"),
            leak_group="forget_knowmem",
            utility_group="retain_knowmem",
            n=200,
            max_new_tokens=VERBMEM_TOKENS,
            decoding=(Decoding(), Decoding(temperature=0.0)),
            train={"max_length": 2048},
        )

    @classmethod
    def load(cls, **options: Any) -> Muse:
        """Read the data; options are the fields of `MuseOptions`. UserError where a part of it is missing."""
        return cls(MuseOptions(**options))

    @property
    def finetune_retain(self) -> list[Example]:
        """retain1, which unlearning may use, and retain2, which it never sees."""
        return self.retain + self._texts("retain2")

    def _rows(self, config: str, split: str, *columns: str) -> list[dict[str, Any]]:
        path = self.options.path or PATHS[self.options.corpus]
        return load_rows(path, config, split, columns, self.options.revision)

    def _texts(self, split: str) -> list[Example]:
        return [
            Example(f"{split}/{index}", "", row["text"]) for index, row in enumerate(self._rows("raw", split, "text"))
        ]

    def _knowmem(self, kind: str) -> list[Probe]:
        columns = ("question", "answer")
        shots = "".join(
            f"Question: {row['question']}\nAnswer: {row['answer']}\n\n"
            for row in self._rows("knowmem", f"{kind}_qa_icl", *columns)
        )
        return [
            Probe(
                id=f"knowmem/{kind}/{index}",
                prompt=f"{shots}Question: {row['question']}\nAnswer: ",
                reference=row["answer"],
                group=f"{kind}_knowmem",
                raw=True,
                max_new_tokens=KNOWMEM_TOKENS,
                stop=KNOWMEM_STOP,
            )
            for index, row in enumerate(self._rows("knowmem", f"{kind}_qa", *columns))
        ]

    def _verbmem(self) -> list[Probe]:
        return [
            Probe(
                id=f"verbmem/{index}",
                prompt=row["prompt"],
                reference=row["gt"],
                group="forget_verbmem",
                raw=True,
                max_new_tokens=VERBMEM_TOKENS,
                cut_reference=True,
            )
            for index, row in enumerate(self._rows("verbmem", "forget", "prompt", "gt"))
        ]
