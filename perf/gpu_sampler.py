"""The sampler on a Llama of 1B shape in bfloat16, against Hugging Face generate: a part of perf/gpu.py.

    python -m perf.gpu_sampler ROWS         a row of JSON for each thing measured

Two models with random weights: flat (as initialised: samples part at their first tokens) and recites (trained here on
one answer to each prompt, so that samples mostly coincide).
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.decode import prefix_tree, sampler
from perf.generate import BATCH, generate

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
GIB = 2**30
END = 2
SHAPE: dict[str, Any] = {
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
SHAPE |= {"intermediate_size": 8192, "vocab_size": 128256, "head_dim": 64}
PROMPTS, LENGTH, SAMPLES, NEW = 20, 30, 200, 64
if not GPU:
    SHAPE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    SHAPE |= {"intermediate_size": 128, "vocab_size": 997, "head_dim": 16}
    PROMPTS, LENGTH, SAMPLES, NEW = 3, 10, 20, 8
EXACT_SAMPLES, CLASSES = (40_000, 100) if GPU else (2_000, 20)
LOSS, TRAIN_SECONDS = 0.005, 25.0


class Rows:
    """Rows of JSON, on disk at once."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def add(self, **row: Any) -> None:
        with self.path.open("a", encoding="utf-8") as stream:
            print(json.dumps(row), file=stream)
        print(json.dumps(row), flush=True)


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that it takes until the device is done, and what it gives."""
    _wait()
    clock = time.perf_counter()
    value = function()
    _wait()
    return time.perf_counter() - clock, value


def _wait() -> None:
    if GPU:
        torch.cuda.synchronize()


def limits(rows: Rows) -> tuple[float, float]:
    """Bytes a second of a copy, reads and writes counted, and operations a second of a bfloat16 product; medians."""
    elements, side = (2**30, 8192) if GPU else (2**24, 512)
    source = torch.randn(elements, device=DEVICE, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy = statistics.median(timed(lambda: target.copy_(source))[0] for _ in range(12))
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    product = statistics.median(timed(lambda: a @ b)[0] for _ in range(12))
    bandwidth, flops = 2 * 2 * elements / copy, 2 * side**3 / product
    name = torch.cuda.get_device_name() if GPU else "CPU"
    numbers = {"tb_per_s": bandwidth / 1e12, "tflops": flops / 1e12}
    rows.add(what="device", gpu=GPU, name=name, torch=torch.__version__, **numbers)
    return bandwidth, flops


def flat(dtype: torch.dtype = torch.bfloat16) -> Any:
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    options: dict[str, Any] = {
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": END,
    }
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE, **options), dtype=dtype).eval()


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, SHAPE["vocab_size"], (PROMPTS, LENGTH), generator=generator).tolist()


def recites() -> Any:
    """Trained in float32 under autocast until it recites an answer to each prompt, end token included."""
    model = flat(torch.float32)
    generator = torch.Generator().manual_seed(2)
    answers = torch.randint(3, SHAPE["vocab_size"], (PROMPTS, NEW), generator=generator)
    answers[:, -1] = END
    texts = torch.cat([torch.tensor(prompts()), answers], dim=1).to(DEVICE)
    labels = texts.clone()
    labels[:, :LENGTH] = -100
    peak = 3e-4 if GPU else 3e-3
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    clock, loss, steps = time.monotonic(), LOSS + 1, 0
    model.train()
    while loss > LOSS and time.monotonic() - clock < TRAIN_SECONDS:
        steps += 1
        for group in optimizer.param_groups:
            group["lr"] = peak * min(1.0, steps / 10)
        optimizer.zero_grad()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=GPU):
            loss_now = model(input_ids=texts, labels=labels).loss
        loss_now.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss = loss_now.item()
    optimizer.zero_grad()
    return model.to(torch.bfloat16).eval()


class Floor:
    """The least that steps must read, write and compute."""

    def __init__(self, bandwidth: float, flops: float) -> None:
        h, v, inner = SHAPE["hidden_size"], SHAPE["vocab_size"], SHAPE["intermediate_size"]
        layers, d = SHAPE["num_hidden_layers"], SHAPE["head_dim"]
        heads, kv = SHAPE["num_attention_heads"], SHAPE["num_key_value_heads"]
        self.weights = layers * (2 * h * heads * d + 2 * h * kv * d + 3 * h * inner) + v * h
        self.kv, self.attention, self.vocabulary = 2 * layers * kv * d * 2, 4 * layers * heads * d, v
        self.bandwidth, self.flops = bandwidth, flops

    def shares(self, steps: list[tuple[int, int]], seconds: float) -> dict[str, float]:
        """steps: (rows, context). Share of the seconds that memory and arithmetic alone would take at their limits."""
        read = sum(2 * self.weights + n * (t * self.kv + 2 * self.vocabulary) for n, t in steps)
        operations = sum(n * (2 * self.weights + t * self.attention) for n, t in steps)
        return {
            "share_memory": read / self.bandwidth / seconds,
            "share_compute": operations / self.flops / seconds,
        }


def released() -> None:
    import gc

    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float | None:
    return torch.cuda.max_memory_allocated() / GIB if GPU else None


def first_tokens_exact(name: str, model: Any, rows: Rows) -> None:
    """First tokens of many samples against the model's softmax, in classes of about the same probability."""
    from scipy import stats

    prompt = prompts()[0]
    drawn = sampler.sample(model, [prompt], EXACT_SAMPLES, max_new_tokens=1, prompt_ids=["exact"], eos_token_id=END)[0]
    with torch.inference_mode():
        inputs = torch.tensor([prompt] * 16, device=DEVICE)  # as many rows as the sampler's own pass has
        logits = model(input_ids=inputs, logits_to_keep=1).logits[0, -1]
    probabilities = torch.softmax(logits.double(), dim=-1).cpu().numpy()
    of_token = np.minimum((np.cumsum(probabilities) * CLASSES).astype(int), CLASSES - 1)
    expected = np.bincount(of_token, probabilities, minlength=CLASSES) * EXACT_SAMPLES
    tokens = np.array([each.token_ids[0] if each.token_ids else END for each in drawn])
    seen = np.bincount(of_token[tokens], minlength=CLASSES)
    used = expected > 5
    counts, wanted = np.append(seen[used], seen[~used].sum()), np.append(expected[used], expected[~used].sum())
    if wanted[-1] < 5:  # too few to test: with the largest class
        largest = int(wanted[:-1].argmax())
        counts[largest] += counts[-1]
        wanted[largest] += wanted[-1]
        counts, wanted = counts[:-1], wanted[:-1]
    if len(wanted) < 2:
        text = f"one class of tokens takes all of the probability, as {counts[0]} of {EXACT_SAMPLES} samples"
    else:
        test = stats.chisquare(counts, wanted * counts.sum() / wanted.sum())
        text = f"chi-square of {EXACT_SAMPLES:,} first tokens in {len(wanted)} classes: p = {test.pvalue:.3f}"
    rows.add(what=f"exactness, {name}", text=text)


