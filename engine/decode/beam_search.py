"""Leak floor: a certified lower bound on leak@k without sampling, from the exact probability of leaking answers.

In: a causal LM, a prompt and answers as token ids, the decoding; out: log-probabilities and the bound at any k.
Knows nothing of texts or of what leaks: answers come with their scores, 1 where not said.
Shape letters: P prompts, B answers or beams, T tokens, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from engine.leak.estimator import Floats

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
    eos_token_id: int | Sequence[int],
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    whole: bool | Sequence[bool] = True,
) -> Floats:
    """Log-probability that the model, sampled so, emits each answer: float64 [answers].

    prompt, answers: token ids, without an end token. eos_token_id: one, or all that end an answer. whole: exactly the
    answer and then an end token; False: an output that begins with the answer, whatever follows (then no answer given
    to leak_floor may begin another); or one of these an answer. One teacher-forced pass over all answers. -inf where
    the decoding cuts off a token of the answer.
    """
    return decoded_log_probs(model, prompt, answers, eos_token_id, [(temperature, top_p, top_k)], whole=whole)[0]


def decoded_log_probs(
    model: Any,
    prompt: Sequence[int],
    answers: Sequence[Sequence[int]],
    eos_token_id: int | Sequence[int],
    strategies: Sequence[tuple[float, float, int | None]],
    *,
    whole: bool | Sequence[bool] = True,
) -> Floats:
    """`answer_log_probs` under several (temperature, top_p, top_k) by one pass of the model: [strategies, answers]."""
    import torch

    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    ended = np.broadcast_to(whole, len(answers))
    lengths = np.array([len(answer) for answer in answers])
    longest = int(lengths.max()) + 1  # room for the end
    filler = int(ends[0])
    ids_BT = torch.tensor([[*prompt, *answer, *[filler] * (longest - len(answer))] for answer in answers])
    ids_BT = ids_BT.to(model.device)
    found = np.empty((len(strategies), len(answers)))
    with torch.inference_mode():
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits[:, len(prompt) - 1 : -1]
        for strategy, row in zip(strategies, found, strict=True):
            log_probs_BTV = decoding_log_probs(logits_BTV, *strategy)
            token_BT = log_probs_BTV.gather(-1, ids_BT[:, len(prompt) :, None])[..., 0].cpu().numpy()
            end_BT = log_probs_BTV[..., ends].logsumexp(-1).cpu().numpy()
            row[:] = [
                tokens[:length].sum() + (end[length] if is_whole else 0.0)
                for tokens, end, length, is_whole in zip(token_BT, end_BT, lengths, ended, strict=True)
            ]
    return found


def likely_answers(
    model: Any,
    prompts: Sequence[Sequence[int]],
    eos_token_id: int | Sequence[int],
    *,
    beams: int = 32,
    max_new_tokens: int = 64,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    least: float = -np.inf,
) -> list[list[Answer]]:
    """Whole answers to each prompt with their exact probabilities, likeliest first, by beam search of width `beams`.

    prompts: token ids, all of one length; they share every step. An answer is whole when it ends with an end token
    within max_new_tokens, the end token counted. What the beam drops, and what has a log-probability below `least`, is
    missing, so sums over these answers are lower bounds.
    """
    import torch

    ends = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    found: list[list[Answer]] = [[] for _ in prompts]
    alive = np.arange(len(prompts))  # prompts whose beam is not empty
    tokens_PBT = np.zeros((len(prompts), 1, 0), dtype=np.int64)
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([list(prompt) for prompt in prompts], device=model.device), use_cache=True
        )
        beam_PB = torch.zeros((len(prompts), 1), dtype=torch.float64, device=model.device)
        for step in range(max_new_tokens):
            step_PBV = decoding_log_probs(output.logits[:, -1], temperature, top_p, top_k).view(*beam_PB.shape, -1)
            step_PBV += beam_PB[..., None]
            ended_PB = step_PBV[..., ends].logsumexp(-1).cpu().numpy()
            for prompt, beam in zip(*np.nonzero((ended_PB > least) & (ended_PB > -np.inf)), strict=True):
                answer = Answer(tuple(tokens_PBT[prompt, beam].tolist()), float(ended_PB[prompt, beam]))
                found[alive[prompt]].append(answer)
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
    return [sorted(answers, key=lambda answer: -answer.log_prob) for answers in found]
