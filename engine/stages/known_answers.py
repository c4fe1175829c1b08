"""Known answers as a stage: answers that score, with their exact probabilities, found without drawing a sample.

A model, probes and a decoding come in; out come, as parquet, the reference answers and what a beam search finds, as far
as they score above 0. `known_answers` adds those that were sampled, whose probability the sampler notes: together they
bound leak@k from below at any k (engine/leak/bounds.py). Knows nothing of leak@k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.base import Probe
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import each_unit, read_unit, unit_seconds
from engine.decode.beam_search import likely_answers
from engine.decode.law import tie_inputs
from engine.decode.logprobs import answer_log_probs
from engine.jsonl import JsonObject
from engine.models.loading import worker_model
from engine.stages.answer_texts import answer_texts, thoughts_of
from engine.stages.base import Stage
from engine.stages.prompting import answer_length, encoded_prompts, reference_of
from engine.stages.sample import SampleJob

if TYPE_CHECKING:
    from pyarrow import Table

    from engine.models.causal_lm import CausalLM
    from engine.models.tokenization import Tokenizer


ANSWERS_VERSION = 4  # part of every stage's fingerprint: raise it when other answers are found
UNIT_PROMPTS = 64
BEAM_LOGITS = {"cpu": 2**22, "cuda": 2**27}  # held at once, float64
LEAST_LOG_PROB = -25.0  # an answer below 1.4e-11 adds .014 to leak@k at k = 1e9


@dataclasses.dataclass(frozen=True)
class AnswersJob(Stage):
    """Answers to the probes of a sampling, under its decoding, that score above 0 by a metric with its options.

    beams: width of the beam search, 0 = the reference answers alone. prompts_a_unit: as much work as units of sampling.
    """

    sampling: SampleJob
    metric: str
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    beams: int = 16
    prompts_a_unit: int = UNIT_PROMPTS
    kind: ClassVar[str] = "answers"
    title: ClassVar[str] = "known answers"

    @property
    def units(self) -> int:
        return -(-len(self.sampling.probes) // self.prompts_a_unit)

    @property
    def amount(self) -> float:
        """Answers that are followed: the reference and the beams of each probe."""
        return float(len(self.sampling.probes) * (self.beams + 1))

    def inputs(self) -> JsonObject:
        from engine.metrics import known_by

        own = {"metric": self.metric, "options": self.options, "beams": self.beams, "version": ANSWERS_VERSION}
        ties = tie_inputs([self.sampling.decoding], bf16=self.sampling.bf16)
        units = {} if self.prompts_a_unit == UNIT_PROMPTS else {"prompts_a_unit": self.prompts_a_unit}
        return self.sampling.prompting() | own | ties | units | known_by(self.metric, self.options)

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units`; returns seconds of work."""
        sampling = self.sampling
        fan_out(
            self,
            self.units,
            work / "units",
            report,
            sampling.workers,
            sampling.gpus,
            cpus=sampling.cpus,
            portable=sampling.portable,
        )
        return {"seconds": unit_seconds(work / "units")}

    def compute(self, unit: int) -> tuple[Table, str]:
        """One row an answer: prompt_id, group, token_ids, logprob, response, score."""

        model, tokenizer = worker_model(self.sampling.model, self.sampling.gpus > 0, self.sampling.bf16)
        probes = self.sampling.probes[unit * self.prompts_a_unit : (unit + 1) * self.prompts_a_unit]
        return _table(probes, found_answers(model, tokenizer, probes, self), tokenizer, self), ""


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """Distinct answers to one prompt: token ids, logarithms of the exact probabilities, scores: float64 [answers]."""

    token_ids: tuple[tuple[int, ...], ...]
    log_probs: np.ndarray
    scores: np.ndarray

    def with_score(self, least: float) -> dict[Hashable, float]:
        """The log-probability of each answer that scores `least` or more, by its token ids."""
        rows = zip(self.token_ids, self.log_probs.tolist(), self.scores.tolist(), strict=True)
        return {tokens: log_prob for tokens, log_prob, score in rows if score >= least}