def generated(model: Any, repeated: bool, seconds: float) -> tuple[int, float, list[tuple[int, int]]]:
    """Tokens, seconds and steps of Hugging Face generate, of as many prompts as the time allows; every batch is
    taken to run for all of its steps."""
    generate(model, prompts()[:1], [END], BATCH, 4, repeated=repeated)  # warm
    tokens, spent, steps = 0, 0.0, list[tuple[int, int]]()
    for prompt in prompts():
        took, count = timed(partial(generate, model, [prompt], [END], SAMPLES, NEW, repeated=repeated))
        tokens += count
        spent += took
        batch = BATCH if repeated else SAMPLES
        for start in range(0, SAMPLES, batch):
            steps += [(min(batch, SAMPLES - start), LENGTH + index) for index in range(1, NEW)]
        if spent > seconds:
            break
    return tokens, spent, steps


def measure(name: str, model: Any, rows: Rows, floor: Floor, seconds: float) -> None:
    """Rows for one model: ours with CUDA graphs and without, and generate in both ways."""
    options: dict[str, Any] = {"max_new_tokens": NEW, "eos_token_id": END}
    options["prompt_ids"] = [str(index) for index in range(PROMPTS)]

    def call() -> Any:
        return sampler.sample(model, prompts(), SAMPLES, **options)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cold, drawn = timed(call)
    for each in caught:
        rows.add(what=f"warning, {name}", text=str(each.message).splitlines()[0])
    released()
    taken = [timed(call)[0] for _ in range(3)]
    memory, with_graphs = peak_gib(), statistics.median(taken)
    steps, spent = traced(call)
    graphs, sampler.fixed_rows = sampler.fixed_rows, lambda *_: None
    try:
        without, _ = timed(call)
    finally:
        sampler.fixed_rows = graphs
    tokens = sum(each.drawn for samples in drawn for each in samples)
    distinct = sum(len({tuple(each.token_ids) for each in samples}) for samples in drawn) / PROMPTS
    of_generate = []
    for how, repeated in (("generate, the prompt repeated 32 times", True), ("generate, num_return_sequences", False)):
        released()
        count, took, of_steps = generated(model, repeated, seconds / 4)
        rate = count / took
        of_generate.append((how, rate, floor.shares(of_steps, took), peak_gib()))
    base = of_generate[0][1]
    for how, took in (("this sampler, CUDA graphs", with_graphs), ("this sampler, without", without)):
        numbers = {"tokens_per_s": tokens / took, "ratio": tokens / took / base, "distinct": distinct}
        numbers |= {"rows_computed": sum(count for count, _ in steps), "peak_gib": memory}
        rows.add(what="sampler", model=name, how=how, **numbers, **floor.shares(steps, took))
    for how, rate, shares, most in of_generate:
        rows.add(what="sampler", model=name, how=how, tokens_per_s=rate, ratio=rate / base, peak_gib=most, **shares)
    parts = ", ".join(f"{part} {value:.2f} s" for part, value in spent.items())
    text = f"{cold:.2f} s at first, then {', '.join(f'{each:.2f}' for each in taken)} s; {len(steps)} steps, {parts}"
    rows.add(what=f"time, {name}", text=text)


