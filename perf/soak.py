"""One experiment many times with other seeds, in one store, on one cluster that stays up: what its processes hold.

    python -m perf.soak [--runs 40] [--set model.finetune.steps=60] [--store FOLDER]

After each run: memory, file handles and threads of the driver, and memory, file handles and number of the processes
below it (Ray's and its workers'). The slope is that of a line through all runs but the first five, in which modules are
loaded and caches filled. Writes perf/results/soak.md.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

import leakatk
from perf.report import machine, table, write_page

WARM = 5  # runs before what is held is expected to stay
SHOWN = 5  # every so many runs a row


@dataclasses.dataclass(frozen=True)
class Held:
    """What the driver and the processes below it hold; memory in MiB."""

    driver_memory: float
    driver_handles: int
    driver_threads: int
    processes: int
    memory: float
    handles: int


def held() -> Held:
    """What is held now."""
    driver = psutil.Process()
    memory, handles, count = 0, 0, 0
    for each in driver.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended
            memory += each.memory_info().rss
            handles += each.num_fds()
            count += 1
    mib = 2**20
    return Held(driver.memory_info().rss / mib, driver.num_fds(), driver.num_threads(), count, memory / mib, handles)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes to the experiment")
    parser.add_argument("--store", type=Path, help="default: a temporary one")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        store, after, clock = args.store or Path(temporary), [], time.monotonic()
        for seed in range(args.runs):
            changes = [f"seed={seed}", f"benchmark.seed={seed}", f"name=soak-{seed}", *args.set]
            leakatk.run(leakatk.load_experiment("examples/fictional.yaml", changes), store=store, quiet=True)
            after.append(held())
            print(f"{seed + 1:3d}  {time.monotonic() - clock:6.0f} s  {after[-1]}", flush=True)
        minutes = (time.monotonic() - clock) / 60
    names = [field.name for field in dataclasses.fields(Held)]
    shown = [number for number in range(len(after)) if number in (0, len(after) - 1) or (number + 1) % SHOWN == 0]
    rows = [[str(number + 1), *(f"{getattr(after[number], name):.0f}" for name in names)] for number in shown]
    slopes = [_slope([getattr(each, name) for each in after[WARM:]]) for name in names]
    header = ["after run", *(name.replace("_", " ") for name in names)]
    command = f"python -m perf.soak --runs {args.runs}" + "".join(f" --set {each}" for each in args.set)
    write_page(
        "soak",
        [
            "# What many runs leave held",
            machine(command),
            f"examples/fictional.yaml with {args.runs} seeds, one after the other, in {minutes:.0f} minutes. Memory in "
            f"MiB; the slope, a run, is over all but the first {WARM} runs.",
            table(header, [*rows, ["slope", *(f"{each:+.2f}" for each in slopes)]]),
        ],
    )


def _slope(values: list[float]) -> float:
    return float(np.polyfit(np.arange(len(values)), values, 1)[0]) if len(values) > 1 else float("nan")


if __name__ == "__main__":
    main()
