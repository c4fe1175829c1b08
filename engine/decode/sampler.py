"""Exact sampling of n continuations of each prompt, computing every distinct prefix once.

A Hugging Face causal LM and prompts as token ids come in; token ids with log-probabilities come out. All samples of a
prompt start from one cache row; rows split where samples diverge and vanish where they end, so that a memorised text
costs one row however many samples repeat it. The model's generation config is never read: nothing truncates the
distribution unless it is asked for. The device computes logits and draws; which sample stands on which row is kept in
numpy, so that a step waits for the device once. Knows nothing of texts or of Ray.
Shape letters: P prompts, T positions, R cache rows, S samples alive.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.decode.cuda_graph import FixedRows, fixed_rows
from engine.decode.kv_cache import LEAST_ROWS, KVRows, padded
from engine.decode.token_sampling import Drawn, Strategy, draw, prompt_key, sent, uniforms
from engine.errors import DivergedError

MOST_ROWS = 4096
LAYER_TYPES = {"full_attention", "sliding_attention"}
Ended = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Sample(NamedTuple):
    """One continuation: its tokens without the end token or stop sequence, log-probability of all of it (end included)
    under the sampling distribution and under the untempered model, why it ended, and how many tokens were drawn."""

    token_ids: list[int]
    logprob: float
    model_logprob: float
    finish: str  # "stop" or "length"
    drawn: int


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    prompt_ids: Sequence[str],
    eos_token_id: int | Sequence[int],
    stop: Sequence[Sequence[int]] = (),
    max_rows: int | None = None,
    mix_lengths: bool | None = None,
) -> list[list[Sample]]:
    """n samples of each prompt from the full distribution, at a temperature and within a nucleus if asked for.

    prompts: token ids, none empty; prompt_ids: their stable and distinct ids. Returns a list of n Samples a prompt.
    The rest as `sample_grid`.
    """
    return sample_grid(
        model,
        prompts,
        n,
        [Strategy(temperature, top_p, top_k)],
        max_new_tokens=max_new_tokens,
        seed=seed,
        prompt_ids=prompt_ids,
        eos_token_id=eos_token_id,
        stop=stop,
        max_rows=max_rows,
        mix_lengths=mix_lengths,
    )[0]


def sample_grid(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n: int,
    strategies: Sequence[Strategy],
    *,
    max_new_tokens: int,
    seed: int = 0,
    prompt_ids: Sequence[str],
    eos_token_id: int | Sequence[int],
    stop: Sequence[Sequence[int]] = (),
    max_rows: int | None = None,
    mix_lengths: bool | None = None,
    ended: Ended | None = None,
) -> list[list[list[Sample]]]:
    """`sample` under several strategies in one pass over the prompts, whose prefill they share: one result for each.

    stop: token sequences that end a sample as the end tokens do. ended: told the prompts' indices [R] and the tokens of
    their samples so far [R, T], says which samples end here: bool [R]; these keep their tokens. max_rows: cache rows
    held at once, 16 at least (None: from free memory; halved when memory runs out). mix_lengths: prompts of different
    lengths share a step, padded on the left (None: on a GPU only, which they keep busy).
    A strategy's samples are the same as `sample` alone would draw, and the first of more samples are those of fewer. On
    a CPU in float32 with one thread and unmixed lengths, samples have the same bits for any max_rows and any company of
    prompts. Otherwise logits move by rounding, and a token with them where a uniform number falls on such an edge.
    Raises ValueError for arguments out of range and models in training mode or without plain attention, DivergedError
    for logits that are not finite.
    """
    _check(model, prompts, prompt_ids, n, max_new_tokens, strategies)
    ends = [[eos_token_id]] if isinstance(eos_token_id, int) else [[token] for token in eos_token_id]
    ends += [list(sequence) for sequence in stop]
    keys = [prompt_key(seed, prompt_id) for prompt_id in prompt_ids]
    length = max(map(len, prompts)) + max_new_tokens
    rows = max(LEAST_ROWS, max_rows or default_rows(model, length))
    fixed: FixedRows | None = None
    mix = model.device.type == "cuda" if mix_lengths is None else mix_lengths
    results: list[list[list[Sample]]] = [[[] for _ in prompts] for _ in strategies]
    groups = _groups(prompts, rows, mix)
    with torch.inference_mode():
        while groups:
            group = groups.pop()
            try:
                prefill = _prefill(model, [prompts[index] for index in group])
            except RuntimeError as error:
                if not _out_of_memory(error) or len(group) == 1:
                    raise
                prefill = None
            if prefill is None:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
                continue
            fixed = fixed or fixed_rows(model, prefill.cache, rows, length)
            for strategy, result in zip(strategies, results, strict=True):
                count = 1 if strategy.temperature == 0 else n
                tree = _Tree(model, strategy, [keys[index] for index in group], count, max_new_tokens, ends, rows)
                tree.ended, tree.prompt_P = ended, np.array(group)
                tree.fixed = fixed
                tree.grow(prefill)
                rows = tree.rows
                for index, samples in zip(group, tree.samples(), strict=True):
                    result[index] = samples * (n // count)
    return results


class _Prefill(NamedTuple):
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


class _Tree:
    """The samples of one group of prompts, under one strategy."""

    def __init__(
        self, model: Any, strategy: Strategy, keys: list[int], n: int, steps: int, ends: list[list[int]], rows: int
    ) -> None:
        self.model, self.strategy, self.keys, self.n, self.steps = model, strategy, keys, n, steps
        self.ends, self.rows = sorted(ends, key=len), rows  # of several that end a sample, the longest is cut off
        count = len(keys) * n
        self.tokens = np.zeros((count, steps), dtype=np.int32)
        self.lengths, self.drawn = np.full(count, steps), np.full(count, steps)
        self.stopped = np.zeros(count, dtype=bool)
        self.logprob = np.zeros(count)
        self.model_logprob = np.zeros(count)
        self.uniforms: dict[int, np.ndarray] = {}
        self.fixed: FixedRows | None = None
        self.ended: Ended | None = None
        self.prompt_P = np.arange(len(keys))

    def grow(self, prefill: _Prefill) -> None:
        """Draw every sample to its end, depth first, with at most `rows` rows on the device at once."""
        self.width, self.pad_P = prefill.cache.get_seq_length(), prefill.pad_P
        everyone = np.arange(len(self.keys) * self.n)
        row_S = everyone // self.n
        first = draw(prefill.logits_PV, row_S, self._uniforms(0), self.strategy)
        branches = self._advance(prefill.cache, True, prefill.logits_PV.shape[1], first, everyone, row_S, 0)
        while branches:
            branch = branches.pop()
            try:
                computed = self._step(branch)
            except RuntimeError as error:
                if not _out_of_memory(error) or len(branch.token_R) <= LEAST_ROWS:
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
        token_R, pad_R = np.zeros((2, padded(count)), dtype=np.int64)
        token_R[row_R] = branch.token_R
        if self.pad_P is not None:
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
        return cache, logits_RV.shape[1], draw(logits_RV, row_S, uniform_S, self.strategy), row_S

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


def default_rows(model: Any, length: int) -> int:
    """Cache rows of `length` tokens that fit into a third of the free memory, at most 4096; on CPUs into a share of it,
    since each may have a worker."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
    size += config.vocab_size * 16  # logits and probabilities of the row
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
        share = (free + torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)) // 3
    else:
        share = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // (len(os.sched_getaffinity(0)) + 2)
    return min(MOST_ROWS, share // size)


def _groups(prompts: Sequence[Sequence[int]], rows: int, mix: bool) -> list[list[int]]:
    """Prompts that go through the model together, at most `rows`; of one length unless `mix`, so that nothing is padded
    and a row's result cannot depend on its neighbours."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        same = groups and (mix or len(prompts[groups[-1][0]]) == len(prompts[index]))
        if same and len(groups[-1]) < rows:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _prefill(model: Any, prompts: list[Sequence[int]]) -> _Prefill:
    """One pass over the prompts, padded on the left where their lengths differ."""
    width = max(map(len, prompts))
    ids_PT = np.zeros((padded(len(prompts)), width), dtype=np.int64)
    pad_P = np.zeros(len(ids_PT), dtype=np.int64)
    for row, prompt in enumerate(prompts):
        pad_P[row] = width - len(prompt)
        ids_PT[row, pad_P[row] :] = prompt
    inputs = _padding(pad_P, width, width, model.device) if pad_P.any() else {}
    cache = KVRows()
    ids = sent(ids_PT, model.device)
    logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **inputs).logits
    return _Prefill(cache, logits[: len(prompts), -1], pad_P if pad_P.any() else None)


def _padding(pad_R: np.ndarray, length: int, new: int, device: torch.device) -> dict[str, Tensor]:
    """Attention mask of `length` positions and position ids of the last `new`, for rows padded on the left."""
    position_RT = np.arange(length) - pad_R[:, None]
    return {
        "attention_mask": sent(position_RT >= 0, device),
        "position_ids": sent(np.maximum(position_RT[:, length - new :], 0), device),
    }


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _check(
    model: Any,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[str],
    n: int,
    max_new_tokens: int,
    strategies: Sequence[Strategy],
) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts must be at least one list of at least one token id")
    if len(prompt_ids) != len(prompts) or len(set(prompt_ids)) != len(prompt_ids):
        raise ValueError(f"{len(prompts)} prompts need as many distinct prompt_ids, found {len(set(prompt_ids))}")
    if n < 1 or max_new_tokens < 1:
        raise ValueError(f"n and max_new_tokens must be 1 or more, found {n} and {max_new_tokens}")
    for temperature, top_p, top_k in strategies:
        if temperature < 0 or not 0 < top_p <= 1 or (top_k is not None and top_k < 1):
            raise ValueError(
                f"need temperature >= 0, 0 < top_p <= 1, top_k >= 1 or None; found {temperature}, {top_p}, {top_k}"
            )
    if model.training:
        raise ValueError("the model must be in evaluation mode, found training mode: call model.eval() first")
    other = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES
    if other:
        raise ValueError(f"the sampler needs layers of {sorted(LAYER_TYPES)}, found {sorted(other)}")
