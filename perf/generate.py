"""Samples through Hugging Face generate, in both ways that people use it: what the sampler is compared with."""

from __future__ import annotations

from typing import Any

import torch

BATCH = 32  # of the repeated prompt: the setting of the paper's released code


def generate(model: Any, prompts: list[list[int]], ends: list[int], n: int, most: int, *, repeated: bool) -> int:
    """Tokens of n samples of each prompt, each of at most `most` tokens, at T = 1 with nothing cut off: the prompt
    repeated in batches, or num_return_sequences."""
    tokens, last = 0, torch.tensor(ends, device=model.device)
    for prompt in prompts:
        for start in range(0, n, BATCH if repeated else n):
            count = min(BATCH, n - start) if repeated else n
            ids = torch.tensor([prompt] * (count if repeated else 1), device=model.device)
            options: dict[str, Any] = {"do_sample": True, "top_k": 0, "eos_token_id": ends, "pad_token_id": ends[0]}
            options |= {"max_new_tokens": most, "num_return_sequences": 1 if repeated else count}
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
            ended = torch.isin(out[:, len(prompt) :], last).cumsum(dim=1).cumsum(dim=1)
            tokens += int((ended <= 1).sum())
    return tokens
