"""Exact sampling of n continuations of each prompt, computing every distinct prefix once.

A Hugging Face causal LM and prompts as token ids come in; token ids with log-probabilities come out. The model's
generation config is never read: nothing truncates the distribution unless the decoding says so. Knows nothing of texts
or of Ray.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import psutil
import torch

from benchmarks.base import Decoding
from engine.decode.cuda_graph import FixedRows, fixed_rows
from engine.decode.kv_cache import LEAST_ROWS
from engine.decode.prefix_tree import Ended, PrefixTree, Sample, out_of_memory, prefilled
from engine.decode.token_sampling import prompt_key
from engine.models.causal_lm import CausalLM

MOST_ROWS = 4096
GROUP_PROMPTS = 64  # that are read together, at most, ...
GROUP_TOKENS = {"cpu": 2**14, "cuda": 2**17}  # ... of so many tokens, padding included, ...
MOST_PADDING = 1.5  # ... the longest about so many times as long as the shortest
LAYER_TYPES = {"full_attention", "sliding_attention"}


def sample(
    model: CausalLM,
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
) -> list[list[Sample]]:
    """n samples of each prompt from the full distribution, or at a temperature and within a nucleus.

    prompts: token ids, none empty; prompt_ids: their stable and distinct ids. Returns a list of n Samples a prompt.
    The rest as `sample_grid`.
    """
    return sample_grid(
        model,
        prompts,
        n,
        [Decoding(temperature=temperature, top_p=top_p, top_k=top_k)],
        max_new_tokens=max_new_tokens,
        seed=seed,
        prompt_ids=prompt_ids,
        eos_token_id=eos_token_id,
        stop=stop,
        max_rows=max_rows,
    )[0]


def sample_grid(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    n: int,
    decodings: Sequence[Decoding],
    *,
    max_new_tokens: int,
    seed: int = 0,
    prompt_ids: Sequence[str],
    eos_token_id: int | Sequence[int],
    stop: Sequence[Sequence[int]] = (),
    max_rows: int | None = None,
    ended: Ended | None = None,
) -> list[list[list[Sample]]]:
    """`sample` under several decodings in one pass over the prompts, whose prefill they share: a result a decoding.

    stop: token sequences that end a sample as the end tokens do. ended: told the prompts' indices [R] and the tokens of
    their samples so far [R, T], says which samples end here: bool [R]; these keep their tokens. max_rows: cache rows
    held at once beside those of the prompts, 16 at least (None: from free memory; halved when memory runs out).
    Prompts of about one length share a step, padded on the left. A decoding's samples are the same as `sample` alone
    would draw, and the first of more samples are those of fewer. On a CPU in float32, the same prompts and number of
    threads give the same bits for any max_rows. Otherwise logits move by rounding, and a token with them where a
    uniform number falls on such an edge.
    Raises ValueError for arguments out of range and models in training mode or without plain attention, DivergedError
    for logits that are not finite.
    """
    _check(model, prompts, prompt_ids, n, max_new_tokens, decodings)
    ends = [[eos_token_id]] if isinstance(eos_token_id, int) else [[token] for token in eos_token_id]
    ends += [list(sequence) for sequence in stop]
    keys = [prompt_key(seed, prompt_id) for prompt_id in prompt_ids]
    length = max(map(len, prompts)) + max_new_tokens
    rows = max(LEAST_ROWS, max_rows or default_rows(model, length))
    fixed: FixedRows | None = None
    results: list[list[list[Sample]]] = [[[] for _ in prompts] for _ in decodings]
    groups = _groups(prompts, GROUP_TOKENS[model.device.type])
    with torch.inference_mode():
        while groups:
            group = groups.pop()
            try:
                prefill = prefilled(model, [prompts[index] for index in group])
            except RuntimeError as error:
                if not out_of_memory(error) or len(group) == 1:
                    raise
                prefill = None
            if prefill is None:
                groups += [group[: len(group) // 2], group[len(group) // 2 :]]
                continue
            fixed = fixed or fixed_rows(model, prefill.cache, rows, length)
            for decoding, result in zip(decodings, results, strict=True):
                count = 1 if decoding.greedy else n
                group_keys = [keys[index] for index in group]
                tree = PrefixTree(model, decoding, group_keys, count, max_new_tokens, ends, rows, fixed)
                tree.ended, tree.prompt_P = ended, np.array(group)
                tree.grow(prefill)
                rows = tree.rows
                for index, samples in zip(group, tree.samples(), strict=True):
                    result[index] = samples * (n // count)
    return results


def default_rows(model: CausalLM, length: int) -> int:
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
        # What can be had, the pages that only cache files included.
        share = psutil.virtual_memory().available // (len(os.sched_getaffinity(0)) + 2)
    return min(MOST_ROWS, share // size)


def _groups(prompts: Sequence[Sequence[int]], most_tokens: int) -> list[list[int]]:
    """Prompts that go through the model together, by their lengths alone: what a row is computed with, and with it its
    last bits, must not depend on the memory that is free."""
    groups: list[list[int]] = []
    for index in sorted(range(len(prompts)), key=lambda index: len(prompts[index])):
        length = len(prompts[index])
        alike = groups and length <= MOST_PADDING * len(prompts[groups[-1][0]]) + LEAST_ROWS
        if alike and len(groups[-1]) < GROUP_PROMPTS and (len(groups[-1]) + 1) * length <= most_tokens:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _check(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    prompt_ids: Sequence[str],
    n: int,
    max_new_tokens: int,
    decodings: Sequence[Decoding],
) -> None:
    if not prompts or any(len(prompt) == 0 for prompt in prompts):
        raise ValueError("prompts must be at least one list of at least one token id")
    if len(prompt_ids) != len(prompts) or len(set(prompt_ids)) != len(prompt_ids):
        raise ValueError(f"{len(prompts)} prompts need as many distinct prompt_ids, found {len(set(prompt_ids))}")
    if n < 1 or max_new_tokens < 1:
        raise ValueError(f"n and max_new_tokens must be 1 or more, found {n} and {max_new_tokens}")
    for decoding in decodings:
        top_k = decoding.top_k
        if decoding.temperature < 0 or not 0 < decoding.top_p <= 1 or (top_k is not None and top_k < 1):
            raise ValueError(
                "need temperature >= 0, 0 < top_p <= 1, top_k >= 1 or None; "
                f"found {decoding.temperature}, {decoding.top_p}, {top_k}"
            )
    if model.training:
        raise ValueError("the model must be in evaluation mode, found training mode: call model.eval() first")
    other = set(getattr(model.config.get_text_config(), "layer_types", None) or ()) - LAYER_TYPES
    if other:
        raise ValueError(f"the sampler needs layers of {sorted(LAYER_TYPES)}, found {sorted(other)}")
