"""A tree of sampled prefixes: all samples of a prompt start from one cache row, which splits where they diverge.

A model, a group of prompts' first logits and a decoding come in; finished samples go out. Every distinct prefix is
computed once: rows split where samples diverge and vanish where they end, so that a memorised text costs one row
however many samples repeat it. The device computes logits and draws; which sample stands on which row is kept in numpy,
so that a step waits for the device once. Knows nothing of texts or of how prompts are grouped.
Shape letters: P prompts, T positions, R cache rows, S samples alive.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.base import Decoding
from engine.decode.cuda_graph import FixedRows
from engine.decode.kv_cache import LEAST_ROWS, KVRows, padded
from engine.decode.token_sampling import Drawn, draw, sent, uniforms
from engine.errors import DivergedError
from engine.models.causal_lm import CausalLM

Ended = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Sample(NamedTuple):
    """One continuation: its tokens without the end token or stop sequence, log-probability of all of it (end included)
    under the sampling distribution and under the untempered model, why it ended, and how many tokens were drawn."""

    token_ids: list[int]
    logprob: float
    model_logprob: float
    finish: str  # "stop" or "length"
    drawn: int


class Prefill(NamedTuple):
    """Cache and next-token logits of a group's prompts, and how much each was padded on the left (None: none was)."""

    cache: KVRows
    logits_PV: Tensor
    pad_P: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Branch:
    """Rows to be computed next: token_R, each to follow row parent_R of `cache`, and the samples on them.

    step: tokens already drawn. shared: other branches need this cache, which must stay as it is.
    """

    cache: KVRows
    shared: bool
    parent_R: np.ndarray
    token_R: np.ndarray
    sample_S: np.ndarray
    row_S: np.ndarray
    step: int


