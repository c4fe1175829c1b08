"""What portable arithmetic costs on CPUs: fine-tuning, sampling and a matrix product, native and portable in turns.

python -m perf.numerics      processes of one thread each, for torch reads the choice when it is loaded
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.base import Decoding
from benchmarks.fictional import Fictional
from engine.cluster.numerics import PORTABLE
from engine.cluster.reporter import Silent
from engine.config.sections import TrainSection
from perf.report import median_ratio, write

STEPS, PROMPTS, SAMPLES, SIDE, REPEATS = 60, 32, 200, 1024, 3
KINDS = (f"{STEPS} steps of the embedded benchmark's fine-tuning", f"{PROMPTS} x {SAMPLES} samples of its model")
PRODUCT = f"a float32 product of {SIDE} x {SIDE}"


def main() -> None:
    if sys.argv[1:] == ["measure"]:
        print(json.dumps(measured()))
        return
    found: dict[str, list[dict[str, float]]] = {"native": [], "portable": []}
    for _ in range(REPEATS):
        for name, environment in (("native", {}), ("portable", PORTABLE)):
            command = [sys.executable, "-m", "perf.numerics", "measure"]
            variables = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            done = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    rows = []
    for kind in (*KINDS, PRODUCT):
        native, portable = ([each[kind] for each in found[name]] for name in ("native", "portable"))
        medians = [f"{statistics.median(each):.3g}" for each in (native, portable)]
        rows.append([kind, *medians, f"{median_ratio(portable, native):.1f}"])
    write(
        "numerics",
        "What portable arithmetic costs",
        "python -m perf.numerics",
        f"CPU seconds of one thread, medians of {REPEATS} processes of each in turns; ratio: median of the pairs.",
        ["work", "native", "portable", "ratio"],
        rows,
    )


def measured() -> dict[str, float]:
    """CPU seconds by kind of work, in this process's arithmetic."""
    import torch

    from engine.models.loading import worker_model
    from engine.models.source import model_source
    from engine.stages.sample import SampleJob, sample_probes
    from engine.train.job import TrainJob
    from engine.train.launch import train_alone
    from methods import FINE_TUNING

    benchmark = Fictional.load()
    settings = TrainSection.model_validate((benchmark.protocol.finetune or {}) | {"steps": STEPS})
    portable = "MKL_CBWR" in os.environ
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        benchmark.base_model(folder / "base", seed=0)
        base, data = model_source(str(folder / "base")), tuple(benchmark.finetune_target)
        job = TrainJob(base, {"name": FINE_TUNING}, settings, retain=data, portable=portable)
        (folder / "model").mkdir()
        clock = time.process_time()
        train_alone(job, str(folder / "model"), Silent())
        training = time.process_time() - clock
        source = model_source(str(folder / "model" / "model"))
        loaded, probes = worker_model(source), tuple(benchmark.group("forget")[:PROMPTS])
        clock = time.process_time()
        sample_probes(*loaded, probes, SampleJob(source, probes, Decoding(), SAMPLES, 24))
        sampling = time.process_time() - clock
    one, other = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    one @ other
    clock = time.process_time()
    for _ in range(10):
        one @ other
    return dict(zip((*KINDS, PRODUCT), (training, sampling, (time.process_time() - clock) / 10), strict=True))


if __name__ == "__main__":
    main()
