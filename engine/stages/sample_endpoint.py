"""Sampling from a model behind an OpenAI-compatible server (vLLM, SGLang, TGI, llama.cpp, transformers serve, ...).

An EndpointJob comes in; generations as engine.stages.sample's come out, unit by unit, without token ids and
log-probabilities, which such servers do not give, and null with a reason where the server did not answer. Needs no
torch and no model.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.base import Decoding, Probe
from engine.cluster.fan_out import fan_out
from engine.cluster.reporter import Report
from engine.cluster.units import counted, unit_counts, unit_seconds
from engine.jsonl import JsonObject
from engine.models import openai_client
from engine.models.chat_template import Options
from engine.models.source import ModelSource
from engine.stages.answer_texts import before_stop
from engine.stages.base import Stage, fingerprint_probes
from engine.stages.openai_replies import Answer
from engine.stages.openai_sampler import MANNERS, SAMPLES_A_REQUEST, Conversation, Manner
from engine.stages.sample import prompt_columns, unit_prompts

if TYPE_CHECKING:
    from pyarrow import Table


ENDPOINT_VERSION = 1  # part of every fingerprint: raise it when what is asked changes
NO_LIKELIHOOD = "an endpoint gives no likelihoods: log-probabilities and the lower bound (floor) are not computed"


@dataclasses.dataclass(frozen=True)
class Endpoint(ModelSource):
    """A model behind a server, which can be asked but not loaded; made by `endpoint`.

    key_variable: environment variable of the API key. concurrency: requests at once; retries, timeout: of a request,
    see engine.models.openai_client.
    """

    url: str = ""
    name: str = ""
    key_variable: str = openai_client.DEFAULT_KEY
    concurrency: int = 16
    retries: int = 5
    timeout: float = 300.0


def endpoint(url: str, name: str, **limits: Any) -> Endpoint:
    """The model called `name` behind the server at `url`, which names it in results and must hold no credentials."""
    url = openai_client.checked_url(url, "model.endpoint")
    identity = f"{name} at {url}"
    return Endpoint(identity, identity, url=url, name=name, **limits)


@dataclasses.dataclass(frozen=True)
class EndpointJob(Stage):
    """n samples of every probe from an endpoint under one decoding (greedy: n = 1).

    chat: the server renders the prompt, after `system` where there is one; else the plain form goes
    to completions. manner, keyed: how the server is asked and whether there is a key, found out by `run`.
    """

    endpoint: Endpoint
    probes: tuple[Probe, ...]
    decoding: Decoding
    n: int
    max_new_tokens: int
    seed: int = 0
    chat: bool = True
    system: str | None = None
    template_options: Options | None = None
    manner: Manner = MANNERS[0]
    keyed: bool = False
    kind: ClassVar[str] = "sample"
    title: ClassVar[str] = "sample"

    @property
    def units(self) -> int:
        return -(-len(self.probes) // unit_prompts(self.n))

    @property
    def amount(self) -> float:
        """Tokens at most, as of a sampling."""
        return float(len(self.probes) * self.n * self.max_new_tokens)

    def inputs(self) -> JsonObject:
        return {
            "endpoint": self.endpoint.identity,
            "probes": fingerprint_probes(self.probes),
            "decoding": self.decoding.model_dump(),
            **{name: getattr(self, name) for name in ("n", "max_new_tokens", "seed", "chat", "system")},
            **({"template_options": self.template_options} if self.template_options else {}),
            "samples_a_request": SAMPLES_A_REQUEST,
            "version": ENDPOINT_VERSION,
        }

    def run(self, work: Path, report: Report) -> JsonObject:
        """Fill `work/units` with the generations; returns counts, missing samples by reason, and notes.

        UserError where the server is not there, refuses the key, the model or every request, or stops answering.
        """
        job = dataclasses.replace(self, keyed=bool(os.environ.get(self.endpoint.key_variable)))
        with Conversation(job) as conversation:
            manner, notes = conversation.find_manner()
        fan_out(dataclasses.replace(job, manner=manner), job.units, work / "units", report, workers=1)
        counts = unit_counts(work / "units")
        return {
            "prompts": len(job.probes),
            "samples": len(job.probes) * job.n,
            "tokens": counts.pop("tokens"),
            "seconds": unit_seconds(work / "units"),
            "missing": counts,
            "asked": manner._asdict(),
            "notes": notes,
        }

    def compute(self, unit: int) -> tuple[Table, str]:
        """The generations of one unit as a table (one row a sample), and a note on the speed."""
        size = unit_prompts(self.n)
        probes = self.probes[unit * size : (unit + 1) * size]
        clock = time.monotonic()
        with Conversation(self) as conversation:
            answers = conversation.answers(((probe.id, _asked_text(probe)) for probe in probes), self.n)
        missing = Counter(answer.failure for answer in answers if answer.failure)
        tokens = sum(answer.tokens or 0 for answer in answers)
        note = f"{len(answers) / max(time.monotonic() - clock, 1e-9):,.1f} samples/s"
        note += f", {missing.total()} missing" if missing else ""
        return counted(_table(probes, self.n, answers), {"tokens": tokens, **missing}), note


def _asked_text(probe: Probe) -> str:
    """The prompt, after its shots where it has some: a server is asked in one turn."""
    return "\n\n".join([*(f"{question}\n{answer}" for question, answer in probe.shots or ()), probe.prompt])


def _table(probes: tuple[Probe, ...], n: int, answers: list[Answer]) -> Table:
    import pyarrow

    count = len(answers)
    stops = [probe.stop for probe in probes for _ in range(n)]
    responses = [
        each.text if each.text is None else before_stop(each.text, stop)
        for each, stop in zip(answers, stops, strict=True)
    ]
    return pyarrow.table(
        prompt_columns(probes, n)
        | {
            "response": pyarrow.array(responses, pyarrow.string()),
            "token_ids": pyarrow.nulls(count, pyarrow.list_(pyarrow.int32())),
            "tokens": pyarrow.array([each.tokens for each in answers], pyarrow.int32()),
            "logprob": pyarrow.nulls(count, pyarrow.float64()),
            "model_logprob": pyarrow.nulls(count, pyarrow.float64()),
            "finish": pyarrow.array([each.finish for each in answers], pyarrow.string()),
            "failure": pyarrow.array([each.failure for each in answers], pyarrow.string()),
        }
    )
