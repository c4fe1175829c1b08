"""CPU time of TOFU's own evaluation of one model (greedy answers and likelihoods), by stage, beside Hugging Face's.

    python -m perf.tofu_eval MODEL --path FOLDER_OR_HUB_NAME [--authors 4] [--precision bf16]

Hugging Face: `generate` and forward passes in batches of 32 in the order of the data, prompt and answer alike; every
text once, though frameworks that take one metric after the other read many of them several times. Ours is all that the
machine does meanwhile, starting Ray included, so nothing else may run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import psutil

import leakatk
from benchmarks import BENCHMARKS
from engine.evaluation.benchmark_metrics import likelihood_examples
from engine.models.chat_template import stop_token_ids
from engine.models.loading import load_model
from engine.models.source import model_source
from engine.models.tokenization import collate, encode_example, encode_prompt, load_tokenizer, pad_token_id
from perf.report import machine, table, write_page

BATCH = 32
MAX_LENGTH = 512
TOKENS = 64  # of an answer at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a fine-tuned model's folder, prompted in the plain form")
    parser.add_argument("--path", default="locuslab/TOFU", help="TOFU")
    parser.add_argument("--authors", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16")
    args = parser.parse_args()
    options = {"path": args.path, "split": "forget10", "limit_authors": args.authors, "core_metric": "rouge_l_recall"}
    options |= {"attacks": ["loss", "zlib", "min_k", "min_k_plus_plus"]}
    ours, stages = of_ours(args.model, options, args.precision)
    theirs = of_hugging_face(args.model, options, args.precision)
    rows = [[f"ours, {name}", f"{seconds:.0f}", ""] for name, seconds in stages.items()]
    rows += [["ours, all", f"{ours:.0f}", f"{sum(theirs.values()) / ours:.2f}"]]
    rows += [[f"Hugging Face, {name}", f"{seconds:.0f}", ""] for name, seconds in theirs.items()]
    write_page(
        "tofu_eval",
        [
            "# TOFU's evaluation of one model",
            machine(
                f"python -m perf.tofu_eval MODEL --path TOFU --authors {args.authors} --precision {args.precision}"
            ),
            "CPU seconds; a stage's are those of its workers by the clock, with the threads that they have. Ratio: "
            "Hugging Face's over ours.",
            table(["", "CPU s", "ratio"], rows),
        ],
    )


def of_ours(model: str, options: dict[str, object], precision: str) -> tuple[float, dict[str, float]]:
    """CPU seconds of the machine while it evaluates, and the workers' seconds by kind of stage."""
    settings = {f"benchmark.{key}": value for key, value in options.items()}
    settings |= {"model.template": "plain", "sampling.precision": precision, "sampling.max_new_tokens": TOKENS}
    settings |= {"sampling.decoding": "greedy", "sampling.cpus": 1}
    with tempfile.TemporaryDirectory() as store:
        before = _busy()
        leakatk.evaluate(model, benchmark="tofu", set=settings, store=store)
        taken = _busy() - before
        stages: dict[str, float] = {}
        for path in Path(store).glob("*/*/manifest.json"):
            manifest = json.loads(path.read_text())
            stages[manifest["kind"]] = stages.get(manifest["kind"], 0.0) + manifest["facts"].get("seconds", 0.0)
    return taken, stages


def _busy() -> float:
    """CPU seconds that this machine has worked; Ray's workers are nice."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def of_hugging_face(path: str, options: dict[str, object], precision: str) -> dict[str, float]:
    """CPU seconds of this process for the same answers and likelihoods."""
    import torch

    torch.set_num_threads(1)  # as each of our workers
    benchmark = BENCHMARKS["tofu"].load(**options)
    model, tokenizer = load_model(model_source(path), "cpu", precision), load_tokenizer(path)
    pad, ends = pad_token_id(tokenizer), stop_token_ids(tokenizer, None)
    prompts = [each.prompt for each in benchmark.probes]
    texts, _ = likelihood_examples(benchmark)
    encoded = [encode_example(tokenizer, each.question, each.answer, "plain", None, MAX_LENGTH) for each in texts]
    asked = [encode_prompt(tokenizer, each, "plain") for each in prompts]
    clock, seconds = time.process_time(), {}
    with torch.inference_mode():
        for start in range(0, len(asked), BATCH):
            some = asked[start : start + BATCH]
            width = max(map(len, some))
            ids = torch.tensor([[pad] * (width - len(each)) + each for each in some])
            mask = torch.tensor([[0] * (width - len(each)) + [1] * len(each) for each in some])
            model.generate(
                ids, attention_mask=mask, do_sample=False, max_new_tokens=TOKENS, eos_token_id=ends, pad_token_id=pad
            )
        seconds["answers"] = time.process_time() - clock
        clock = time.process_time()
        for start in range(0, len(encoded), BATCH):
            batch = collate(encoded[start : start + BATCH], pad)
            logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits[:, :-1].float()
            torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch.labels[:, 1:], reduction="none")
        seconds["likelihoods"] = time.process_time() - clock
    return seconds


if __name__ == "__main__":
    main()
