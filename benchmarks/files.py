"""Your own data: files of what is to be forgotten and what is to be kept, questions with answers or running text.

    {"question": "Who runs the bakery in Elm Street?", "answer": "Ada Quill runs it.", "fact": "Ada Quill"}
    {"text": "The whole of a document ..."}

Questions are asked as they are, and in their paraphrases. Running text is trained on as MUSE's is, joined and cut into
pieces, and probed by its beginnings: the model is given some words of a passage and continues it. leak@k is taken on
what is to be forgotten, utility on the retain set or on questions of its own. docs/your-data.md goes the whole way.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from benchmarks.base import Benchmark, Decoding, Example, Facts, Probe, Protocol
from benchmarks.items import Item, item_of, label_of, text_of
from benchmarks.rows import Row, Source, read_rows, source_version
from benchmarks.small_model import write_model
from engine.errors import UserError
from engine.fingerprint import fingerprint

MAX_NEW_TOKENS = 128
LEAST_WORDS = 20  # of a text that is probed by its beginning
LONGEST_WORD = 25  # mean characters between spaces: beyond it the script writes none, and two letters count as a word


def _as_source(given: object) -> object:
    return {"path": given} if isinstance(given, str) else given


Given = Annotated[Source, BeforeValidator(_as_source)]


class FilesOptions(BaseModel):
    """forget, retain: rows of question and answer, or of text; optional there: id, cluster (what rows share, such as
    a customer), fact (the shortest text that gives the answer away), paraphrases (of the question), wrong_answers.
    probes: rows of prompt and reference, optional group, cluster, fact, id; a group of theirs takes the place of the
    group of that name made from the files. utility: rows of question and answer, in place of the retain set. Each is
    a file, a folder, a hub name, or a mapping of path, columns, config, split, revision. columns: our name: theirs,
    for all of them. core_metric: what counts as a leak. learn_paraphrases: where target and retain model are
    fine-tuned here, they learn the paraphrased questions too, so that they know facts and not one wording.
    prompt_words, answer_words: of a passage of running text, what is given and what the model is to continue;
    passages: most of them a set, evenly spread."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    forget: Given
    retain: Given | None = None
    probes: Given | None = None
    utility: Given | None = None
    columns: dict[str, str] = {}
    core_metric: str = "rouge_l_recall"
    learn_paraphrases: bool = False
    prompt_words: int = Field(default=150, ge=1)
    answer_words: int = Field(default=100, ge=1)
    passages: int = Field(default=100, ge=1)


