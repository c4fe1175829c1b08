"""How a sampling puts its probes to a model: the tokens that it is given, how long an answer may be, and the reference
that an answer is scored against.

Knows nothing of how tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.base import Probe
from engine.errors import UserError
from engine.stages.given_answer import Given, given_answer

if TYPE_CHECKING:
    from engine.models.tokenization import Tokenizer
    from engine.stages.sample import SampleJob


def encoded_prompts(
    tokenizer: Tokenizer, probes: Sequence[Probe], job: SampleJob, rooms: Sequence[int | None] | None = None
) -> list[list[int]]:
    """The token ids that the model is given for each probe. rooms: most tokens of each; a probe's first shots are left
    out where they do not fit."""
    from engine.models.tokenization import retokenised

    rooms = rooms or [None] * len(probes)
    prompts = [_encoded(tokenizer, probe, job, room) for probe, room in zip(probes, rooms, strict=True)]
    return [retokenised(tokenizer, prompt) for prompt in prompts] if job.retokenise else prompts


def given_of(tokenizer: Tokenizer, probe: Probe, job: SampleJob) -> Given:
    return given_answer(tokenizer, probe, "raw" if probe.raw else job.template, job.system, job.template_options)


def _encoded(tokenizer: Tokenizer, probe: Probe, job: SampleJob, room: int | None) -> list[int]:
    from engine.models.tokenization import encode_prompt

    template = "raw" if probe.raw else job.template
    given = list(given_of(tokenizer, probe, job).token_ids)
    shots = probe.shots or ()
    while True:
        ids = encode_prompt(tokenizer, probe.prompt, template, job.system, job.template_options, shots) + given
        if not shots or room is None or len(ids) <= room:
            return ids
        shots = shots[1:]


def answer_length(probe: Probe, most: int) -> int:
    """Most tokens of an answer to the probe, where an experiment allows `most`."""
    return min(most, probe.max_new_tokens or most)


def reference_of(probe: Probe, tokenizer: Tokenizer, most: int) -> str:
    """What an answer is scored against: the reference, cut to an answer's length where the probe asks for it."""
    if not probe.cut_reference:
        return probe.reference
    ids = tokenizer(probe.reference)["input_ids"][: answer_length(probe, most)]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def fitted_prompts(tokenizer: Tokenizer, probes: Sequence[Probe], job: SampleJob, limit: int | None) -> list[list[int]]:
    """`encoded_prompts` for a model whose context holds `limit` tokens, None where that is not known. UserError where a
    prompt and its answer do not fit."""
    lengths = [answer_length(probe, job.max_new_tokens) for probe in probes]
    rooms = [None if limit is None else limit - length for length in lengths]
    prompts = encoded_prompts(tokenizer, probes, job, rooms)
    for probe, prompt, length in zip(probes, prompts, lengths, strict=True):
        if limit is not None and len(prompt) + length > limit:
            raise UserError(
                f"sampling: prompt {probe.id} takes {len(prompt)} tokens and may get {length} more, but the model's "
                f"context holds {limit}; lower sampling.max_new_tokens or take a model with a longer context"
            )
    return prompts
