"""Sampling as a stage: a model and probes in, generations as parquet out, fanned over the cluster.

The work unit is a fixed group of prompts, whatever the number of workers. Where a probe has stop texts, a sample ends
with the token that completes one, and `response` is cut before it; token_ids, tokens and log-probabilities are of all
that was drawn.
Knows nothing of metrics.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.base import Decoding, Probe
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import counted, timed, unit_counts, unit_path, unit_seconds, whole
from engine.jsonl import JsonObject
from engine.models.chat_template import Options
from engine.models.loading import context_length, worker_model
from engine.models.source import ModelSource
from engine.stages.answer_texts import texts, thoughts_of
from engine.stages.base import Stage, Stages, fingerprint_probes, numerics
from engine.stages.given_answer import NOTHING_LEFT
from engine.stages.prompting import answer_length, fitted_prompts, given_of, reference_of
from engine.store.store import FinishedStage

if TYPE_CHECKING:
    from pyarrow import Array, Table

    from engine.decode.prefix_tree import Sample
    from engine.models.causal_lm import CausalLM
    from engine.models.tokenization import Tokenizer
SAMPLE_VERSION = 5  # part of every sampling's fingerprint: raise it when the sampler's results change
UNIT_ROWS = 2048
UNIT_PROMPTS = 64
UNIT_SECONDS = 60.0  # that a unit takes at most, about: what a kill loses, and what a worker idles at the end
STEP_ROWS = 256  # that a step computes in little more time than fewer: a unit has as many, whatever it takes
# Tokens a second times weights, of one core (74 tokens/s of 270 million weights) and of a GPU.
SPEED = {False: 2e10, True: 2e13}


@dataclasses.dataclass(frozen=True)
class SampleJob(Stage):
    """n samples of every probe from one model under one decoding (greedy: n = 1).

    max_rows: most that are decoded at once. workers: most at once, None: as many as fit. cpus: threads of each, None:
    what they leave. bf16: in bfloat16, else float32. portable: in arithmetic that CPUs share
    (engine/cluster/numerics.py). retokenise: see engine.models.tokenization.retokenised. prompts_a_unit:
    fewer than by n alone where the model is slow.
    """

    model: ModelSource
    probes: tuple[Probe, ...]
    decoding: Decoding
    n: int
    max_new_tokens: int
    seed: int = 0
    template: str = "auto"
    system: str | None = None
    template_options: Options | None = None
    max_rows: int | None = None
    gpus: float = 0.0
    cpus: int | None = None
    bf16: bool = False
    portable: bool = False
    retokenise: bool = False
    workers: int | None = None
    prompts_a_unit: int | None = None
    kind: ClassVar[str] = "sample"
    title: ClassVar[str] = "sample"
    actors: ClassVar[bool] = False  # whether workers hold what they have loaded for as long as the stage lasts
    in_one_pass: ClassVar[bool] = True  # whether jobs that differ in decoding alone read their prompts once for all

    @property
    def arithmetic(self) -> str:
        """What computes the samples, for fingerprints."""
        return numerics(self.gpus, self.portable, self.bf16)

    @property
    def units(self) -> int:
        return -(-len(self.probes) // self.unit_size)

    @property
    def unit_size(self) -> int:
        """Prompts a unit."""
        return self.prompts_a_unit or unit_prompts(self.n)

    @property
    def amount(self) -> float:
        """Tokens at most."""
        return float(len(self.probes) * self.n * self.max_new_tokens)

    def prompting(self) -> dict[str, object]:
        """What decides how the model is prompted and cut, without how many samples of what seed: of the inputs of all
        stages that ask a model as a sampling does."""
        return {
            "model": self.model.identity,
            "probes": fingerprint_probes(self.probes),
            "decoding": self.decoding.model_dump(),
            "max_new_tokens": self.max_new_tokens,
            "template": self.template,
            "system": self.system,
            **({"template_options": self.template_options} if self.template_options else {}),
            "retokenise": self.retokenise,
            "numerics": self.arithmetic,
        }

    def inputs(self) -> JsonObject:
        stops = {"stop": "ends the sample"} if any(probe.stop for probe in self.probes) else {}
        # A killed run's units are gone on from by their numbers.
        units = {"prompts_a_unit": self.prompts_a_unit} if self.unit_size != unit_prompts(self.n) else {}
        return self.prompting() | {"n": self.n, "seed": self.seed, "version": SAMPLE_VERSION} | stops | units

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units` with the generations; returns prompts, samples and tokens sampled."""
        return fill_grid([self], [work], report)[0]

    def compute(self, unit: int) -> tuple[Table, str]:
        """The generations of one unit as a table (one row a sample), and a note on the speed."""
        (table,), note = _computed((self,), unit)
        return table, note


