"""The one law of decoding: the probability of every token under a temperature, top-k and top-p.

Logits and a `Decoding` come in; weights, log-probabilities and the kept tokens go out, in float64. The sampler, the
beam search and the log-probabilities of given answers all use it, so that an exact probability is the sampler's.
Knows nothing of models, caches or samples.
Temperature first, then top-k, then top-p, the order of Hugging Face transformers. Of equally likely tokens the lowest
are kept, as many as there is room for; bfloat16 logits are full of such ties.
Shape letters: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from benchmarks.base import Decoding

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 2**17, "cuda": 2**27}  # of float64 logits that are added up together
TIES_VERSION = 2  # part of the fingerprint of log-probabilities where ties at a cut are likely (`tie_inputs`)


def token_weights(logits: Tensor, temperature: float) -> Tensor:
    """exp((logits - max) / temperature) of logits [..., V], float64. Only elementwise steps and, later, running sums:
    unlike a library softmax, whose sums are ordered by the shape, they give a row the same bits in any batch."""
    import torch

    weights = logits.to(torch.float64, copy=True)
    return weights.sub_(weights.amax(dim=-1, keepdim=True)).div_(temperature).exp_()


def kept_tokens(weights: Tensor, decoding: Decoding) -> Tensor:
    """Which tokens top-k and then top-p keep: bool [..., V]. weights: [..., V], at the decoding's temperature.

    top_p keeps the smallest set of the likeliest tokens, within the top_k, that holds this share of their weight.
    """
    descending = _descending(weights)[..., : decoding.top_k]
    cumulative = descending.cumsum(dim=-1)
    inside = cumulative - descending < decoding.top_p * cumulative[..., -1:]
    count = inside.sum(dim=-1, keepdim=True).clamp_(min=1)
    if decoding.top_p == 1:
        count.fill_(descending.shape[-1])
    least = descending.gather(-1, count - 1)
    above, equal = weights > least, weights == least
    room = count - above.sum(dim=-1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=-1) <= room))


def decoding_weights(logits: Tensor, decoding: Decoding) -> Tensor:
    """The weight of every token under a decoding that is not greedy: float64 [..., V], 0 for tokens cut off."""
    weights = token_weights(logits, decoding.temperature)
    return weights.mul_(kept_tokens(weights, decoding)) if decoding.restricted else weights


def decoding_log_probs(logits: Tensor, decoding: Decoding) -> Tensor:
    """The log-probability of every token: float64 [..., V], -inf for tokens cut off.

    Greedy: 0 for the likeliest token, the lowest of several, and -inf for all others.
    """
    import torch

    logits = logits.double()
    if decoding.greedy:
        nothing = torch.full_like(logits, -torch.inf)
        return nothing.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    scaled = logits / decoding.temperature
    if decoding.restricted:
        kept = kept_tokens(token_weights(logits, decoding.temperature), decoding)
        scaled = scaled.masked_fill(~kept, -torch.inf)
    return scaled.log_softmax(-1)


def scores_and_total(logits: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Scores [..., V] and float64 `total` [..., 1]: a token's log-probability is its score, in float64, less the total.

    What wants the probabilities of few tokens is spared the float64 ones of all.
    """
    import torch

    if decoding.greedy or decoding.restricted:
        scores = decoding_log_probs(logits, decoding)
        return scores, torch.zeros_like(scores[..., :1])
    scores = logits if decoding.temperature == 1 else logits.double() / decoding.temperature
    rows = scores.flatten(0, -2)
    # Few rows at a time: what lies in a CPU's cache is not read from main memory again and again.
    size = max(1, CHUNK_ELEMENTS[logits.device.type] // logits.shape[-1])
    totals = [chunk.double().logsumexp(-1) for chunk in rows.split(size)]
    return scores, torch.cat(totals).view(*scores.shape[:-1], 1)


def tie_inputs(decodings: Iterable[Decoding], bf16: bool) -> dict[str, int]:
    """What a stage of log-probabilities adds to its inputs: a key where tokens are cut off by bfloat16 logits alone, so
    that all other stages are known as before there was one law for ties."""
    return {"ties": TIES_VERSION} if bf16 and any(decoding.restricted for decoding in decodings) else {}


def _descending(weights: Tensor) -> Tensor:
    """Each row's weights from the largest; numpy's sort of plain values is many times faster than torch's on a CPU."""
    import numpy as np
    import torch

    if weights.device.type == "cpu":
        return torch.from_numpy(-np.sort(-weights.numpy(), axis=-1))
    return weights.sort(dim=-1, descending=True).values
