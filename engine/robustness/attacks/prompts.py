"""The same model asked otherwise: unlearning that hangs on the wording of a question gives way to another one.

    paraphrase   the benchmark's other wordings of the question
    prefix       the first tokens of the reference stand where the answer begins; they do not count as leaked
    few_shot     retain questions with their answers come before, as earlier turns
    instruction  wrapped in an instruction or a jailbreak, a line of instructions.txt or of `file` each
    cloze        the reference up to its fact stands where the answer begins, the fact is left out

Each family is reported alone, and all jointly: k samples drawn at random over all families.
Sources: rephrasing and in-context attacks, arXiv 2402.16835; given prefixes, arXiv 2012.07805.
"""

from __future__ import annotations

import dataclasses
import random
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.base import Benchmark, Probe, is_leak_group
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.fingerprint import fingerprint
from engine.robustness.base import PromptAttack

Family = Literal["paraphrase", "prefix", "few_shot", "instruction", "cloze"]
INSTRUCTIONS = Path(__file__).with_name("instructions.txt")
USUAL: tuple[Family, ...] = ("paraphrase", "prefix", "few_shot", "instruction")
GIVES_TOKENS = ("prefix", "cloze")  # families that a server's chat cannot be asked by: it begins the answer itself
JOINT = "joint"


class Prompts(PromptAttack):
    """families: which (default: paraphrase, prefix, few_shot and instruction, as far as the benchmark and the model can
    be asked by them). prefix: how many tokens of the reference are given, each number a family of its own. shots:
    retain questions before the question, fewer where the model's context is too short. file: further wrappers, a line
    each with {question} in it."""

    families: Annotated[tuple[Family, ...], Field(min_length=1)] | None = None
    prefix: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 2, 4)
    shots: int = Field(default=3, ge=1)
    file: str | None = None

    @property
    def default_label(self) -> str:
        return "prompts"

    def done(self, family: str = "") -> str:
        kind, _, number = family.partition("-")
        if kind == JOINT:
            return "Asked in all these ways, its samples spread over them"
        return {
            "paraphrase": "Asked in other words",
            "prefix": f"Given the first {number} tokens of the answer" if number != "1" else "Given the first token",
            "few_shot": "Asked after other questions with their answers",
            "instruction": f"Asked by instruction {number}",
            "cloze": "Given the answer up to its fact",
        }[kind]

    def check(self, experiment: Experiment, benchmark: Benchmark) -> None:
        families, served = self.families or (), experiment.model.endpoint is not None
        if served and (given := [each for each in families if each in GIVES_TOKENS]):
            others = ", ".join(each for each in families if each not in GIVES_TOKENS)
            raise UserError(
                f"attacks: prompts: a model behind a server cannot be asked by {', '.join(given)}; give "
                f"families: [{others or 'paraphrase'}]"
            )
        if any(probe.raw for probe in benchmark.group(benchmark.protocol.leak_group)):
            raise UserError(
                f"attacks: prompts: benchmark {benchmark.name} asks by running text, which has no other wording; "
                "take a benchmark of questions"
            )
        self.asked(benchmark, served)

    def asked(self, benchmark: Benchmark, served: bool = False) -> dict[str, list[Probe]]:
        usual = [family for family in USUAL if not (served and family in GIVES_TOKENS)]
        found: dict[str, list[Probe]] = {}
        for family in dict.fromkeys(self.families or usual):
            made = {name: probes for name, probes in self._family(family, benchmark) if probes}
            if self.families and not made:
                raise UserError(
                    f"attacks: prompts: benchmark {benchmark.name} cannot be asked by {family}; "
                    "leave it out of families"
                )
            found |= made
        return found

    def _family(self, family: Family, benchmark: Benchmark) -> Iterator[tuple[str, list[Probe]]]:
        probes = benchmark.group(benchmark.protocol.leak_group)
        if family == "paraphrase":
            yield family, _paraphrases(benchmark, probes)
        elif family == "prefix":
            for tokens in self.prefix:
                name = f"prefix-{tokens}"
                yield name, [_named(probe, name, given_tokens=tokens) for probe in probes]
        elif family == "few_shot":
            questions = [each for each in benchmark.retain if each.question]
            chosen = random.Random(f"few_shot {self.seed}").sample(questions, min(self.shots, len(questions)))
            shots = tuple((each.question, each.answer) for each in chosen)
            yield family, [_named(probe, family, shots=shots) for probe in probes] if shots else []
        elif family == "instruction":
            for number, wrapper in enumerate(self._wrappers(), 1):
                name = f"instruction-{number}"
                yield name, [_named(each, name, prompt=wrapper.format(question=each.prompt)) for each in probes]
        else:
            yield (
                family,
                [
                    _named(probe, family, given_text=probe.reference[: probe.reference.index(probe.fact)].rstrip())
                    for probe in probes
                    if probe.fact and probe.reference.find(probe.fact) > 0
                ],
            )

    def reads(self, benchmark: Benchmark) -> dict[str, str]:
        return {} if self.file is None else {"file": fingerprint(self._wrappers())}

    def _wrappers(self) -> list[str]:
        """The instruction wrappers, ours and the user's. UserError for a line without {question}."""
        lines = INSTRUCTIONS.read_text(encoding="utf-8").splitlines()
        if self.file is not None:
            try:
                lines += Path(self.file).read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"attacks: prompts: file: {self.file} cannot be read ({error})") from error
        wrappers = [line for line in lines if line.strip()]
        for line in wrappers:
            if _fields(line) != {("question", "", None)}:
                raise UserError(f"attacks: prompts: file: {line[:60]!r}: expected {{question}} and no other braces")
        return wrappers


def _fields(line: str) -> set[tuple[str, str | None, str | None]]:
    """What stands in the braces of a line: name, format and conversion; nothing where braces do not match."""
    try:
        return {(name, form, kind) for _, name, form, kind in string.Formatter().parse(line) if name is not None}
    except ValueError:
        return set()


def _named(probe: Probe, family: str, **changes: object) -> Probe:
    return dataclasses.replace(probe, id=f"{probe.id}~{family}", group=f"forget_{family}", **changes)  # type: ignore[arg-type]


def _paraphrases(benchmark: Benchmark, probes: list[Probe]) -> list[Probe]:
    """The benchmark's other wordings: probes of its other leak groups about the same forget items."""
    about = {item: probe for probe in probes if (item := benchmark.example_of(probe)) is not None}
    others = [each for each in benchmark.probes if is_leak_group(each.group) and each.group != probes[0].group]
    found = {}
    for each in others:
        item = benchmark.example_of(each)
        probe = about.get(item) if item is not None else None
        if probe is not None and each.prompt != probe.prompt and probe.id not in found:
            found[probe.id] = dataclasses.replace(each, id=f"{probe.id}~paraphrase", group="forget_paraphrased")
    return list(found.values())
