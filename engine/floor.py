"""Leak floor: a certified lower bound on leak@k without sampling, from the exact probability of leaking answers.

In: a causal LM, a prompt and answers as token ids, the decoding; out: log-probabilities and the bound at any k.
Knows nothing of texts or of what leaks: answers come with their scores, 1 where not said.
Shape letters: B answers or beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from engine.leak import Floats

if TYPE_CHECKING:
    from torch import Tensor


@dataclasses.dataclass(frozen=True)
class Answer:
    """A whole answer, up to and without the end token, and the natural logarithm of its probability."""

    token_ids: tuple[int, ...]
    log_prob: float


def leak_floor(log_probs: ArrayLike, k: ArrayLike, scores: ArrayLike | None = None) -> Floats:
    """Lower bound on a prompt's leak@k from the probabilities of some of its answers: float64 of the shape of k.

    log_probs: [answers] of different whole answers. k: 1 to 1e9 and beyond. scores: [answers] in [0, 1], 1 where not
    given. With q the probability of an answer that scores 1 it is 1 - (1 - q)^k; for graded scores the same is summed
    over the levels of score. Answers that are not listed count as scoring 0, hence a bound.
    Raises ValueError for probabilities that sum to more than one: the same answer twice.
    """
    probabilities = np.exp(np.asarray(log_probs, dtype=np.float64))
    if probabilities.sum() > 1 + 1e-4:
        raise ValueError(f"probabilities of different answers cannot sum to {probabilities.sum():.4f}: list each once")
    scores = np.ones_like(probabilities) if scores is None else np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    at_least = np.minimum(np.cumsum(probabilities[order]), 1.0)  # chance of a sample that scores this or more
    steps = scores[order] - np.append(scores[order][1:], 0.0)
    with np.errstate(divide="ignore"):
        missed = np.log1p(-at_least)
    return np.asarray(-np.expm1(np.multiply.outer(np.asarray(k, dtype=np.float64), missed)) @ steps)


def decoding_log_probs(logits: Tensor, temperature: float, top_p: float, top_k: int | None = None) -> Tensor:
    """Log-probabilities that sampling really uses, float64 [..., V]: -inf for tokens that the decoding cuts off.

    Temperature, then top_k, then top_p (the smallest set of likeliest tokens with probability >= top_p), the order of
    Hugging Face transformers. temperature 0 = greedy: 0 for the likeliest token, -inf for all others.
    """
    import torch

    logits = logits.double()
    if temperature == 0:
        greedy = torch.full_like(logits, -torch.inf)
        return greedy.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    logits = logits / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k).values[..., -1:], -torch.inf)
    if top_p < 1:
        descending, order = logits.softmax(-1).sort(-1, descending=True)
        cut = descending.cumsum(-1) - descending >= top_p  # the likelier tokens alone are enough
        logits = logits.masked_fill(torch.zeros_like(cut).scatter(-1, order, cut), -torch.inf)
    return logits.log_softmax(-1)


def answer_log_probs(
    model: Any,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    eos_token_id: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    whole: bool = True,
) -> Floats:
    """Log-probability that the model, sampled so, emits each answer: float64 [answers].

    prompt, answers: token ids, without an end token. whole: exactly the answer and then the end token; False: an output
    that begins with the answer, whatever follows (then no answer given to leak_floor may begin another). One
    teacher-forced pass over all answers. -inf where the decoding cuts off a token of the answer.
    """
    import torch

    end = [eos_token_id] if whole else []
    targets = [[*answer, *end] for answer in answers]
    longest = max(map(len, targets))
    ids_BT = torch.tensor([[*prompt, *answer, *[eos_token_id] * (longest - len(answer))] for answer in targets])
    ids_BT = ids_BT.to(model.device)
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, len(prompt) - 1 : -1]
        log_probs_BTV = decoding_log_probs(logits_BTV, temperature, top_p, top_k)
    tokens_BT = ids_BT[:, len(prompt) :]
    token_log_probs_BT = log_probs_BTV.gather(-1, tokens_BT[..., None])[..., 0].cpu().numpy()
    return np.array([row[: len(answer)].sum() for row, answer in zip(token_log_probs_BT, targets, strict=True)])


def likely_answers(
    model: Any,
    prompt: Sequence[int],
    eos_token_id: int,
    *,
    beams: int = 32,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
) -> list[Answer]:
    """Whole answers with their exact probabilities, likeliest first, by beam search of width `beams`.

    An answer is whole when it ends with the end token within max_new_tokens, the end token counted. What the beam drops
    is missing, so sums over these answers are lower bounds.
    """
    import torch

    finished: list[Answer] = []
    beam_tokens: list[tuple[int, ...]] = [()]
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([list(prompt)], device=model.device), use_cache=True)
        beam_log_probs = torch.zeros(1, dtype=torch.float64, device=model.device)
        for _ in range(max_new_tokens):
            step_BV = decoding_log_probs(output.logits[:, -1], temperature, top_p, top_k) + beam_log_probs[:, None]
            finished += [
                Answer(tokens, float(log_prob))
                for tokens, log_prob in zip(beam_tokens, step_BV[:, eos_token_id], strict=True)
                if log_prob > -torch.inf
            ]
            step_BV[:, eos_token_id] = -torch.inf
            best = step_BV.flatten().topk(min(beams, step_BV.numel()))
            alive = best.values > -torch.inf
            beam_log_probs, flat = best.values[alive], best.indices[alive]
            if not len(flat):
                break
            parents, tokens = flat // step_BV.shape[1], flat % step_BV.shape[1]
            beam_tokens = [
                (*beam_tokens[parent], token) for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)
            ]
            cache = output.past_key_values
            cache.reorder_cache(parents)
            output = model(input_ids=tokens[:, None], past_key_values=cache, use_cache=True)
    return sorted(finished, key=lambda answer: -answer.log_prob)
