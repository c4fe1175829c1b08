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

# Weights held at once: on a CPU as many as its cache takes.
CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**27}
WIDE = 4096  # a larger vocabulary is searched in two levels
BLOCK = 128  # tokens of the second


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
    rows = max(1, CHUNK_ELEMENTS[logits_RV.device.type] // logits_RV.shape[1])
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
    of_model = _law(logits_RV, 1.0)
    if decoding.greedy:
        token_RM = logits_RV.float().argmax(dim=-1, keepdim=True)  # in bfloat16 it takes several times as long
        logprob_RM = torch.zeros_like(token_RM, dtype=torch.float64)
    else:
        uniform_RM = np.zeros((len(logits_RV), int(place_S.max()) + 1))
        uniform_RM[row_S, place_S] = uniform_S
        law = of_model
        if decoding.restricted:
            law = _Weights(decoding_weights(logits_RV, decoding))
        elif decoding.temperature != 1:
            law = _law(logits_RV, decoding.temperature)
        token_RM = law.tokens(sent(uniform_RM, logits_RV.device))
        logprob_RM = law.log_probs(token_RM)
    return torch.stack([token_RM.double(), logprob_RM, of_model.log_probs(token_RM)])


def sent(array: np.ndarray, device: torch.device) -> Tensor:
    """The array on the device: to a GPU from page-locked memory, so that nobody waits for the copy."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _law(logits_RV: Tensor, temperature: float) -> _Weights | _Blocks:
    """The law at a temperature, nothing cut off."""
    if logits_RV.shape[1] > WIDE:
        return _Blocks(logits_RV, temperature)
    return _Weights(token_weights(logits_RV, temperature))


class _Weights:
    """A law by the float64 weight of every token [R, V]."""

    def __init__(self, weights_RV: Tensor) -> None:
        self.weights_RV, self.cumulative_RV = weights_RV, weights_RV.cumsum(dim=-1)

    def tokens(self, uniform_RM: Tensor) -> Tensor:
        return _inverse(self.cumulative_RV, uniform_RM * self.cumulative_RV[:, -1:])

    def log_probs(self, token_RM: Tensor) -> Tensor:
        return (self.weights_RV.gather(1, token_RM) / self.cumulative_RV[:, -1:]).log()


class _Blocks:
    """The law of a wide vocabulary at a temperature, nothing cut off, in two levels: blocks of tokens by their sums,
    then the tokens of one block.

    Weights are float32, so that a token's probability is that of `log_probs` within a few parts in ten million; sums
    over blocks are float64.
    """

    def __init__(self, logits_RV: Tensor, temperature: float) -> None:
        self.logits_RV, self.temperature = logits_RV, temperature
        self.most_R1 = logits_RV.amax(dim=-1, keepdim=True)
        weights_RV = (
            logits_RV.float().sub_(self.most_R1) if logits_RV.dtype != torch.float32 else logits_RV - self.most_R1
        )
        weights_RV = (weights_RV if temperature == 1 else weights_RV.div_(temperature)).exp_()
        spare = -weights_RV.shape[1] % BLOCK
        if spare:
            weights_RV = torch.nn.functional.pad(weights_RV, (0, spare))
        self.weights_RBT = weights_RV.view(len(weights_RV), -1, BLOCK)
        self.cumulative_RB = self.weights_RBT.sum(dim=-1).double().cumsum(dim=-1)

    def tokens(self, uniform_RM: Tensor) -> Tensor:
        share_RM = uniform_RM * self.cumulative_RB[:, -1:]
        block_RM = _inverse(self.cumulative_RB, share_RM)
        end_RM = self.cumulative_RB.gather(1, block_RM)
        begin_RM = torch.where(block_RM > 0, self.cumulative_RB.gather(1, (block_RM - 1).clamp_(min=0)), 0.0)
        within_RM = (share_RM - begin_RM) / (end_RM - begin_RM)  # of the block, whose tokens are added up anew
        index = block_RM[..., None].expand(-1, -1, BLOCK)
        cumulative_RMT = self.weights_RBT.gather(1, index).double().cumsum(dim=-1)
        return block_RM * BLOCK + _inverse(cumulative_RMT, within_RM[..., None] * cumulative_RMT[..., -1:])[..., 0]

    def log_probs(self, token_RM: Tensor) -> Tensor:
        scaled_RM = (self.logits_RV.gather(1, token_RM).double() - self.most_R1) / self.temperature
        return scaled_RM - self.cumulative_RB[:, -1:].log()


def _inverse(cumulative: Tensor, share: Tensor) -> Tensor:
    """The first place whose running sum [..., places] lies above the share of the total [..., M]."""
    total = cumulative[..., -1:]
    share = torch.minimum(share, torch.nextafter(total, torch.zeros_like(total)))
    # The clamp matters for sums that are not finite only: they are reported, not read out of bounds.
    return torch.searchsorted(cumulative, share, right=True).clamp_(max=cumulative.shape[-1] - 1)
