"""Sampling speed: engine.decode.sampler against Hugging Face generate, in both ways that people use it.

python -m perf.sample [--prompts 12] [--samples 200] [--models FOLDER ...]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import BENCHMARKS
from benchmarks.base import Decoding
from engine.decode.sampler import sample, sample_grid
from engine.models.chat_template import stop_token_ids
from engine.models.loading import load_model
from engine.models.source import model_source
from engine.models.tokenization import encode_prompt, load_tokenizer
from perf.generate import generate
from perf.models import SEED, demo_models
from perf.report import median_ratio, side_by_side, write

MAX_NEW_TOKENS = 24
WIDE_VOCABULARY = 32_000
WIDE_PROMPTS = 1
GRID = [Decoding(temperature=temperature, top_p=top_p) for temperature in (0.5, 1.0) for top_p in (0.9, 1.0)]


class Case(NamedTuple):
    """A model with its prompts and end tokens."""

    name: str
    model: Any
    prompts: list[list[int]]
    ends: list[int]


def wide_models() -> list[Case]:
    """A 4-layer, hidden-256 Llama with 32k vocabulary, random and trained on the spot to recite random answers."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=WIDE_VOCABULARY,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
    )
    texts = torch.randint(3, WIDE_VOCABULARY, (WIDE_PROMPTS, 8 + MAX_NEW_TOKENS))
    texts[:, -1] = 2
    prompts = texts[:, :8].tolist()
    random = AutoModelForCausalLM.from_config(config).eval()
    peaked = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(peaked.parameters(), lr=1e-3)
    loss = torch.tensor(1.0)
    while loss > 0.01:
        optimizer.zero_grad()
        loss = peaked(input_ids=texts, labels=texts).loss
        loss.backward()
        optimizer.step()
    return [Case("32k, recites", peaked.eval(), prompts, [2]), Case("32k, random", random, prompts, [2])]


def cases(folder: Path, paths: list[str], prompts: int) -> list[Case]:
    """The models in the folders given, else the demo's and the wide ones."""
    probes = BENCHMARKS["fictional"].load(seed=SEED).group("forget")[:prompts]
    loaded = (
        {path: (load_model(model_source(path)), load_tokenizer(path)) for path in paths}
        if paths
        else demo_models(folder)
    )
    found = [
        Case(name, model, [encode_prompt(tokenizer, probe.prompt) for probe in probes], stop_token_ids(tokenizer))
        for name, (model, tokenizer) in loaded.items()
    ]
    return found if paths else found + wide_models()


def measure(case: Case, n: int) -> list[str]:
    """One row of the table."""
    options: dict[str, Any] = {
        "max_new_tokens": MAX_NEW_TOKENS,
        "prompt_ids": [str(index) for index in range(len(case.prompts))],
        "eos_token_id": case.ends,
    }
    drawn = sample(case.model, case.prompts, n, **options)
    tokens = sum(len(each.token_ids) + (each.finish == "stop") for samples in drawn for each in samples)
    distinct = sum(len({tuple(each.token_ids) for each in samples}) for samples in drawn) / len(drawn)
    mine, repeated, returned = side_by_side(
        [
            lambda: sample(case.model, case.prompts, n, **options),
            lambda: generate(case.model, case.prompts, case.ends, n, MAX_NEW_TOKENS, repeated=True),
            lambda: generate(case.model, case.prompts, case.ends, n, MAX_NEW_TOKENS, repeated=False),
        ]
    )
    apart, together = side_by_side(
        [
            lambda: [sample(case.model, case.prompts, n, **each.model_dump(), **options) for each in GRID],
            lambda: sample_grid(case.model, case.prompts, n, GRID, **options),
        ]
    )
    return [
        case.name,
        f"{distinct:.0f}",
        f"{median_ratio(repeated, mine):.1f}x",
        f"{median_ratio(returned, mine):.1f}x",
        f"{statistics.median(tokens / seconds for seconds in mine):,.0f}",
        f"{median_ratio(apart, together):.2f}x",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--models", nargs="*", default=[], metavar="FOLDER")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(case, args.samples) for case in cases(Path(folder), args.models, args.prompts)]
    models = f" --models {' '.join(args.models)}" if args.models else ""
    write(
        "sample",
        "Sampling: ratio to Hugging Face generate",
        f"python -m perf.sample --prompts {args.prompts} --samples {args.samples}{models}",
        f"{args.prompts} forget prompts x {args.samples} samples of at most {MAX_NEW_TOKENS} tokens at T = 1, p = 1, "
        "no top-k, fp32, one thread; medians of 5 runs in turns. Target, retain, rmu and untrained: the demo's models, "
        "the first two peaked, the third unlearned by RMU (40 steps), the last nearly uniform, so that hardly any "
        "prefix is shared: the worst case. 32k: a "
        f"4-layer, hidden-256 Llama with {WIDE_VOCABULARY:,} tokens, {WIDE_PROMPTS} prompt. The grid is T in 0.5, 1 "
        "and top-p in 0.9, 1: four calls against one pass.",
        [
            "model",
            "distinct samples a prompt",
            "generate, prompt repeated in batches of 32",
            "generate, num_return_sequences",
            "this sampler, tokens/s",
            "grid in one pass",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