@dataclasses.dataclass(frozen=True)
class GridJob:
    """Jobs that differ in decoding alone: a unit of all of them in one pass, which loads the model and reads the
    prompts once. folders: where the units of each stand; those that are there already are not drawn again."""

    jobs: tuple[SampleJob, ...]
    folders: tuple[str, ...]

    def compute(self, unit: int) -> tuple[dict[str, Table], str]:
        """By folder, the generations of one unit; a note on the speed."""
        missing = {
            folder: job
            for folder, job in zip(self.folders, self.jobs, strict=True)
            if not whole(unit_path(Path(folder), unit))
        }
        if not missing:  # their worker was killed after it had written them
            return {}, ""
        clock = time.monotonic()
        tables, note = _computed(tuple(missing.values()), unit)
        seconds = (time.monotonic() - clock) / len(missing)
        return {folder: timed(table, seconds) for folder, table in zip(missing, tables, strict=True)}, note


def _computed(jobs: tuple[SampleJob, ...], unit: int) -> tuple[list[Table], str]:
    """One unit of each of the jobs, which differ in decoding alone."""

    job = jobs[0]
    model, tokenizer = worker_model(job.model, job.gpus > 0, job.bf16)
    size = job.unit_size
    probes = job.probes[unit * size : (unit + 1) * size]
    clock = time.monotonic()
    drawn = sample_decodings(model, tokenizer, probes, jobs)
    tables = [samples_table(probes, samples, tokenizer, job) for samples in drawn]
    tokens = [sum(table["tokens"].to_pylist()) for table in tables]
    speed = sum(tokens) / max(time.monotonic() - clock, 1e-9)
    return [
        counted(table, {"tokens": count}) for table, count in zip(tables, tokens, strict=True)
    ], f"{speed:,.0f} tokens/s a worker"


def sample_grid(stages: Stages, label: str, jobs: Sequence[SampleJob]) -> list[FinishedStage]:
    """The generations of each of the jobs, which differ in decoding alone: a stage each, those that are not there yet
    filled in one pass over the prompts."""
    return stages.run_together(label, jobs, fill_grid)


def fill_grid(jobs: Sequence[SampleJob], works: Sequence[Path], report: Report) -> list[JsonObject]:
    """Fill the units of jobs that differ in decoding alone, in one pass: the facts of each."""
    folders, job = [work / "units" for work in works], jobs[0]
    options: dict[str, Any] = {"cpus": job.cpus, "portable": job.portable, "actors": job.actors}
    if job.in_one_pass and len(jobs) > 1:
        grid, (first, *others) = GridJob(tuple(jobs), tuple(map(str, folders))), folders
        fan_out(grid, job.units, first, report, job.workers, job.gpus, others, **options)
    else:
        for each, folder in zip(jobs, folders, strict=True):
            fan_out(each, each.units, folder, report, each.workers, each.gpus, **options)
    return [_facts(each, work) for each, work in zip(jobs, works, strict=True)]


def _facts(job: SampleJob, work: Path) -> JsonObject:
    return {
        "prompts": len(job.probes),
        "samples": len(job.probes) * job.n,
        "tokens": unit_counts(work / "units").get("tokens", 0),
        "seconds": unit_seconds(work / "units"),
    }


