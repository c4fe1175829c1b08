"""Sampling speed: engine.decode against Hugging Face generate, in both ways that people use it.

python -m perf.sample [--prompts 12] [--samples 200]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks import BENCHMARKS
from engine.data import encode_prompt
from engine.decode import sample
from perf.models import SEED, demo_models
from perf.report import median_ratio, side_by_side, write

MAX_NEW_TOKENS = 24


def generate(model: Any, prompts: list[list[int]], n: int, batch: int, repeat_prompt: bool) -> int:
    """Samples through Hugging Face generate; returns the number of tokens.

    repeat_prompt: the prompt n times in batches, as the paper's released code does; else num_return_sequences.
    """
    tokens = 0
    options = {
        "do_sample": True,
        "top_k": 0,
        "max_new_tokens": MAX_NEW_TOKENS,
        "pad_token_id": model.config.pad_token_id,
    }
    for prompt in prompts:
        for start in range(0, n, batch):
            count = min(batch, n - start)
            ids = torch.tensor([prompt] * (count if repeat_prompt else 1))
            out = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                num_return_sequences=1 if repeat_prompt else count,
                **options,
            )
            tokens += int((out[:, len(prompt) :] != model.config.pad_token_id).sum())
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--samples", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    benchmark = BENCHMARKS["fictional"].load(seed=SEED)
    probes = benchmark.group("forget")[: args.prompts]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (model, tokenizer) in demo_models(Path(folder)).items():
            prompts = [encode_prompt(tokenizer, probe.prompt) for probe in probes]
            ids = [probe.id for probe in probes]

            def ours(model: Any = model, prompts: list[list[int]] = prompts, ids: list[str] = ids) -> None:
                sample(model, prompts, args.samples, max_new_tokens=MAX_NEW_TOKENS, prompt_ids=ids, eos_token_id=2)

            def repeated(model: Any = model, prompts: list[list[int]] = prompts) -> None:
                generate(model, prompts, args.samples, 32, True)

            def returned(model: Any = model, prompts: list[list[int]] = prompts) -> None:
                generate(model, prompts, args.samples, args.samples, False)

            ours()
            mine, repeat, multiple = side_by_side([ours, repeated, returned])
            rows.append(
                [
                    name,
                    f"{median_ratio(repeat, mine):.1f}x",
                    f"{median_ratio(multiple, mine):.1f}x",
                    f"{statistics.median(mine):.2f} s",
                ]
            )
    write(
        "sample",
        "Sampling: ratio to Hugging Face generate",
        f"python -m perf.sample --prompts {args.prompts} --samples {args.samples}",
        f"{args.prompts} forget prompts x {args.samples} samples of at most {MAX_NEW_TOKENS} tokens at T = 1, p = 1, "
        "no top-k, fp32, one thread; medians of 5 runs in turns. The demo's models: target and retain model are "
        "peaked; the untrained one is nearly uniform, so that hardly any prefix is shared: the worst case.",
        ["model", "generate, prompt repeated in batches of 32", "generate, num_return_sequences", "this sampler"],
        rows,
    )


if __name__ == "__main__":
    main()
