"""The likeliest whole answers of a model with their exact probabilities, by beam search.

A causal LM and prompts as token ids come in; answers as token ids with log-probabilities go out. With leak_floor
(engine/leak/bounds.py) they bound leak@k from below without a sample. Knows nothing of texts or of what leaks.
Shape letters: P prompts, B beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.base import Decoding
from engine.decode.law import decoding_log_probs
from engine.decode.logprobs import FULL

if TYPE_CHECKING:
    from engine.models.causal_lm import CausalLM


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole answer, up to and without the end token, and the natural logarithm of its probability."""

    token_ids: tuple[int, ...]
    log_prob: float


def likely_answers(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    eos_token_id: int | Sequence[int],
    decoding: Decoding = FULL,
    *,
    beams: int = 32,
    max_new_tokens: int = 64,
    least: float = -np.inf,
) -> list[list[Answer]]:
    """Whole answers to each prompt with their exact probabilities, likeliest first, by beam search of width `beams`.

    prompts: token ids, all of one length; they share every step. An answer is whole when it ends with an end token
    within max_new_tokens, the end token counted. What the beam drops, and what has a log-probability below `least`, is
    missing, so sums over these answers are lower bounds.
    """
    import torch

    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    answers: list[list[Answer]] = [[] for _ in prompts]
    alive = np.arange(len(prompts))  # prompts whose beam is not empty
    tokens_PBT = np.zeros((len(prompts), 1, 0), dtype=np.int64)
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([list(prompt) for prompt in prompts], device=model.device), use_cache=True
        )
        beam_PB = torch.zeros((len(prompts), 1), dtype=torch.float64, device=model.device)
        for step in range(max_new_tokens):
            step_PBV = decoding_log_probs(output.logits[:, -1], decoding).view(*beam_PB.shape, -1)
            step_PBV += beam_PB[..., None]
            ended_PB = step_PBV[..., ends].logsumexp(-1).cpu().numpy()
            for prompt, beam in zip(*np.nonzero((ended_PB > least) & (ended_PB > -np.inf)), strict=True):
                answer = Answer(tuple(tokens_PBT[prompt, beam].tolist()), float(ended_PB[prompt, beam]))
                answers[alive[prompt]].append(answer)
            if step == max_new_tokens - 1:
                break
            step_PBV[..., ends] = -torch.inf
            best = step_PBV.flatten(1).topk(min(beams, step_PBV[0].numel()))
            kept_P = ((best.values > least) & (best.values > -torch.inf)).any(1)
            if not kept_P.any():
                break
            parents, tokens = best.indices // step_PBV.shape[2], best.indices % step_PBV.shape[2]
            rows = torch.arange(len(alive), device=model.device)[:, None] * beam_PB.shape[1] + parents
            beam_PB, parents, tokens, rows = best.values[kept_P], parents[kept_P], tokens[kept_P], rows[kept_P]
            chosen = kept_P.cpu().numpy()
            alive = alive[chosen]
            before = np.take_along_axis(tokens_PBT[chosen], parents.cpu().numpy()[..., None], axis=1)
            tokens_PBT = np.concatenate([before, tokens.cpu().numpy()[..., None]], axis=2)
            cache = output.past_key_values
            cache.reorder_cache(rows.flatten())
            output = model(input_ids=tokens.flatten()[:, None], past_key_values=cache, use_cache=True)
    return [sorted(of_prompt, key=lambda answer: -answer.log_prob) for of_prompt in answers]