class PrefixTree:
    """The samples of one group of prompts, under one decoding."""

    def __init__(
        self,
        model: CausalLM,
        decoding: Decoding,
        keys: list[int],
        n: int,
        steps: int,
        ends: list[list[int]],
        rows: int,
        fixed: FixedRows | None = None,
    ) -> None:
        """keys: a Philox key a prompt. ends: token sequences that end a sample. rows: most cache rows at once."""
        self.model, self.decoding, self.keys, self.n, self.steps = model, decoding, keys, n, steps
        self.ends, self.rows = sorted(ends, key=len), rows  # of several that end a sample, the longest is cut off
        count = len(keys) * n
        self.tokens = np.zeros((count, steps), dtype=np.int32)
        self.lengths, self.drawn = np.full(count, steps), np.full(count, steps)
        self.stopped = np.zeros(count, dtype=bool)
        self.logprob = np.zeros(count)
        self.model_logprob = np.zeros(count)
        self.uniforms: dict[int, np.ndarray] = {}
        self.fixed = fixed
        self.ended: Ended | None = None
        self.prompt_P = np.arange(len(keys))

    def grow(self, prefill: Prefill) -> None:
        """Draw every sample to its end, depth first, with at most `rows` rows on the device at once."""
        self.width, self.pad_P = prefill.cache.get_seq_length(), prefill.pad_P
        everyone = np.arange(len(self.keys) * self.n)
        row_S = everyone // self.n
        first = draw(prefill.logits_PV, row_S, self._uniforms(0), self.decoding)
        branches = self._advance(prefill.cache, True, prefill.logits_PV.shape[1], first, everyone, row_S, 0)
        while branches:
            branch = branches.pop()
            try:
                computed = self._step(branch)
            except RuntimeError as error:
                if not out_of_memory(error) or len(branch.token_R) <= LEAST_ROWS:
                    raise
                computed = None
            if computed is None:  # out of the handler, which holds on to the memory of the failed step
                branch.cache.truncate(self.width + branch.step - 1)
                self.rows = max(LEAST_ROWS, len(branch.token_R) // 2)
                branches += self._split(branch)
                continue
            cache, vocabulary, drawn, row_S = computed
            branches += self._advance(cache, False, vocabulary, drawn, branch.sample_S, row_S, branch.step)

    def samples(self) -> list[list[Sample]]:
        """The finished Samples of each prompt."""
        columns = (self.tokens, self.lengths, self.logprob, self.model_logprob, self.stopped, self.drawn)
        flat = [
            Sample(tokens[:length], logprob, model_logprob, "stop" if stopped else "length", drawn)
            for tokens, length, logprob, model_logprob, stopped, drawn in zip(
                *(column.tolist() for column in columns), strict=True
            )
        ]
        return [flat[start : start + self.n] for start in range(0, len(flat), self.n)]

    def _step(self, branch: _Branch) -> tuple[KVRows, int, Drawn, np.ndarray]:
        """The branch computed: its own cache with its tokens appended, the size of the vocabulary, each sample's next
        draw, and its row."""
        cache, row_R = self._arranged(branch)
        row_S = row_R[branch.row_S]
        count = len(row_R)
        # transformers leaves out a mask that hides nothing, which changes last bits: a spare row has something to hide.
        token_R, pad_R = np.zeros((2, padded(count + (self.pad_P is not None))), dtype=np.int64)
        token_R[row_R] = branch.token_R
        if self.pad_P is not None:
            pad_R[count:] = 1
            pad_R[row_S] = self.pad_P[branch.sample_S // self.n]
        if isinstance(cache, FixedRows):
            logits_RV = cache.step(token_R[:count], pad_R[:count])
        else:
            device = self.model.device
            inputs = {} if self.pad_P is None else _padding(pad_R, self.width + branch.step, 1, device)
            tokens = sent(token_R[:, None], device)
            logits_RV = self.model(
                input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs
            ).logits[:count, -1]
        uniform_S = self._uniforms(branch.step)[branch.sample_S]
        return cache, logits_RV.shape[1], draw(logits_RV, row_S, uniform_S, self.decoding), row_S

    def _arranged(self, branch: _Branch) -> tuple[KVRows, np.ndarray]:
        """A cache of the branch's rows that may be written, the fixed one where they fit, and where each row stands."""
        cache, parent_R = branch.cache, branch.parent_R
        fixed = self.fixed if self.fixed is not None and len(parent_R) <= self.fixed.rows else None
        if fixed is not None and cache is not fixed:
            fixed.hold(cache, parent_R)
            return fixed, np.arange(len(parent_R))
        if branch.shared or (fixed is None and isinstance(cache, FixedRows)):
            return cache.taken(parent_R, self.model.device), np.arange(len(parent_R))
        return cache, cache.arrange(parent_R)

    def _advance(
        self,
        cache: KVRows,
        shared: bool,
        vocabulary: int,
        drawn: Drawn,
        sample_S: np.ndarray,
        row_S: np.ndarray,
        step: int,
    ) -> list[_Branch]:
        """Note the drawn tokens; the branches that the samples still alive go on with."""
        token_S = drawn.token_S
        self.tokens[sample_S, step] = token_S
        self.logprob[sample_S] += drawn.logprob_S
        self.model_logprob[sample_S] += drawn.model_logprob_S
        if not np.isfinite(drawn.model_logprob_S).all():
            raise DivergedError(
                "the model's logits are not finite: its weights have diverged (or overflow this precision)"
            )
        alive_S = ~self._end(sample_S, row_S * vocabulary + token_S, step)
        if step + 1 == self.steps or not alive_S.any():
            return []
        prefixes_R, row_S = np.unique(row_S[alive_S] * vocabulary + token_S[alive_S], return_inverse=True)
        branch = _Branch(
            cache, shared, prefixes_R // vocabulary, prefixes_R % vocabulary, sample_S[alive_S], row_S, step + 1
        )
        return self._split(branch) if len(prefixes_R) > self.rows else [branch]

    def _end(self, sample_S: np.ndarray, prefix_S: np.ndarray, step: int) -> np.ndarray:
        """Whether each sample ends with its token of this step; notes the length of those that do. prefix_S: a number
        for each of the sampled prefixes, which samples may share."""
        ended_S = np.zeros(len(sample_S), dtype=bool)
        for end in self.ends:
            start = step + 1 - len(end)
            if start >= 0:
                hit_S = (self.tokens[sample_S, start : step + 1] == end).all(axis=1)
                self.lengths[sample_S[hit_S]] = start
                ended_S |= hit_S
        if self.ended is not None:
            rest_S = np.flatnonzero(~ended_S)
            _, one, prefix_S = np.unique(prefix_S[rest_S], return_index=True, return_inverse=True)
            sample_R = sample_S[rest_S[one]]
            hit_R = self.ended(self.prompt_P[sample_R // self.n], self.tokens[sample_R, : step + 1])
            said_S = rest_S[hit_R[prefix_S]]
            self.lengths[sample_S[said_S]] = step + 1
            ended_S[said_S] = True
        self.stopped[sample_S[ended_S]] = True
        self.drawn[sample_S[ended_S]] = step + 1
        return ended_S

    def _split(self, branch: _Branch) -> list[_Branch]:
        """The branch cut into branches of at most `rows` rows, which take their rows from one cache in main memory."""
        cache = branch.cache
        if not branch.shared:
            used, parent_R = np.unique(branch.parent_R, return_inverse=True)
            cache = cache.taken(used, torch.device("cpu"))
            branch = dataclasses.replace(branch, cache=cache, shared=True, parent_R=parent_R)
        cut = []
        for start in range(0, len(branch.token_R), self.rows):
            end = min(start + self.rows, len(branch.token_R))
            mine_S = (branch.row_S >= start) & (branch.row_S < end)
            cut.append(
                dataclasses.replace(
                    branch,
                    parent_R=branch.parent_R[start:end],
                    token_R=branch.token_R[start:end],
                    sample_S=branch.sample_S[mine_S],
                    row_S=branch.row_S[mine_S] - start,
                )
            )
        return cut

    def _uniforms(self, step: int) -> np.ndarray:
        """The uniform number of every sample of the group at this step."""
        if step not in self.uniforms:
            self.uniforms[step] = np.concatenate([uniforms(key, step, self.n) for key in self.keys])
        return self.uniforms[step]


def prefilled(model: CausalLM, prompts: list[Sequence[int]]) -> Prefill:
    """One pass over the prompts, padded on the left where their lengths differ."""
    width = max(map(len, prompts))
    ids_PT = np.zeros((len(prompts), width), dtype=np.int64)
    pad_P = np.zeros(len(prompts), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        pad_P[row] = width - len(prompt)
        ids_PT[row, pad_P[row] :] = prompt
    inputs = _padding(pad_P, width, width, model.device) if pad_P.any() else {}
    cache = KVRows()
    ids = sent(ids_PT, model.device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs).logits
    return Prefill(cache, logits[:, -1], pad_P if pad_P.any() else None)


def _padding(pad_R: np.ndarray, length: int, new: int, device: torch.device) -> dict[str, Tensor]:
    """Attention mask of `length` positions and position ids of the last `new`, for rows padded on the left."""
    position_RT = np.arange(length) - pad_R[:, None]
    return {
        "attention_mask": sent(position_RT >= 0, device),
        "position_ids": sent(np.maximum(position_RT[:, length - new :], 0), device),
    }


def out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
