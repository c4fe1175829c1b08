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
from engine.decode.law import scores_and_total
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
            input_ids=torch.tensor([list(prompt) for prompt in prompts], device=model.device),
            use_cache=True,
            logits_to_keep=1,
        )
        beam_PB = torch.zeros((len(prompts), 1), dtype=torch.float64, device=model.device)
        for step in range(max_new_tokens):
            scores_RV, total_R1 = scores_and_total(output.logits[:, -1], decoding)
            before_R1 = beam_PB.view(-1, 1) - total_R1  # what a token's score is added to
            ended_R = (scores_RV[:, ends].double() + before_R1).logsumexp(-1)
            ended_PB = ended_R.view_as(beam_PB).cpu().numpy()
            for prompt, beam in zip(*np.nonzero((ended_PB > least) & (ended_PB > -np.inf)), strict=True):
                answer = Answer(tuple(tokens_PBT[prompt, beam].tolist()), float(ended_PB[prompt, beam]))
                answers[alive[prompt]].append(answer)
            if step == max_new_tokens - 1:
                break
            scores_RV[:, ends] = -torch.inf
            likeliest = scores_RV.topk(min(beams, scores_RV.shape[1]))  # of each row: all that its beam may keep
            step_PM = (likeliest.values.double() + before_R1).view(len(alive), -1)
            best = step_PM.topk(min(beams, step_PM.shape[1]))
            kept_P = ((best.values > least) & (best.values > -torch.inf)).any(1)
            if not kept_P.any():
                break
            parents = best.indices // likeliest.values.shape[1]
            tokens = likeliest.indices.view(len(alive), -1).gather(1, best.indices)
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
