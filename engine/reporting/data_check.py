"""Looks at a file of a user's own before anything is paid: forget sets, probes, generations.

A path comes in; a DataCheck comes out: what is in the file, and what is wrong with it, row by row. A bad row does not
stop it. Knows nothing of models; whoever wants exact numbers of tokens hands in how to count them.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from benchmarks.files import FilesOptions
from benchmarks.rows import JSON_LINES, Source, read_rows
from engine.errors import UserError
from engine.jsonl import Reading, json_lines
from engine.metrics.exact import exact_fact
from engine.metrics.rouge import rouge_l
from engine.metrics.words import words
from engine.reporting.generations import read_generations
from engine.reporting.row_shapes import MANY_KEYS, ONE_KEYS

Kind = Literal["forget set", "probes", "generations"]
OTHERS = 200  # answers to other questions that a reference is looked for in, to see what chance gives away
COMMON = 0.01  # of these: beyond it, 128 tries that know nothing leak more often than not
FOLLOWS = 0.8  # of an answer's words that stand in its question
LETTERS_A_TOKEN = 4  # of English, where no tokenizer is named
MAX_NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Asked:
    """One row: where it stands, what is asked and what is to be answered; text: it is running text, in `answer`."""

    where: str
    question: str
    answer: str
    fact: str | None = None
    cluster: str | None = None
    responses: tuple[str | None, ...] = ()

    @property
    def secret(self) -> str:
        """What gives the answer away."""
        return self.fact or self.answer


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something about the file: "no", it cannot be used so; "note", one should know. rows: where, all of them."""

    what: str
    state: Literal["no", "note"]
    rows: list[str]
    said: str


@dataclasses.dataclass(frozen=True)
class Tokens:
    """How much text there is; exact: counted by the tokenizer of a model, else about LETTERS_A_TOKEN letters each."""

    questions: int
    answers: int
    longest: int
    exact: bool


@dataclasses.dataclass(frozen=True)
class DataCheck:
    """What is in a file. clusters: distinct ones, 0 where none is named. samples: of generations, the fewest and the
    most of a prompt. trained: tokens of one pass over it; sampled: tokens of n samples a prompt, at most."""

    kind: Kind
    rows: int
    findings: list[Finding]
    clusters: int
    largest_cluster: int
    tokens: Tokens
    trained: int
    n: int
    sampled: int
    samples: tuple[int, int] | None = None

    @property
    def usable(self) -> bool:
        return not any(finding.state == "no" for finding in self.findings)


def check_file(path: Path, n: int, columns: Mapping[str, str], count: Callable[[str], int] | None = None) -> DataCheck:
    """Look at a file. n: samples a prompt, for the cost; columns: our name: theirs; count: tokens of a text.

    UserError where the file cannot be read at all, or holds no row of any of the kinds.
    """
    values, malformed = _values(path, columns)
    first = next((row for _, row in values), {})
    if any(key in first for key in (*MANY_KEYS, *ONE_KEYS)):
        return _generations(path, n, count)
    kind: Kind = "probes" if "prompt" in first else "forget set"
    names = ("prompt", "reference") if kind == "probes" else ("question", "answer")
    if not ({*names, "text"} & set(first)):
        raise UserError(
            f"{path}: expected rows of question and answer, text, prompt and reference, or responses; found "
            f"{', '.join(map(str, first)) or 'nothing'}; --columns question=YOURS,answer=YOURS names others"
        )
    asked = [_asked(where, row, names) for where, row in values]
    findings = [
        Finding("malformed lines", "no", malformed, "cannot be read"),
        Finding("empty", "no", [row.where for row in asked if not words(row.answer)], "no answer that holds a word"),
        *_findings([row for row in asked if words(row.answer)]),
    ]
    return _checked(kind, asked, findings, n, count)


def _values(path: Path, columns: Mapping[str, str]) -> tuple[list[tuple[str, dict[str, object]]], list[str]]:
    """Every row as (place, values), and the places of lines that are none."""
    if path.is_dir() or path.suffix.lower() not in JSON_LINES:
        rows = read_rows(Source(path=str(path)), "", columns)
        return [(row.where.removeprefix(f" {path}:").strip(), dict(row.values)) for row in rows], []
    reading = Reading()
    values: list[tuple[str, dict[str, object]]] = []
    malformed: list[str] = []
    theirs = {column: ours for ours, column in columns.items()}
    with json_lines(path, reading) as lines:
        for line in lines:
            if isinstance(line.value, dict):
                row: dict[str, object] = {str(theirs.get(key, key)): value for key, value in line.value.items()}
                values.append((f"line {line.number}", row))
            else:
                malformed.append(f"line {line.number}")
    malformed += [f"line {number}" for number, _ in reading.examples]
    if not values:
        raise UserError(f"{path}: no row in it ({reading.first_fault})")
    return values, malformed


def _asked(where: str, row: Mapping[str, object], names: tuple[str, str]) -> Asked:
    def text(key: str) -> str:
        value = row.get(key)
        return "" if value is None else str(value)

    question, answer = (text(name) for name in names)
    cluster = text("cluster") or (None if question else text("id") or where)  # a document is a cluster of its own
    return Asked(where, question, answer or text("text"), text("fact") or None, cluster)


