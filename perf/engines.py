"""Tokens a second of the exact sampler, of vLLM and of Hugging Face generate on models that lie here, in turns.

    python -m perf.engines FOLDER [FOLDER ...] --tofu DATA [--samples 32,200] [--prompts 1] [--repeats 3]
        [--only NAME --only NAME] [--page NAME]

In the environment of `make test-vllm`, which has vLLM. Prompts are TOFU's first forget questions, in the plain form;
24 tokens at T = 1, nothing cut off; bfloat16, and the exact sampler in float32 too. vLLM's start is left out.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import BENCHMARKS
from benchmarks.base import Probe
from engine.decode.sampler import sample
from engine.models.attention import group_queries, ungroup_queries
from engine.models.chat_template import stop_token_ids
from engine.models.loading import cached_model
from engine.models.source import ModelSource, model_source
from engine.models.tokenization import encode_prompt, load_tokenizer
from perf.generate import generate
from perf.report import write

MAX_NEW_TOKENS = 24
VLLM = "vLLM, bf16"
Ids = list[list[int]]


def exact(model: Any, prompts: Ids, ends: list[int], n: int) -> int:
    names = [str(index) for index in range(len(prompts))]
    drawn = sample(model, prompts, n, max_new_tokens=MAX_NEW_TOKENS, prompt_ids=names, eos_token_id=ends)
    return sum(each.drawn for samples in drawn for each in samples)


def vllm_engine(source: ModelSource, prompts: Ids, ends: list[int]) -> Callable[[int], int]:
    from vllm import SamplingParams

    from engine.stages.sample_vllm import _engine

    engine = _engine(source, 0.0, True, max(map(len, prompts)) + MAX_NEW_TOKENS)

    def draw(n: int) -> int:
        options: dict[str, Any] = {"n": n, "temperature": 1.0, "top_k": 0, "logprobs": 0, "detokenize": False}
        asked = SamplingParams(max_tokens=MAX_NEW_TOKENS, ignore_eos=True, stop_token_ids=ends, **options)
        outputs = engine.generate([{"prompt_token_ids": prompt} for prompt in prompts], asked, use_tqdm=False)
        return sum(len(each.token_ids) for output in outputs for each in output.outputs)

    return draw


def ways_of(path: str, probes: Sequence[Probe], only: tuple[str, ...]) -> dict[str, Callable[[int], int]]:
    """By name, what draws so many samples of each probe from the model and says how many tokens they took; those whose
    names begin with one of `only`."""
    tokenizer, source = load_tokenizer(path), model_source(path)
    prompts = [encode_prompt(tokenizer, probe.prompt) for probe in probes]
    ends = stop_token_ids(tokenizer)
    (full, _), (half, _) = (cached_model(source, "cpu", precision) for precision in ("fp32", "bf16"))

    def plain(n: int, repeated: bool) -> int:
        """With attention as transformers itself has it."""
        ungroup_queries()
        try:
            return generate(half, prompts, ends, n, MAX_NEW_TOKENS, repeated=repeated)
        finally:
            group_queries()

    ways: dict[str, Callable[[int], int]] = {
        "exact, bf16": lambda n: exact(half, prompts, ends, n),
        "exact, fp32": lambda n: exact(full, prompts, ends, n),
        "generate, num_return_sequences, bf16": lambda n: plain(n, repeated=False),
        "generate, the prompt 32 times, bf16": lambda n: plain(n, repeated=True),
    }
    if VLLM.startswith(only):
        ways[VLLM] = vllm_engine(source, prompts, ends)
    return {name: way for name, way in ways.items() if name.startswith(only)}


def measured(ways: Mapping[str, Callable[[int], int]], n: int, repeats: int) -> dict[str, float]:
    """Tokens a second of each way, the median of several taken in turns."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            clock = time.perf_counter()
            tokens = way(n)
            rates[name].append(tokens / (time.perf_counter() - clock))
    return {name: statistics.median(each) for name, each in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="FOLDER")
    parser.add_argument("--tofu", required=True, help="folder of TOFU's layout")
    parser.add_argument("--samples", default="32,200")
    parser.add_argument("--prompts", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--only", action="append", metavar="NAME", help="ways whose names begin so, as exact (again: more)"
    )
    parser.add_argument("--page", default="engines", help="name of the page in perf/results")
    args = parser.parse_args()
    threads = len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    probes = BENCHMARKS["tofu"].load(path=args.tofu, split="forget10", attacks=[]).group("forget")[: args.prompts]
    rows = []
    for path in args.models:
        ways = ways_of(path, probes, tuple(args.only or [""]))
        for n in args.samples.split(","):
            rates = measured(ways, int(n), args.repeats)
            rows += [
                [Path(path).name, n, name, f"{rate:,.0f}", f"{rate / rates[VLLM]:.2f}" if VLLM in rates else ""]
                for name, rate in rates.items()
            ]
            print(rows[-len(ways) :], flush=True)
    names = " ".join(Path(path).name for path in args.models)
    options = f"--tofu TOFU --samples {args.samples} --prompts {args.prompts} --repeats {args.repeats}"
    options += "".join(f" --only {shlex.quote(each)}" for each in args.only or ())
    options += f" --page {args.page}" if args.page != "engines" else ""
    notes = f"{threads} threads; TOFU questions ({args.prompts}), {MAX_NEW_TOKENS} tokens at T = 1; medians, in turns."
    header = ["model", "n", "engine", "tokens/s", "of vLLM"]
    write(args.page, "Engines: tokens a second", f"python -m perf.engines {names} {options}", notes, header, rows)


if __name__ == "__main__":
    main()
