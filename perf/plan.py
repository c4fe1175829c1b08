"""The plan's formulas against what training and likelihoods take: peak memory of a worker, measured and planned.

python -m perf.plan [MODEL]         with a model's folder: likelihoods of that model too
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from perf.report import write

NOTES = """\
Peak resident size of the training worker that took most, in MiB: a process of its own for each case, with libraries;
planned: engine/pipeline/memory_model.py's formulas, with the same libraries' share (the first row). CPU, float32 unless
bf16, one thread a worker, two steps of full sequences. Llama of 8 layers, hidden size 512; batch x length as given over
all workers; likelihoods of answers of so many tokens. What is shared by processes, such as the mapped file of the
weights, counts in the measurement.\
"""
LENGTH = 128
CASES: dict[str, dict[str, Any]] = {
    "nothing but the libraries": {},
    "8 x 128": {},
    "8 x 128, micro-batches of 2": {"micro_batch_size": 2},
    "8 x 128, bf16": {"precision": "bf16"},
    "8 x 128, LoRA": {"lora": {"rank": 16}},
    "8 x 128, frozen reference (UNDIAL)": {"method": "undial"},
    "8 x 128, 2 workers, ZeRO 0": {"workers": 2},
    "8 x 128, 2 workers, ZeRO 2": {"workers": 2, "zero_stage": 2},
    "8 x 128, 2 workers, ZeRO 2, bf16": {"workers": 2, "zero_stage": 2, "precision": "bf16"},
    "8 x 128, 2 workers, ZeRO 3": {"workers": 2, "zero_stage": 3},
    "8 x 128, 2 workers, ZeRO 3, offload": {"workers": 2, "zero_stage": 3, "offload": "parameters"},
}
# Copies of the weights that a worker holds, and how many answers it is given.
LIKELIHOODS = {"likelihoods of 32 answers": (1, 32), "likelihoods and gradient norms of 2 answers": (3, 2)}


def main() -> None:
    if len(sys.argv) == 3:
        wanted, given = sys.argv[1], Path(sys.argv[2])
        print(measure(wanted, given) if wanted in CASES else measure_likelihoods(*LIKELIHOODS[wanted], given))
        return
    from engine.config.sections import TrainSection
    from engine.models.size import model_size
    from engine.models.source import ModelSource
    from engine.pipeline.memory_model import PROCESS, likelihood_memory, training_memory
    from engine.stages.likelihood import BATCH_LOGITS
    from methods import METHODS
    from perf.memory import _write_model

    rows = []
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as folder:
        _write_model(Path(folder) / "model")
        size = model_size(ModelSource(str(Path(folder) / "model"), ""))
        assert size is not None
        for name, case in CASES.items():
            measured = _apart(name, folder)
            planned = PROCESS / 2**20
            if case or name != next(iter(CASES)):
                needs = METHODS[case.get("method", "grad_diff")].needs
                graphs = 1 + ("retain" in needs)
                memory = training_memory(size, TrainSection(**settings_of(case)), graphs, "reference_model" in needs)
                planned += memory.whole / 2**20
            rows.append(_row(name, measured, planned))
        models = {f"{folder}/model": ""} | {path: f", {Path(path).name}" for path in sys.argv[1:]}
        for path, said in models.items():
            of_model = model_size(ModelSource(path, ""))
            assert of_model is not None
            for name, (copies, _) in LIKELIHOODS.items():
                planned = (PROCESS + likelihood_memory(of_model, BATCH_LOGITS["cpu"], copies, half=False)) / 2**20
                rows.append(_row(name + said, _apart(name, path), planned))
    headings = ["work", "measured, MiB", "planned, MiB", "planned / measured"]
    command = " ".join(["python -m perf.plan", *(Path(path).name for path in sys.argv[1:])])
    write("plan", "Memory of trainings and likelihoods: planned and measured", command, NOTES, headings, rows)


def _apart(name: str, folder: str) -> float:
    """Peak resident size of a case, in MiB, in a process of its own."""
    command = [sys.executable, "-m", "perf.plan", name, folder]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])


def _row(name: str, measured: float, planned: float) -> list[str]:
    row = [name, f"{measured:,.0f}", f"{planned:,.0f}", f"{planned / measured:.2f}"]
    print(row, file=sys.stderr, flush=True)
    return row


def settings_of(case: dict[str, Any]) -> dict[str, Any]:
    common = {"steps": 2, "batch_size": 8, "max_length": LENGTH, "lr": 1e-5}
    return common | {key: value for key, value in case.items() if key != "method"}


def measure(name: str, folder: Path) -> float:
    """Peak resident size in MiB of one case's training worker, the largest of several."""
    import resource

    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    from benchmarks.base import Example
    from engine.cluster.reporter import Silent
    from engine.config.sections import TrainSection
    from engine.models.source import model_source
    from engine.train.job import TrainJob
    from engine.train.launch import train_alone

    torch.set_num_threads(1)
    if name == next(iter(CASES)):
        import deepspeed  # noqa: F401
        import ray.train.torch  # noqa: F401

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    case = CASES[name]
    answer = "the name of the book and the city of " * LENGTH
    examples = tuple(Example(str(index), "Who wrote it?", answer) for index in range(64))
    settings = TrainSection(**settings_of(case))
    method = {"name": case.get("method", "grad_diff")}
    job = TrainJob(model_source(str(folder / "model")), method, settings, retain=examples, forget=examples)
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as work:
        if settings.workers == 1:
            train_alone(job, work, Silent())
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        return _together(job, Path(work))


def measure_likelihoods(copies: int, count: int, folder: Path) -> float:
    """Peak resident size in MiB of a worker that takes the likelihoods of so many answers, and where it holds copies of
    the weights their gradient norms."""
    import resource

    import torch

    from benchmarks.base import Example
    from engine.models.source import model_source
    from engine.stages.likelihood import LikelihoodJob

    torch.set_num_threads(1)
    answer = "the name of the book and the city of " * (LENGTH // 9)
    examples = tuple(Example(str(index), "Who wrote it?", answer) for index in range(count))
    gradients = frozenset(each.id for each in examples) if copies > 1 else frozenset[str]()
    job = LikelihoodJob(model_source(str(folder), identified=False), examples, gradients, template="plain")
    job.compute(0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _together(job: Any, work: Path) -> float:
    from engine.cluster import ray_cluster
    from engine.cluster.reporter import Silent
    from engine.store.work_dir import open_workplace
    from engine.train import launch

    os.environ["LEAKATK_RAY_TEMP"] = str(work / "r")
    ray_cluster.connect(distributed_training=True)
    own, launch.train_worker = launch.train_worker, _watched
    try:
        launch.train_together(job, open_workplace(work), Silent(), use_gpu=False, cpus=1)
    finally:
        launch.train_worker = own
    return max(json.loads(path.read_text()) for path in work.glob("peak*"))


def _watched(config: dict[str, Any], rank: int, device: str) -> None:
    """A training worker that notes its peak resident size."""
    import resource

    from engine.train.launch import train_worker

    train_worker(config, rank, device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    (Path(config["place"].folder) / f"peak{rank}").write_text(json.dumps(peak))


if __name__ == "__main__":
    main()