def found_answers(
    model: CausalLM, tokenizer: Tokenizer, probes: Sequence[Probe], job: AnswersJob
) -> list[dict[tuple[int, ...], float]]:
    """For each probe the log-probability of its reference answers and of what the beam search finds, by token ids."""
    from engine.models.chat_template import stop_token_ids

    sampling, ends = job.sampling, stop_token_ids(tokenizer, job.sampling.template_options)
    prompts = encoded_prompts(tokenizer, probes, sampling)
    lengths = [answer_length(probe, sampling.max_new_tokens) for probe in probes]
    found: list[dict[tuple[int, ...], float]] = [{} for _ in probes]
    for index, probe in enumerate(probes):
        given = [each for each in _references(probe, tokenizer, sampling, ends) if len(each) < lengths[index]]
        if given:
            log_probs = answer_log_probs(model, prompts[index], given, ends, sampling.decoding)
            found[index] |= zip(given, log_probs.tolist(), strict=True)
    beamed = [index for index, probe in enumerate(probes) if job.beams and not (probe.raw or probe.stop)]
    vocabulary = model.get_output_embeddings().weight.shape[0]
    most = max(1, BEAM_LOGITS[model.device.type] // (vocabulary * max(job.beams, 1)))
    for shape in dict.fromkeys((len(prompts[index]), lengths[index]) for index in beamed):
        alike = [index for index in beamed if (len(prompts[index]), lengths[index]) == shape]
        for start in range(0, len(alike), most):
            chosen = alike[start : start + most]
            answers = likely_answers(
                model,
                [prompts[index] for index in chosen],
                ends,
                sampling.decoding,
                beams=job.beams,
                max_new_tokens=shape[1],
                least=LEAST_LOG_PROB,
            )
            for index, each in zip(chosen, answers, strict=True):
                found[index] |= {answer.token_ids: answer.log_prob for answer in each}
    return found


def _references(probe: Probe, tokenizer: Tokenizer, job: SampleJob, ends: Sequence[int]) -> list[tuple[int, ...]]:
    """The tokens of the reference and of its paraphrase, as a trained model ends them; none after running
    text and where a stop text may end an answer sooner."""
    from engine.models.tokenization import encode_example, encode_prompt

    if probe.raw or probe.stop:
        return []
    texts = dict.fromkeys(filter(None, (probe.reference, probe.paraphrased_answer)))
    answers = []
    for text in texts:
        asked = (job.template, job.system)
        encoded = encode_example(tokenizer, probe.prompt, text, *asked, options=job.template_options)
        prompt = encode_prompt(tokenizer, probe.prompt, *asked, job.template_options)
        tokens = encoded.input_ids[len(prompt) :]  # a channel's header too: the model has to write it
        stop = next((at for at, token in enumerate(tokens) if token in ends), len(tokens))
        answers.append(tuple(tokens[:stop]))
    return list(dict.fromkeys(answers))


def _table(
    probes: Sequence[Probe], found: list[dict[tuple[int, ...], float]], tokenizer: Tokenizer, job: AnswersJob
) -> Table:
    import pyarrow

    from engine.metrics import METRICS, score_counted

    rows = [
        (probe, tokens, log_prob)
        for probe, answers in zip(probes, found, strict=True)
        for tokens, log_prob in answers.items()
        if log_prob > -np.inf
    ]
    stops = [probe.stop for probe, *_ in rows]
    texts = answer_texts([tokens for _, tokens, _ in rows], tokenizer, stops, thoughts_of(tokenizer, job.sampling))
    most, metric = job.sampling.max_new_tokens, METRICS[job.metric]
    told = {probe.id: metric.truth(reference_of(probe, tokenizer, most), probe.fact) for probe in probes}
    scored = score_counted(
        job.metric,
        texts,
        [told[probe.id] for probe, _, _ in rows],
        [probe.prompt for probe, _, _ in rows],
        **job.options,
    )
    kept = [(*row, text, score) for row, text, score in zip(rows, texts, scored.scores, strict=True) if score]
    return pyarrow.table(
        {
            "prompt_id": pyarrow.array([probe.id for probe, *_ in kept], pyarrow.string()),
            "group": pyarrow.array([probe.group for probe, *_ in kept], pyarrow.string()),
            "token_ids": pyarrow.array([list(tokens) for _, tokens, *_ in kept], pyarrow.list_(pyarrow.int32())),
            "logprob": pyarrow.array([log_prob for _, _, log_prob, *_ in kept], pyarrow.float64()),
            "response": pyarrow.array([text for *_, text, _ in kept], pyarrow.string()),
            "score": pyarrow.array([score for *_, score in kept], pyarrow.float64()),
        }
    )


def known_answers(answers: Path, sampled: Sequence[tuple[Path, Path]] = ()) -> dict[str, dict[str, Known]]:
    """By group and prompt id, every answer that scores: those of a finished answers stage, and those that were sampled,
    from the folders of generations and of their scores.

    A sample that was cut at its longest is an outcome like any other. An answer that both know counts once, with the
    larger of its two probabilities: they differ where a model has several end tokens, and either one is a lower bound.
    """
    found: dict[tuple[str, str], dict[tuple[int, ...], tuple[float, float]]] = {}
    for group, prompt_id, tokens, log_prob, score in _rows(answers, sampled):
        answers_of = found.setdefault((group, prompt_id), {})
        before = answers_of.get(tokens, (-np.inf, score))
        answers_of[tokens] = max((log_prob, score), before)
    known: dict[str, dict[str, Known]] = {}
    for (group, prompt_id), answers_of in found.items():
        log_probs, values = zip(*answers_of.values(), strict=True)
        known.setdefault(group, {})[prompt_id] = Known(tuple(answers_of), np.minimum(log_probs, 0.0), np.array(values))
    return known


def _rows(
    answers: Path, sampled: Sequence[tuple[Path, Path]]
) -> Iterator[tuple[str, str, tuple[int, ...], float, float]]:
    import pyarrow.compute

    columns = ["group", "prompt_id", "token_ids", "logprob"]
    for table in each_unit(answers):
        for row in table.to_pylist():
            yield row["group"], row["prompt_id"], tuple(row["token_ids"]), row["logprob"], row["score"]
    for generations, scores in sampled:
        for path in sorted((generations / "units").glob("*.parquet")):
            score = read_unit(scores / "units" / path.name, ["score"])["score"]
            table = read_unit(path, columns).append_column("score", score)
            for row in table.filter(pyarrow.compute.greater(table["score"], 0)).to_pylist():
                yield row["group"], row["prompt_id"], tuple(row["token_ids"]), row["logprob"], row["score"]