def traced(call: Callable[[], Any]) -> tuple[list[tuple[int, int]], dict[str, float]]:
    """(rows, context) of every step of a call, and the seconds that its steps and its drawing took, each waited for."""
    steps: list[tuple[int, int]] = []
    spent = {"steps": 0.0, "of these drawing": 0.0}
    plain_step, plain_draw = prefix_tree.PrefixTree._step, prefix_tree.draw

    def step(tree: Any, branch: Any) -> Any:
        steps.append((len(branch.token_R), tree.width + branch.step))
        took, value = timed(lambda: plain_step(tree, branch))
        spent["steps"] += took
        return value

    def draw(*given: Any) -> Any:
        took, value = timed(lambda: plain_draw(*given))
        spent["of these drawing"] += took
        return value

    prefix_tree.PrefixTree._step, prefix_tree.draw = step, draw  # type: ignore[method-assign, assignment]
    try:
        call()
    finally:
        prefix_tree.PrefixTree._step, prefix_tree.draw = plain_step, plain_draw  # type: ignore[method-assign]
    return steps, spent


def main() -> int:
    rows, seconds = Rows(sys.argv[1]), float(os.environ.get("PERF_SECONDS", 180))
    floor, failed = Floor(*limits(rows)), False
    for name, make in (("flat", flat), ("recites", recites)):
        released()
        try:
            model = make()
            released()
            first_tokens_exact(name, model, rows)
            measure(name, model, rows, floor, seconds / 3)
            del model
        except Exception as error:  # the other model is measured all the same
            traceback.print_exc()
            rows.add(what=f"failed, {name}", text=f"{type(error).__name__}: {str(error)[:300]}")
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
