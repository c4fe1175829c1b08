"""One token for each sample: logits by cache row and uniform numbers come in, tokens and log-probabilities go out.

The law is the decoding's (engine/decode/law.py) and nothing else; the uniform numbers are a pure function of (seed,
prompt id, sample index, step). Knows nothing of models, caches or of when a sample ends.
Shape letters: R cache rows, S samples alive, M samples on one row, N samples a prompt, V vocabulary.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.base import Decoding
from engine.decode.law import decoding_weights, token_weights

BLOCK_ELEMENTS = 2**25  # probabilities held at once, in float64


class Drawn(NamedTuple):
    """token_S int64; float64 log-probabilities under the decoding and under the untempered model (NaN if the logits
    were not finite)."""

    token_S: np.ndarray
    logprob_S: np.ndarray
    model_logprob_S: np.ndarray


def prompt_key(seed: int, prompt_id: str) -> int:
    """The 128-bit Philox key of one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:16], "little")


def uniforms(key: int, step: int, n: int) -> np.ndarray:
    """u_N in [0, 1) of the samples 0..n - 1 of a prompt at a step; the first of more samples are those of fewer."""
    return np.random.Generator(np.random.Philox(key=key, counter=[0, step, 0, 0])).random(n)


def draw(logits_RV: Tensor, row_S: np.ndarray, uniform_S: np.ndarray, decoding: Decoding) -> Drawn:
    """The token of each sample, which stands on row row_S of the logits, by the inverse CDF of its row."""
    order_S = np.argsort(row_S, kind="stable")
    row_S, uniform_S = row_S[order_S], uniform_S[order_S]
    first_R = np.searchsorted(row_S, np.arange(len(logits_RV) + 1))
    place_S = np.arange(len(row_S)) - first_R[row_S]
    rows = max(1, BLOCK_ELEMENTS // logits_RV.shape[1])
    blocks, flat_S, offset = [], np.empty(len(row_S), dtype=np.int64), 0
    for start in range(0, len(logits_RV), rows):
        logits = logits_RV[start : start + rows]
        mine = slice(first_R[start], first_R[start + len(logits)])
        block = _draw(logits, row_S[mine] - start, place_S[mine], uniform_S[mine], decoding)
        many = block.shape[2]
        flat_S[order_S[mine]] = offset + (row_S[mine] - start) * many + place_S[mine] % many  # all alike where greedy
        blocks.append(block.flatten(1))
        offset += blocks[-1].shape[1]
    drawn = torch.cat(blocks, dim=1).cpu().numpy()[:, flat_S]  # the one wait for the device in a step
    return Drawn(drawn[0].astype(np.int64), drawn[1], drawn[2])


def _draw(
    logits_RV: Tensor, row_S: np.ndarray, place_S: np.ndarray, uniform_S: np.ndarray, decoding: Decoding
) -> Tensor:
    """Tokens, log-probabilities and model log-probabilities [3, R, M], of the M-th uniform number of each row; M = 1
    where greedy. place_S counts the samples of each row."""
    weights_RV = token_weights(logits_RV, 1.0)
    cumulative_RV = weights_RV.cumsum(dim=-1)
    if decoding.greedy:
        token_RM = logits_RV.argmax(dim=-1, keepdim=True)
        logprob_RM = torch.zeros_like(token_RM, dtype=torch.float64)
    else:
        uniform_RM = np.zeros((len(logits_RV), int(place_S.max()) + 1))
        uniform_RM[row_S, place_S] = uniform_S
        law_RV, law_cumulative_RV = weights_RV, cumulative_RV
        if decoding.restricted or decoding.temperature != 1:
            law_RV = decoding_weights(logits_RV, decoding)
            law_cumulative_RV = law_RV.cumsum(dim=-1)
        token_RM = _inverse(law_cumulative_RV, sent(uniform_RM, logits_RV.device))
        logprob_RM = (law_RV.gather(1, token_RM) / law_cumulative_RV[:, -1:]).log()
    model_logprob_RM = (weights_RV.gather(1, token_RM) / cumulative_RV[:, -1:]).log()
    return torch.stack([token_RM.double(), logprob_RM, model_logprob_RM])


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device: to a GPU from page-locked memory, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _inverse(cumulative_RV: Tensor, uniform_RM: Tensor) -> Tensor:
    """The first token whose running sum lies above the uniform's share of the total."""
    total_R1 = cumulative_RV[:, -1:]
    share_RM = torch.minimum(uniform_RM * total_R1, torch.nextafter(total_R1, torch.zeros_like(total_R1)))
    # The clamp matters for sums that are not finite only: they are reported, not read out of bounds.
    return torch.searchsorted(cumulative_RV, share_RM, right=True).clamp_(max=cumulative_RV.shape[1] - 1)
