"""Trainings of a Llama of 1B shape: seconds a step and peak memory, alone and under ZeRO-2: a part of perf/gpu.py.

    python -m perf.gpu_training ROWS FOLDER alone|zero      a row of JSON for each training

alone: NPO, GradDiff, RMU, and NPO with a live reference model beside, on one worker in this process. zero: GradDiff
under DeepSpeed ZeRO-2 in Ray Train.
"""

from __future__ import annotations

import gc
import itertools
import json
import shutil
import statistics
import sys
import time
import traceback
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks import BENCHMARKS
from benchmarks.base import Example
from benchmarks.fictional import make_tokenizer
from engine.config.sections import TrainSection
from engine.models.loading import cached_model
from engine.models.size import model_size
from engine.models.source import ModelSource, model_source
from engine.pipeline.memory_model import training_memory
from engine.stages.reference import ReferenceJob, answer_logprobs
from engine.train.job import TrainJob
from engine.train.launch import run_training, train_alone
from methods import METHODS, make_method
from methods.base import UnlearnBatch, sequence_nll
from methods.npo import NPO
from perf.gpu_sampler import Rows

GPU = torch.cuda.is_available()
GIB = 2**30
STEPS, BATCH, LENGTH = (20, 16, 128) if GPU else (3, 4, 16)
ALONE = ({"name": "grad_diff"}, {"name": "npo"}, {"name": "npo_live"}, {"name": "rmu", "layer": 7 if GPU else 1})
ZERO = ({"name": "grad_diff"},)


class LiveNPO(NPO):
    """NPO that asks the target model beside it in every step, as many scripts do, to see what that costs."""

    needs: ClassVar[frozenset[str]] = frozenset({"retain", "reference_model"})

    def forget_loss(self, model: Any, batch: UnlearnBatch) -> torch.Tensor:
        assert batch.forget is not None
        nll_B, _ = sequence_nll(model, batch.forget)
        with torch.no_grad():
            reference_B, _ = sequence_nll(batch.reference, batch.forget)
        return -(2 / self.beta) * torch.nn.functional.logsigmoid(self.beta * (nll_B - reference_B)).mean()


METHODS["npo_live"] = LiveNPO


class Meter:
    """The report of a training: a line for each step with the time and the memory of the device so far."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, done: float, note: str = "", force: bool = False, row: Any = None) -> None:
        seen: dict[str, float] = {"at": time.monotonic()}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            seen = {"at": time.monotonic(), "peak": torch.cuda.max_memory_allocated()}
            if done == 1:  # what loading took is not of interest: peaks are of the later steps
                torch.cuda.reset_peak_memory_stats()
        with self.path.open("a", encoding="utf-8") as stream:
            print(json.dumps(seen), file=stream)

    def begin(self) -> None:
        pass

    def stopping(self) -> bool:
        return False

    def of(self, part: str) -> Meter:
        return self


def write_model(folder: Path) -> None:
    """A Llama of the shape of Llama-3.2-1B, embeddings tied, with random weights."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = make_tokenizer()
    shape: dict[str, Any] = {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    }
    shape |= {"num_key_value_heads": 8, "vocab_size": 128256, "head_dim": 64}
    if not GPU:
        shape |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        shape |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "head_dim": 16}
    config = LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=True, bos_token_id=None)
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device("cuda" if GPU else "cpu"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def long_examples(given: Any) -> tuple[Example, ...]:
    """The questions, each with an answer of LENGTH tokens made of all answers."""
    words = " ".join(each.answer for each in given).split()
    return tuple(
        Example(each.id, each.question, " ".join((words[17 * index % len(words) :] + words * 3)[:LENGTH]))
        for index, each in enumerate(given)
    )


def measure(method: dict[str, Any], stage: int, source: ModelSource, folder: Path, rows: Rows) -> None:
    """One training, and its row."""
    benchmark = BENCHMARKS["fictional"].load()
    forget, retain = long_examples(benchmark.forget), long_examples(benchmark.retain)
    settings = TrainSection(
        steps=STEPS, batch_size=BATCH, lr=1e-5, max_length=LENGTH + 64, zero_stage=stage, precision="bf16"
    )
    made = make_method(method)
    needs = made.needs
    known = None
    if "reference_logprob" in needs:
        known = tuple(answer_logprobs(ReferenceJob(source, forget, max_length=settings.max_length), on_gpu=GPU))
        cached_model.cache_clear()
    free()
    job = TrainJob(source, method, settings, retain=retain, forget=forget, forget_reference=known)
    name = f"{method['name']}, ZeRO-{stage}" if stage else method["name"]
    work = folder / name.replace(", ", "-")
    work.mkdir()
    meter = Meter(folder / f"{work.name}.jsonl")
    if stage:
        run_training(job, work, meter)
    else:
        train_alone(job, str(work), meter)
    shutil.rmtree(work)
    seen = [json.loads(line) for line in meter.path.read_text().splitlines()]
    second = statistics.median(b["at"] - a["at"] for a, b in itertools.pairwise(seen[1:]))
    longest = max(len(each.answer.split()) + len(each.question.split()) + 8 for each in forget)
    graphs, size = 1 + ("retain" in needs), model_size(source)
    assert size is not None
    longer = settings.model_copy(update={"max_length": longest})
    planned = training_memory(size, longer, graphs, "reference_model" in needs, layers=made.layers)
    rows.add(
        what="training",
        training=name,
        seconds_a_step=second,
        tflops=6 * size.reached(made.layers) * BATCH * graphs * longest / second / 1e12,
        peak_gib=max(each["peak"] for each in seen[1:]) / GIB if GPU else None,
        planned_gib=planned.on_device / GIB,
    )


def free() -> None:
    gc.collect()
    if GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> int:
    rows, folder, mode = Rows(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    model, failed = folder / "model", False
    if not model.exists():
        write_model(model)
    free()
    if mode == "zero":
        from engine.cluster import ray_cluster

        ray_cluster.connect(distributed_training=True)
    for method in ALONE if mode == "alone" else ZERO:
        try:
            measure(method, 2 if mode == "zero" else 0, model_source(str(model)), folder, rows)
        except Exception as error:  # the others are measured all the same
            traceback.print_exc()
            rows.add(what=f"failed, {method['name']}", text=f"{type(error).__name__}: {str(error)[:300]}")
            failed = True
        free()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
