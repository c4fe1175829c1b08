"""Exact sampling of n continuations of each prompt, computing every distinct prefix once.

A Hugging Face causal LM and prompts as token ids come in; token ids with log-probabilities come out. All samples of a
prompt start from one cache row; rows split where samples diverge and vanish where they end, so that a memorised text
costs one row however many samples repeat it. Each sample's randomness comes from (seed, prompt id, sample index, step)
alone. The model's generation config is never read: nothing truncates the distribution unless it is asked for. Knows
nothing of texts or of Ray.
Shape letters: P prompts, N samples a prompt, R cache rows, S samples alive, V vocabulary.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# BLAS takes other kernels for the last few rows of a batch, whose last bits differ; with the number of rows padded to a
# multiple of eight, a row's result is the same in any batch (float32 on a CPU, one thread).
ROW_MULTIPLE = 8
MOST_ROWS = 4096
DRAW_ELEMENTS = 2**25  # probabilities held at once while drawing, in float64


class Sample(NamedTuple):
    """One continuation: its tokens without the end token, log-probability of all of it (end token included) under the
    sampling distribution and under the untempered model, and why it ended."""

    token_ids: list[int]
    logprob: float
    model_logprob: float
    finish: str  # "stop" or "length"


class Strategy(NamedTuple):
    """A decoding strategy: temperature >= 0 (0 = greedy), top_p in (0, 1], top_k >= 1 or None for no limit."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None


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
    max_rows: int | None = None,
) -> list[list[Sample]]:
    """n samples of each prompt from the full distribution, at a temperature and within a nucleus if asked for.

    prompts: token ids, none empty; prompt_ids: their stable and distinct ids. Returns a list of n Samples a prompt.
    max_rows: cache rows held at once (None: from free memory); it does not change the samples on a CPU in float32.
    Raises ValueError for arguments out of range.
    """
    strategy = Strategy(temperature, top_p, top_k)
    return sample_grid(
        model,
        prompts,
        n,
        [strategy],
        max_new_tokens=max_new_tokens,
        seed=seed,
        prompt_ids=prompt_ids,
        eos_token_id=eos_token_id,
        max_rows=max_rows,
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
    max_rows: int | None = None,
) -> list[list[list[Sample]]]:
    """`sample` under several strategies in one pass over the prompts, whose prefill they share: one result for each.

    A strategy's samples are the same as `sample` alone would draw.
    """
    _check(prompts, prompt_ids, n, max_new_tokens, strategies)
    stops = torch.tensor([eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id), device=model.device)
    results: list[list[list[Sample]]] = [[[] for _ in prompts] for _ in strategies]
    longest = max(len(prompt) for prompt in prompts) + max_new_tokens
    rows = max_rows or default_rows(model, longest)
    with torch.inference_mode():
        for group in _groups(prompts, rows):
            ids = torch.tensor([prompts[index] for index in group], device=model.device)
            prefill = _prefill(model, ids)
            keys = [_key(seed, prompt_ids[index]) for index in group]
            for strategy, result in zip(strategies, results, strict=True):
                count = 1 if strategy.temperature == 0 else n
                tree = _Tree(model, strategy, keys, count, max_new_tokens, stops, rows)
                tree.grow(prefill)
                for index, samples in zip(group, tree.samples(), strict=True):
                    result[index] = samples * (n // count)
    return results


class _Prefill(NamedTuple):
    cache: Any
    logits_RV: Tensor


@dataclasses.dataclass(frozen=True)
class _Branch:
    """Rows to be computed next: tokens_R, each to be appended to row parent_R of `cache`, and the samples on them."""

    cache: Any
    parent_R: Tensor
    tokens_R: Tensor
    sample_S: Tensor
    row_S: Tensor
    step: int


class _Tree:
    """The samples of one group of prompts of equal length, under one strategy."""

    def __init__(
        self, model: Any, strategy: Strategy, keys: list[int], n: int, steps: int, stops: Tensor, rows: int
    ) -> None:
        self.model, self.strategy, self.keys, self.n, self.steps = model, strategy, keys, n, steps
        self.stops, self.rows, self.device = stops, rows, model.device
        count = len(keys) * n
        self.tokens = torch.zeros((count, steps), dtype=torch.int64, device=self.device)
        self.lengths = torch.full((count,), steps, dtype=torch.int64, device=self.device)
        self.stopped = torch.zeros(count, dtype=torch.bool, device=self.device)
        self.logprob = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.model_logprob = torch.zeros(count, dtype=torch.float64, device=self.device)
        self.uniforms: dict[int, Tensor] = {}

    def grow(self, prefill: _Prefill) -> None:
        """Draw every sample to its end, depth first, with at most `rows` rows at once."""
        everyone = torch.arange(len(self.keys) * self.n, device=self.device)
        branches = self._advance(prefill.cache, prefill.logits_RV, everyone, everyone // self.n, 0)
        while branches:
            branch = branches.pop()
            try:
                cache, logits_RV = self._forward(branch)
            except torch.OutOfMemoryError:
                if len(branch.tokens_R) <= ROW_MULTIPLE:
                    raise
                torch.cuda.empty_cache()
                self.rows = max(ROW_MULTIPLE, len(branch.tokens_R) // 2)
                branches += self._split(branch)
                continue
            branches += self._advance(cache, logits_RV, branch.sample_S, branch.row_S, branch.step)

    def samples(self) -> list[list[Sample]]:
        """The finished Samples of each prompt."""
        lengths, stopped = self.lengths.tolist(), self.stopped.tolist()
        columns = (self.tokens.tolist(), self.logprob.tolist(), self.model_logprob.tolist(), lengths, stopped)
        flat = [
            Sample(tokens[:length], logprob, model_logprob, "stop" if ended else "length")
            for tokens, logprob, model_logprob, length, ended in zip(*columns, strict=True)
        ]
        return [flat[start : start + self.n] for start in range(0, len(flat), self.n)]

    def _advance(self, cache: Any, logits_RV: Tensor, sample_S: Tensor, row_S: Tensor, step: int) -> list[_Branch]:
        """Draw the next token of every sample; the branches that those still alive go on with."""
        token_S, logprob_S, model_logprob_S = self._draw(logits_RV, sample_S, row_S, step)
        self.tokens[sample_S, step] = token_S
        self.logprob[sample_S] += logprob_S
        self.model_logprob[sample_S] += model_logprob_S
        ends_S = torch.isin(token_S, self.stops)
        ended = sample_S[ends_S]
        self.lengths[ended] = step
        self.stopped[ended] = True
        if step + 1 == self.steps or len(ended) == len(sample_S):
            return []
        alive_S = ~ends_S
        vocabulary = logits_RV.shape[1]
        prefixes_R, row_S = torch.unique(row_S[alive_S] * vocabulary + token_S[alive_S], return_inverse=True)
        branch = _Branch(cache, prefixes_R // vocabulary, prefixes_R % vocabulary, sample_S[alive_S], row_S, step + 1)
        return self._split(branch) if len(prefixes_R) > self.rows else [branch]

    def _split(self, branch: _Branch) -> list[_Branch]:
        """The branch cut into branches of at most `rows` rows, which share its cache until each takes its own."""
        cut = []
        for start in range(0, len(branch.tokens_R), self.rows):
            end = min(start + self.rows, len(branch.tokens_R))
            mine_S = (branch.row_S >= start) & (branch.row_S < end)
            cut.append(
                dataclasses.replace(
                    branch,
                    parent_R=branch.parent_R[start:end],
                    tokens_R=branch.tokens_R[start:end],
                    sample_S=branch.sample_S[mine_S],
                    row_S=branch.row_S[mine_S] - start,
                )
            )
        return cut

    def _forward(self, branch: _Branch) -> tuple[Any, Tensor]:
        """The cache of the branch's own rows with its tokens appended, and the logits that follow them."""
        cache = _select(branch.cache, _padded(branch.parent_R))
        logits_RV = self.model(
            input_ids=_padded(branch.tokens_R)[:, None], past_key_values=cache, use_cache=True, logits_to_keep=1
        ).logits[: len(branch.tokens_R), -1]
        return cache, logits_RV

    def _draw(self, logits_RV: Tensor, sample_S: Tensor, row_S: Tensor, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Each sample's token by the inverse of its row's cumulative distribution, with its two log-probabilities."""
        token_S = torch.empty_like(sample_S)
        logprob_S = torch.zeros(len(sample_S), dtype=torch.float64, device=self.device)
        model_logprob_S = torch.empty_like(logprob_S)
        block = max(1, DRAW_ELEMENTS // logits_RV.shape[1])
        for start in range(0, len(logits_RV), block):
            logits = logits_RV[start : start + block]
            mine = slice(None) if len(logits) == len(logits_RV) else (row_S >= start) & (row_S < start + block)
            row = row_S[mine] - start
            weights = _weights(logits, 1.0)
            cumulative = weights.cumsum(dim=-1)
            if self.strategy.temperature == 0:
                token = logits.argmax(dim=-1)[row]
            else:
                uniform = self._uniforms(step)[sample_S[mine]]
                if self.strategy != Strategy():
                    restricted = _restricted(logits, self.strategy)
                    token, logprob_S[mine] = draw(restricted, restricted.cumsum(dim=-1), row, uniform)
                else:
                    token, logprob_S[mine] = draw(weights, cumulative, row, uniform)
            token_S[mine] = token
            model_logprob_S[mine] = (weights[row, token] / cumulative[row, -1]).log()
        return token_S, logprob_S, model_logprob_S

    def _uniforms(self, step: int) -> Tensor:
        """u in [0, 1) of every sample at this step: output `sample` of the Philox stream (key of the prompt, step)."""
        if step not in self.uniforms:
            streams = [np.random.Generator(np.random.Philox(key=key, counter=[0, step, 0, 0])) for key in self.keys]
            values = np.concatenate([stream.random(self.n) for stream in streams])
            self.uniforms[step] = torch.from_numpy(values).to(self.device, non_blocking=True)
        return self.uniforms[step]


def draw(weights_RV: Tensor, cumulative_RV: Tensor, row_S: Tensor, uniform_S: Tensor) -> tuple[Tensor, Tensor]:
    """The token of each sample by inverse CDF of its row's weights, and its log-probability: int64 and float64 [S].

    weights_RV >= 0 need not sum to 1; cumulative_RV is their running sum; uniform_S in [0, 1).
    """
    total_R = cumulative_RV[:, -1]
    # One row of thresholds a cache row: the samples on it side by side, the rest of the row unused.
    order = torch.argsort(row_S, stable=True)
    counts_R = torch.bincount(row_S, minlength=len(weights_RV))
    place_S = torch.arange(len(row_S), device=row_S.device) - (counts_R.cumsum(0) - counts_R)[row_S[order]]
    threshold_RM = torch.zeros((len(weights_RV), int(counts_R.max())), dtype=torch.float64, device=row_S.device)
    below_S = torch.minimum(uniform_S * total_R[row_S], torch.nextafter(total_R, torch.zeros_like(total_R))[row_S])
    threshold_RM[row_S[order], place_S] = below_S[order]
    token_RM = torch.searchsorted(cumulative_RV, threshold_RM, right=True)
    token_S = torch.empty_like(row_S)
    token_S[order] = token_RM[row_S[order], place_S]
    return token_S, (weights_RV[row_S, token_S] / total_R[row_S]).log()


def _weights(logits_RV: Tensor, temperature: float) -> Tensor:
    """exp((logits - max) / temperature) in float64. Only elementwise steps and, later, running sums: unlike a library
    softmax, whose sums are ordered by the shape, they give a row the same bits in any batch."""
    logits_RV = logits_RV.double()
    return ((logits_RV - logits_RV.amax(dim=-1, keepdim=True)) / temperature).exp()


def _restricted(logits_RV: Tensor, strategy: Strategy) -> Tensor:
    """Weights at the strategy's temperature, zero outside its top-k and its nucleus."""
    weights_RV = _weights(logits_RV, strategy.temperature)
    if strategy.top_k is not None and strategy.top_k < weights_RV.shape[1]:
        kept_RV = weights_RV.sort(dim=-1, descending=True, stable=True).indices[:, : strategy.top_k]
        weights_RV = torch.zeros_like(weights_RV).scatter(1, kept_RV, weights_RV.gather(1, kept_RV))
    return _nucleus(weights_RV, strategy.top_p) if strategy.top_p < 1 else weights_RV


def _nucleus(weights_RV: Tensor, top_p: float) -> Tensor:
    """Weights with all but the smallest set of the likeliest tokens that holds the share top_p set to zero."""
    sorted_RV, order_RV = weights_RV.sort(dim=-1, descending=True, stable=True)
    cumulative_RV = sorted_RV.cumsum(dim=-1)
    before_RV = cumulative_RV - sorted_RV
    kept_RV = torch.where(before_RV < top_p * cumulative_RV[:, -1:], sorted_RV, 0.0)
    return torch.zeros_like(weights_RV).scatter(1, order_RV, kept_RV)


def default_rows(model: Any, length: int) -> int:
    """Cache rows of `length` tokens that fit into a third of the free memory, at most 4096."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = 2 * config.num_hidden_layers * heads * width * length * model.dtype.itemsize
    size += config.vocab_size * 16  # logits and probabilities of the row
    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(ROW_MULTIPLE, min(MOST_ROWS, free // 3 // size))


def _groups(prompts: Sequence[Sequence[int]], rows: int) -> Iterator[list[int]]:
    """Prompts of one length together, so that nothing is padded: the row's result cannot depend on its neighbours."""
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    group: list[int] = []
    for index in order:
        if group and (len(prompts[index]) != len(prompts[group[0]]) or len(group) == rows):
            yield group
            group = []
        group.append(index)
    yield group


def _prefill(model: Any, ids_PT: Tensor) -> _Prefill:
    """The cache of each prompt and the logits that follow it."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    logits = model(input_ids=_padded(ids_PT), past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    return _Prefill(cache, logits[: len(ids_PT), -1])


def _padded(rows: Tensor) -> Tensor:
    """`rows` with the last one repeated up to a multiple of ROW_MULTIPLE."""
    missing = -len(rows) % ROW_MULTIPLE
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows


def _select(cache: Any, rows: Tensor) -> Any:
    """A new cache of the given rows; the old one stays for the other branches."""
    selected = copy.copy(cache)
    selected.layers = []
    for layer in cache.layers:
        copied = copy.copy(layer)
        copied.keys, copied.values = layer.keys.index_select(0, rows), layer.values.index_select(0, rows)
        selected.layers.append(copied)
    return selected


def _key(seed: int, prompt_id: str) -> int:
    """A 128-bit Philox key for one prompt."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{prompt_id}".encode()).digest()[:16], "little")


def _check(
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
