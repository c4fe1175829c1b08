"""Probes whose answer is begun for the model: which tokens stand there, and what of the reference is left to be said.

What was given does not count as leaked: a sample is scored against the rest. Knows nothing of sampling.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from benchmarks.base import Probe
from engine.models.chat_template import Options, stop_token_ids
from engine.models.tokenization import IGNORED, encode_example, encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase as Tokenizer

NOTHING_LEFT = "the given tokens hold the whole answer"


@dataclasses.dataclass(frozen=True)
class Given:
    """token_ids: what the answer begins with. probe: with what is left of reference and fact, None for nothing."""

    token_ids: tuple[int, ...]
    probe: Probe | None


def given_answer(
    tokenizer: Tokenizer, probe: Probe, template: str, system: str | None, options: Options | None = None
) -> Given:
    """What of the probe's reference is given, by its `given_tokens` or `given_text`, and the probe that is then scored.

    The tokens are those of the reference as a trained answer, so that they join the prompt as in training.
    """
    if probe.given_tokens is None and probe.given_text is None:
        return Given((), probe)
    opening, answer = _answer_ids(tokenizer, probe, probe.reference, template, system, options)
    if probe.given_tokens is not None:
        ids = answer[: probe.given_tokens]
    else:
        ids = _answer_ids(tokenizer, probe, probe.given_text or "", template, system, options)[1]
    text = str(tokenizer.decode(ids, skip_special_tokens=True)).strip()
    reference = probe.reference.strip()
    if reference.startswith(text):
        rest = reference[len(text) :]
    else:
        rest = str(tokenizer.decode(answer[len(ids) :], skip_special_tokens=True))
    left = dataclasses.replace(probe, reference=rest.strip(), fact=_rest_of_fact(probe, len(reference) - len(rest)))
    scored = left if any(map(str.isalnum, left.reference)) and left.fact != "" else None
    return Given((*opening, *ids), scored)


def _answer_ids(
    tokenizer: Tokenizer, probe: Probe, answer: str, template: str, system: str | None, options: Options | None
) -> tuple[list[int], list[int]]:
    """Token ids that a template writes before an answer to the probe's question, and the answer's own without what ends
    it."""
    prompt = len(encode_prompt(tokenizer, probe.prompt, template, system, options))
    encoded = encode_example(tokenizer, probe.prompt, answer, template, system, options=options)
    start = next(index for index, label in enumerate(encoded.labels) if label != IGNORED)
    ids, ends = encoded.input_ids[start:], set(stop_token_ids(tokenizer, options))
    while ids and (ids[-1] in ends or not str(tokenizer.decode([ids[-1]])).strip()):
        ids.pop()
    return encoded.input_ids[prompt:start], ids


def _rest_of_fact(probe: Probe, given: int) -> str | None:
    """What of the fact stands behind the first `given` characters of the reference; empty where nothing does."""
    if probe.fact is None:
        return None
    start = probe.reference.strip().find(probe.fact)
    if start < 0 or start >= given:
        return probe.fact
    rest = probe.fact[given - start :].strip()
    return rest if any(map(str.isalnum, rest)) else ""