def _findings(asked: Sequence[Asked]) -> list[Finding]:
    questions = [row for row in asked if row.question]
    inside = exact_fact([row.question for row in questions], [row.secret for row in questions])
    recall = rouge_l([row.question for row in questions], [row.secret for row in questions]).recall
    lost = [row for row in asked if row.fact and not exact_fact([row.answer], [row.fact])[0]]
    follows = [row for row, whole, share in zip(questions, inside, recall, strict=True) if whole or share >= FOLLOWS]
    return [
        Finding("duplicates", "note", _twins(asked), "the same question and answer as an earlier row: it counts twice"),
        Finding("contradictions", "note", _disputed(questions), "the same question as an earlier row, another answer"),
        Finding("facts not in their answers", "no", [row.where for row in lost], "the answer itself scores 0"),
        Finding(
            "answers that follow from the question",
            "note",
            [row.where for row in follows],
            "a model that knows nothing can answer: reword the question, or name a fact that it does not hold",
        ),
        Finding(
            "references that chance leaks",
            "note",
            _common(questions),
            f"short, or said by over {COMMON:.0%} of the answers to other questions: name a longer fact",
        ),
    ]


def _twins(asked: Iterable[Asked]) -> list[str]:
    earlier: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
    twins = []
    for row in asked:
        key = (tuple(words(row.question)), tuple(words(row.answer)))
        if key in earlier:
            twins.append(row.where)
        earlier.add(key)
    return twins


def _disputed(asked: Iterable[Asked]) -> list[str]:
    answers: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    disputed = []
    for row in asked:
        others = answers.setdefault(tuple(words(row.question)), set())
        answer = tuple(words(row.answer))
        if others and answer not in others:
            disputed.append(row.where)
        others.add(answer)
    return disputed


def _common(asked: Sequence[Asked]) -> list[str]:
    """Rows whose secret is one short word, or stands in more than COMMON of the answers to other questions."""
    common = []
    step = max(1, len(asked) // OTHERS)
    for index, row in enumerate(asked):
        others = [other.answer for at, other in enumerate(asked[::step]) if at * step != index]
        others = [answer for answer in others if answer != row.answer]
        share = exact_fact(others, [row.secret] * len(others)).mean() if others else 0.0
        told = words(row.secret)
        if share > COMMON or (len(told) == 1 and len(told[0]) <= 3):
            common.append(row.where)
    return common


def _generations(path: Path, n: int, count: Callable[[str], int] | None) -> DataCheck:
    reading = Reading()
    rows = [
        Asked(row.prompt_id, row.prompt, row.reference, row.fact, row.cluster, tuple(row.responses))
        for row in read_generations(path, reading)
    ]
    sizes = [len(row.responses) for row in rows]
    failed = [row.where for row in rows if None in row.responses]
    blank = [row.where for row in rows if any(text is not None and not text.strip() for text in row.responses)]
    same = [row.where for row in rows if len(row.responses) > 1 and len(set(row.responses)) == 1]
    uneven = [row.where for row in rows if len(row.responses) < max(sizes)]
    findings = [
        Finding("malformed lines", "no", [f"line {number}" for number, _ in reading.examples], "cannot be read"),
        Finding("failed samples", "note", failed, "null or no text: they have no score"),
        Finding("blank responses", "note", blank, "they score 0; did the server cut them off?"),
        Finding("responses all the same", "note", same, "drawn greedily? leak@k needs samples"),
        Finding("fewer samples than other prompts", "note", uneven, f"k goes up to {min(sizes)}"),
        *_findings(rows),
    ]
    return _checked("generations", rows, findings, n, count, (min(sizes), max(sizes)))


def _checked(
    kind: Kind,
    asked: Sequence[Asked],
    findings: Iterable[Finding],
    n: int,
    count: Callable[[str], int] | None,
    samples: tuple[int, int] | None = None,
) -> DataCheck:
    clusters = Counter(row.cluster for row in asked if row.cluster is not None)
    loose = [row.where for row in asked if row.cluster is None] if clusters else []
    kept = [finding for finding in findings if finding.rows]
    if loose:
        kept.append(Finding("rows without a cluster", "note", loose, "each counts as a cluster of its own"))
    measure = count or (lambda text: -(-len(text) // LETTERS_A_TOKEN))
    questions, answers = [measure(row.question) for row in asked], [measure(row.answer) for row in asked]
    longest = max((question + answer for question, answer in zip(questions, answers, strict=True)), default=0)
    return DataCheck(
        kind=kind,
        rows=len(asked),
        findings=kept,
        clusters=len(clusters),
        largest_cluster=max(clusters.values(), default=0),
        tokens=Tokens(sum(questions), sum(answers), longest, count is not None),
        trained=sum(questions) + sum(answers),
        n=n,
        sampled=_prompts(asked) * n * MAX_NEW_TOKENS,
        samples=samples,
    )


def _prompts(asked: Sequence[Asked]) -> int:
    """How many prompts a file gives: its questions, and the passages of its texts that are asked by their beginning."""
    options = FilesOptions.model_fields
    size = options["prompt_words"].default + options["answer_words"].default
    passages = [-(-len(words(row.answer)) // size) for row in asked if not row.question]
    return len(asked) - len(passages) + min(options["passages"].default, sum(passages))
