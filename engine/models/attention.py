"""Attention of one new token a row to a cache, on a CPU: the queries that share keys and values are one matrix.

Knows nothing of caches or of what is decoded.
Shape letters: R rows, H heads of queries, K heads of keys and values, T positions, D width of a head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MORE = ("position_bias", "softcap", "cache")  # what transformers' own function does or refuses


def group_queries() -> None:
    """On CPUs, let this process's models whose attention is torch's take the queries of heads that share keys together.

    transformers does so where there is a mask; without one it leaves the heads to torch, which on a CPU reads the keys
    anew for every query and in bfloat16 takes several times as long. The name stays "sdpa", which models ask for.
    """
    from transformers import AttentionInterface

    AttentionInterface.register("sdpa", _attention)


def ungroup_queries() -> None:
    """Attention as transformers has it."""
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    AttentionInterface.register("sdpa", sdpa_attention_forward)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """query [R, H, T, D], key and value [R, K, T, D]: [R, T, H, D], as transformers' own functions have it."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    rows, heads, length, width = query.shape
    shared = key.shape[1]
    plain = attention_mask is None and all(options.get(name) is None for name in MORE)
    if length > 1 or heads == shared or not plain or query.device.type != "cpu":
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    grouped = query.reshape(rows, shared, heads // shared, width)
    scale = options.get("scaling")
    found = torch.nn.functional.scaled_dot_product_attention(grouped, key, value, scale=scale)
    return found.reshape(rows, 1, heads, -1), None
