"""Peak memory of a training step: methods with precomputed reference log-probabilities against GradDiff, and against
methods that hold a second model.

    python -m perf.memory

"""

from __future__ import annotations

import dataclasses
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from perf.report import write

NOTES = """\
Each training is a process of its own, whose largest resident size is read; the figure is what it adds to a process that
imports the same libraries and trains nothing. Medians of 3 runs; Llama with 8 layers, hidden size 512 and 51 million
weights; CPU, float32, one thread, batches of 8 sequences of 20 to 40 tokens. DPO's surplus is its third batch, the
alternate answers; that of KL-min and UNDIAL the frozen model.\
"""
METHODS = ("grad_diff", "npo", "simnpo", "dpo", "kl_min", "undial")
ADAPTER = "npo, LoRA"
REPEATS = 3


def main() -> None:
    if len(sys.argv) == 3:
        _train_one(sys.argv[1], Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        _write_model(Path(folder) / "model")
        names = ("nothing", *METHODS, ADAPTER)
        peaks: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(REPEATS):
            for name in names:
                command = [sys.executable, "-m", "perf.memory", name, folder]
                peaks[name].append(float(subprocess.run(command, check=True, capture_output=True).stdout.split()[-1]))
    own = {name: statistics.median(peaks[name]) - statistics.median(peaks["nothing"]) for name in names[1:]}
    rows = [[name, f"{value:,.0f}", f"{value / own['grad_diff']:.2f}"] for name, value in own.items()]
    write(
        "memory",
        "Peak memory of training",
        "python -m perf.memory",
        NOTES,
        ["method", "MiB", "of GradDiff"],
        rows,
    )


def _write_model(folder: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from benchmarks.fictional import make_tokenizer

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 24000,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        tie_word_embeddings=False,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _train_one(name: str, folder: Path) -> None:
    """Three steps of one method in this process; prints its peak resident size in MiB."""
    import resource

    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    from benchmarks import BENCHMARKS
    from benchmarks.base import Example
    from engine.cluster.reporter import Silent
    from engine.config.sections import TrainSection
    from engine.models.lora import LoraSection
    from engine.models.source import model_source
    from engine.train.job import TrainJob
    from engine.train.launch import train_alone

    torch.set_num_threads(1)
    if name == "nothing":
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    benchmark = BENCHMARKS["fictional"].load()
    forget = tuple(benchmark.forget[:24])
    settings = TrainSection(steps=3, batch_size=8, lr=1e-5)
    if name == ADAPTER:
        settings = settings.model_copy(update={"lora": LoraSection()})
    job = TrainJob(
        model_source(str(folder / "model")),
        {"name": name.partition(",")[0]},
        settings,
        retain=tuple(benchmark.retain[:24]),
        forget=forget,
        alternate=tuple(Example(each.id, each.question, each.answer) for each in benchmark.retain[:24]),
        forget_reference=(-20.0,) * len(forget),
        alternate_reference=(-20.0,) * len(forget),
    )
    if name != "dpo":
        job = dataclasses.replace(job, alternate=(), alternate_reference=None)
    with tempfile.TemporaryDirectory() as work:
        train_alone(job, work, Silent())
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


if __name__ == "__main__":
    main()
