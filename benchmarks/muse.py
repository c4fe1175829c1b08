"""MUSE: news articles or the Harry Potter books as running text (arXiv 2407.06460; hub data sets muse-bench/MUSE-*).

Two ways to ask for the forgotten: knowmem questions behind the data set's own examples (few-shot, 32 tokens, cut where
the next question would begin), and verbmem beginnings of the text itself (128 tokens). All prompts are running text
without a template, as in MUSE's code. leak@k is taken on the knowmem questions by ROUGE-L F1. Beside it stand MUSE's
own metrics, greedy: verbmem and knowmem of the forget set, knowmem of the retain set, and privleak, of which texts are
to be told from texts that no model has seen. Scalability and sustainability are other, larger forget sets.

    Question: What is the cost of a TV licence?
    Answer: 159 pounds a year
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from benchmarks.base import Attack, Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.hub import data_version, load_rows

PATHS = {"news": "muse-bench/MUSE-News", "books": "muse-bench/MUSE-Books"}
# AUC of Min-40% of the retrained model that MUSE's code compares with. Its AUC is 1 where texts look unseen, ours where
# they look like training data.
PUBLISHED_AUC = {"news": 1 - 0.4772, "books": 1 - 0.5393}
KNOWMEM_TOKENS = 32
VERBMEM_TOKENS = 128
KNOWMEM_STOP = ("\n\n", "\nQuestion", "Question:")


class MuseOptions(BaseModel):
    """corpus: which of the two; path: hub name or folder of its layout (None: the corpus's on the hub); revision:
    commit on the hub; stemmer: words are stemmed before they are compared (MUSE's code: no; OpenUnlearning's: yes);
    forget: raw, the forget set; scal, the larger one of fold `folds`; sust, the folds up to that one after the other,
    each a request (news only; what is asked stays the questions about raw); folds: which fold, see forget; attacks:
    membership inference, of which privleak needs min_k, [] for none; fluency: report how little of the verbmem answers
    is gibberish."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    corpus: Literal["news", "books"] = "news"
    path: str | None = None
    revision: str | None = None
    stemmer: bool = False
    forget: Literal["raw", "scal", "sust"] = "raw"
    folds: int = Field(default=4, ge=1, le=4)
    attacks: tuple[Attack, ...] = ("min_k",)
    fluency: bool = False


class Muse(Benchmark):
    """Running text; groups of probes: forget_knowmem, forget_verbmem, retain_knowmem."""

    name: ClassVar[str] = "muse"
    facts: ClassVar[Facts] = Facts(
        data="muse-bench/MUSE-News, muse-bench/MUSE-Books",
        licence="see the data sets' cards; the texts are BBC News's and the Harry Potter books', under copyright",
        size="for each corpus 100 knowmem questions on the forget and 100 on the retain text, 100 verbmem beginnings, "
        "100 texts each for privleak",
        leak="knowmem questions and verbmem beginnings, ROUGE-L F1",
        utility="knowmem questions on the retain text, ROUGE-L F1",
        metrics="verbmem.forget, knowmem.forget, knowmem.retain, mia_min_k (other attacks by benchmark.attacks), "
        "privleak, privleak_published, fluency (benchmark.fluency=true)",
    )
    Options: ClassVar[type[BaseModel]] = MuseOptions

    def __init__(self, options: MuseOptions) -> None:
        self.options = options
        self.data = {"path": data_version(self._path, options.revision)}
        folds = self._folds()
        self.forget = [each for fold in folds for each in fold]
        self.retain = self._texts("raw", "retain1")
        self.probes = [*self._knowmem("forget"), *self._verbmem(), *self._knowmem("retain")]
        if options.attacks:
            self._members = self._texts("privleak", "forget")
            self.holdout = self._texts("privleak", "holdout")
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
            greedy_means={
                "verbmem.forget": "forget_verbmem",
                "knowmem.forget": "forget_knowmem",
                "knowmem.retain": "retain_knowmem",
            },
            attacks=options.attacks,
            published_auc=PUBLISHED_AUC[options.corpus],
            rouge=core_metric,
            fluency_group="forget_verbmem" if options.fluency else None,
            requests=tuple(map(len, folds)) if options.forget == "sust" else None,
        )

    @classmethod
    def load(cls, **options: Any) -> Muse:
        """Read the data; options are the fields of `MuseOptions`. UserError where a part of it is missing."""
        return cls(MuseOptions(**options))

    @property
    def members(self) -> list[Example]:
        return self._members

    @property
    def finetune_retain(self) -> list[Example]:
        """retain1, which unlearning may use, and retain2, which it never sees."""
        return self.retain + self._texts("raw", "retain2")

    @property
    def _path(self) -> str:
        return self.options.path or PATHS[self.options.corpus]

    def _rows(self, config: str, split: str, *columns: str) -> list[dict[str, Any]]:
        return load_rows(self._path, config, split, columns, self.options.revision)

    def _folds(self) -> list[list[Example]]:
        """The forget set that the options name, in its parts."""
        kind, folds = self.options.forget, self.options.folds
        if kind == "raw":
            return [self._texts("raw", "forget")]
        first = folds if kind == "scal" else 1
        return [self._texts(kind, f"forget_{fold}") for fold in range(first, folds + 1)]

    def _texts(self, config: str, split: str) -> list[Example]:
        name = split if config == "raw" else f"{config}/{split}"
        rows = self._rows(config, split, "text")
        return [Example(f"{name}/{index}", "", row["text"]) for index, row in enumerate(rows)]

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