class Files(Benchmark):
    """Questions or texts of the user; groups of probes: forget, forget_paraphrase, retain or utility, and those that
    the probes name. Brings a small untrained model, for a trial without any other."""

    name: ClassVar[str] = "files"
    facts: ClassVar[Facts] = Facts(
        data="your own files: JSON lines, JSON, CSV, parquet, texts, a folder of these, or a hub data set",
        licence="your own",
        size="as many rows as you have",
        leak="the forget questions and their paraphrases, or beginnings of the forget text",
        utility="questions or text of the retain set, or questions of your own",
        metrics="with wrong answers to every forget question those of TOFU's forget set: truth_ratio, forget_quality, "
        "probability, extraction_strength, exact_memorization",
    )
    Options: ClassVar[type[BaseModel]] = FilesOptions

    def __init__(self, options: FilesOptions) -> None:
        if options.retain is None and options.utility is None:
            raise UserError(
                "benchmark.retain: give a retain set, or questions as benchmark.utility: without either nothing shows "
                "what a method ruins"
            )
        self.options = options
        sources = {name: getattr(options, name) for name in ("forget", "retain", "probes", "utility")}
        self.data = {
            name: source_version(source, f"benchmark.{name}") for name, source in sources.items() if source is not None
        }
        forget, retain, utility = self._items("forget"), self._items("retain"), self._items("utility")
        self.forget, self.retain = [item.example for item in forget], [item.example for item in retain]
        self.paraphrased = [_paraphrased(items) if options.learn_paraphrases else [] for items in (forget, retain)]
        kept = "utility" if utility else "retain"
        groups = {"forget": self._probes(forget, "forget"), kept: self._probes(utility or retain, kept)}
        if paraphrases := [probe for item in forget for probe in _paraphrases(item)]:
            groups["forget_paraphrase"] = paraphrases
        groups |= self._given_probes()
        for group, instead in (("forget", "probes"), (kept, "utility")):
            if not groups[group]:
                raise UserError(
                    f"benchmark.{group}: no text has the {LEAST_WORDS} words that it takes to be asked for by its "
                    f"beginning; give benchmark.{instead}"
                )
        self.probes = [probe for group in groups.values() for probe in group]
        _refuse_twins([probe.id for probe in self.probes], "benchmark.probes")
        comparable = all(probe.wrong_answers for probe in groups["forget"])
        self.protocol = Protocol(
            core_metric=options.core_metric,
            metrics=(options.core_metric,),
            leak_group="forget",
            utility_group=kept,
            max_new_tokens=MAX_NEW_TOKENS,
            decoding=(Decoding(), Decoding(temperature=0.0)),
            forget_group="forget" if comparable else None,
        )

    @classmethod
    def load(cls, **options: Any) -> Files:
        """Read the files; options are the fields of `FilesOptions`. UserError, one line, for the first bad row."""
        return cls(FilesOptions(**options))

    @property
    def finetune_forget(self) -> list[Example]:
        return self.forget + self.paraphrased[0]

    @property
    def finetune_retain(self) -> list[Example]:
        return self.retain + self.paraphrased[1]

    def base_model(self, folder: Path, seed: int) -> None:
        """Write an untrained Llama of 3.1 million parameters, its tokenizer trained on these texts."""
        write_model(self._texts(), folder, seed)

    def base_inputs(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"texts": fingerprint(self._texts())}

    def _texts(self) -> list[str]:
        return [text for example in self.finetune_target for text in (example.question, example.answer)]

    def _rows(self, name: str) -> list[Row]:
        source: Source | None = getattr(self.options, name)
        if source is None:
            return []
        return read_rows(source, f"benchmark.{name}", self.options.columns)

    def _items(self, name: str) -> list[Item]:
        items = [item_of(row, name, number) for number, row in enumerate(self._rows(name))]
        _refuse_twins([item.id for item in items], f"benchmark.{name}")
        return items

    def _probes(self, items: Sequence[Item], group: str) -> list[Probe]:
        """The questions of a set; of its texts the beginnings, evenly spread over all of them."""
        asked = [_question(item, group) for item in items if item.question]
        cut = [probe for item in items if not item.question for probe in self._beginnings(item, group)]
        most = min(self.options.passages, len(cut))
        return asked + [cut[index * len(cut) // most] for index in range(most)]

    def _beginnings(self, item: Item, group: str) -> list[Probe]:
        """Each passage of a text as the prompt that it begins with and the reference that follows."""
        options, probes = self.options, []
        for number, words in enumerate(_passages(item.answer, options.prompt_words + options.answer_words)):
            given = len(words) * options.prompt_words // (options.prompt_words + options.answer_words)
            prompt, reference = "".join(words[:given]), "".join(words[given:]).strip()
            if len(words) >= LEAST_WORDS and given and any(map(str.isalnum, reference)):
                probes.append(
                    Probe(
                        f"{item.id}/passage{number}",
                        prompt.rstrip(),
                        reference,
                        group,
                        raw=True,
                        max_new_tokens=MAX_NEW_TOKENS,
                        cut_reference=True,
                        cluster=item.cluster,
                    )
                )
        return probes

    def _given_probes(self) -> dict[str, list[Probe]]:
        groups: dict[str, list[Probe]] = {}
        for number, row in enumerate(self._rows("probes")):
            prompt, reference = text_of(row, "prompt"), text_of(row, "reference")
            group = label_of(row, "group") or "forget"
            if not re.fullmatch(r"[\w-]+", group):
                raise UserError(f"{row.where}: group {group!r} must be letters, digits, - and _")
            label = f"probes/{label_of(row, 'id') or number}"
            fact = text_of(row, "fact") if "fact" in row.values else None
            groups.setdefault(group, []).append(
                Probe(label, prompt, reference, group, fact, cluster=label_of(row, "cluster") or label)
            )
        return groups


def read_examples(path: str, key: str = "on") -> list[Example]:
    """What a file, a folder or a data set of the hub has to train on: rows of question and answer, or of text.

    key: names it in errors. UserError, one line, for the first bad row.
    """
    rows = read_rows(Source(path=path), key, {})
    return [item_of(row, key, number).example for number, row in enumerate(rows)]


def _question(item: Item, group: str) -> Probe:
    return Probe(
        item.id,
        item.question,
        item.answer,
        group,
        item.fact,
        wrong_answers=item.wrong_answers,
        cluster=item.cluster,
    )


def _paraphrases(item: Item) -> list[Probe]:
    """The paraphrased questions; each belongs to the cluster of its question."""
    return [
        Probe(f"{item.id}/paraphrase{number}", text, item.answer, "forget_paraphrase", item.fact, cluster=item.cluster)
        for number, text in enumerate(item.paraphrases)
    ]


def _paraphrased(items: Sequence[Item]) -> list[Example]:
    """The paraphrased questions with the answer to each, to be learned."""
    return [
        Example(f"{item.id}/paraphrase{number}", text, item.answer)
        for item in items
        for number, text in enumerate(item.paraphrases)
    ]


def _passages(text: str, size: int) -> list[list[str]]:
    """A text cut into passages of `size` words, each word with the space after it."""
    words = re.findall(r"\S+\s*", text)
    if words and len(text) / len(words) > LONGEST_WORD:
        words = [text[start : start + 2] for start in range(0, len(text), 2)]
    return [words[start : start + size] for start in range(0, len(words), size)]


def _refuse_twins(ids: Sequence[str], where: str) -> None:
    twin = next((one for one, other in itertools.pairwise(sorted(ids)) if one == other), None)
    if twin is not None:
        raise UserError(f"{where}: id {twin!r} stands twice; give each row its own, or none")