def unit_prompts(n: int, tokens: int = 1, weights: float = 0.0, on_gpu: bool = False) -> int:
    """Prompts a unit, the same for any number of workers: bounded in prompts, in samples and, beyond a step's rows, in
    the time that one worker takes for samples of at most so many tokens from a model of so many weights."""
    quick = int(UNIT_SECONDS * SPEED[on_gpu] / (weights * n * tokens)) if weights else UNIT_PROMPTS
    return max(1, min(UNIT_PROMPTS, UNIT_ROWS // n, max(quick, STEP_ROWS // n)))


def sample_probes(
    model: CausalLM, tokenizer: Tokenizer, probes: tuple[Probe, ...], job: SampleJob
) -> list[list[Sample]]:
    """The Samples (engine.decode.sampler) of each probe, in order: a list of job.n for each."""
    return sample_decodings(model, tokenizer, probes, [job])[0]


def sample_decodings(
    model: CausalLM, tokenizer: Tokenizer, probes: tuple[Probe, ...], jobs: Sequence[SampleJob]
) -> list[list[list[Sample]]]:
    """`sample_probes` for each of the jobs, which differ in decoding alone, in one pass over the prompts."""
    from engine.decode.sampler import sample_grid
    from engine.decode.stop_texts import StopTexts
    from engine.models.chat_template import stop_token_ids

    job = jobs[0]
    lengths = [answer_length(probe, job.max_new_tokens) for probe in probes]
    prompts = fitted_prompts(tokenizer, probes, job, context_length(model))
    found: list[dict[int, list[Sample]]] = [{} for _ in jobs]
    for length in dict.fromkeys(lengths):
        chosen = [index for index, each in enumerate(lengths) if each == length]
        stops = [probes[index].stop for index in chosen]
        grid = sample_grid(
            model,
            [prompts[index] for index in chosen],
            job.n,
            [each.decoding for each in jobs],
            max_new_tokens=length,
            seed=job.seed,
            prompt_ids=[probes[index].id for index in chosen],
            eos_token_id=stop_token_ids(tokenizer, job.template_options),
            max_rows=job.max_rows,
            ended=StopTexts(tokenizer, stops) if any(stops) else None,
        )
        for samples, of_job in zip(grid, found, strict=True):
            of_job |= zip(chosen, samples, strict=True)
    return [[of_job[index] for index in range(len(probes))] for of_job in found]


def samples_table(
    probes: tuple[Probe, ...], samples: list[list[Sample]], tokenizer: Tokenizer, job: SampleJob
) -> Table:
    """One row a sample of each probe, as many of each: what was asked, what came, and how likely it was."""
    import pyarrow

    given = [given_of(tokenizer, probe, job).probe for probe in probes]
    whole = tuple(left or probe for left, probe in zip(given, probes, strict=True))
    cut = tuple(
        dataclasses.replace(probe, reference=reference_of(probe, tokenizer, job.max_new_tokens)) for probe in whole
    )
    columns = prompt_columns(cut, len(samples[0]))
    flat = [each for of_probe in samples for each in of_probe]
    stops = [probe.stop for probe, of_probe in zip(probes, samples, strict=True) for _ in of_probe]
    answers: list[str | None] = list(texts(flat, tokenizer, stops, thoughts_of(tokenizer, job)))
    if None in given:  # a sample that cannot be scored, and why
        blind = [left is None for left, of_probe in zip(given, samples, strict=True) for _ in of_probe]
        answers = [None if none else answer for answer, none in zip(answers, blind, strict=True)]
        columns["failure"] = pyarrow.array([NOTHING_LEFT if none else None for none in blind], pyarrow.string())
    columns["response"] = pyarrow.array(answers, pyarrow.string())
    columns["token_ids"] = pyarrow.array([each.token_ids for each in flat], pyarrow.list_(pyarrow.int32()))
    columns["tokens"] = pyarrow.array([each.drawn for each in flat], pyarrow.int32())
    columns["logprob"] = pyarrow.array([each.logprob for each in flat], pyarrow.float64())
    columns["model_logprob"] = pyarrow.array([each.model_logprob for each in flat], pyarrow.float64())
    columns["finish"] = pyarrow.array([each.finish for each in flat], pyarrow.string())
    return pyarrow.table(columns)


def prompt_columns(probes: tuple[Probe, ...], n: int) -> dict[str, Array]:
    """The columns of a table of generations that say which sample of which probe a row is, n rows a probe."""
    import pyarrow

    values = {"prompt_id": "id", "group": "group", "prompt": "prompt", "reference": "reference", "fact": "fact"}
    columns: dict[str, Array] = {
        name: pyarrow.array([getattr(probe, field) for probe in probes for _ in range(n)], pyarrow.string())
        for name, field in values.items()
    }
    columns = {name: column.dictionary_encode() for name, column in columns.items()}
    columns["sample"] = pyarrow.array([index for _ in probes for index in range(n)], pyarrow.int32())
    return columns
