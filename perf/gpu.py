"""What runs on one GPU, and how fast: tests, exactness, sampling, training, ZeRO-2 and an experiment through Ray.

    python -m perf.gpu [PART ...] [--seconds 540] [--out FOLDER]        parts: tests sampler training zero experiment

Each part is a process of its own with a limit of its own, and reports even where another fails. The result is a dated
page in perf/results. Without a GPU the same runs on tiny models, and the page says what was left out and is only shown;
without Ray the parts that need it are left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from perf.report import RESULTS, machine, table

PYTHON = sys.executable
GPU_TESTS = ("tests/unit/decode/test_kv_cache.py", "tests/unit/decode/test_cuda_graph.py")
LOG_END = 4000  # characters of a part's log that are shown where it failed
LEAST_SECONDS = 15
SAMPLER = (
    ("model", "model"),
    ("how", "sampler"),
    ("tokens_per_s", "tokens/s"),
    ("ratio", "of `generate`, repeated"),
    ("distinct", "distinct samples a prompt"),
    ("rows_computed", "rows computed"),
    ("share_memory", "of the bandwidth"),
    ("share_compute", "of the arithmetic"),
    ("peak_gib", "peak GiB"),
)
TRAINING = (
    ("training", "training"),
    ("seconds_a_step", "s a step"),
    ("tflops", "TFLOP/s"),
    ("peak_gib", "peak GiB"),
    ("planned_gib", "planned GiB"),
)
PERCENT = frozenset({"share_memory", "share_compute"})


class Part(NamedTuple):
    """limit: seconds that it may take; command: told the file for its rows, and a folder of its own to work in."""

    limit: int
    command: Sequence[str]
    ray: bool = False


def parts(rows: str, folder: str) -> dict[str, Part]:
    """The parts in their order, by name."""
    training = [PYTHON, "-m", "perf.gpu_training", rows, folder]
    demo = ["demo", "--methods", "npo", "--store", f"{folder}/store", "--json"]
    return {
        "tests": Part(60, [PYTHON, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", *GPU_TESTS]),
        "sampler": Part(150, [PYTHON, "-m", "perf.gpu_sampler", rows]),
        "training": Part(100, [*training, "alone"]),
        "zero": Part(75, [*training, "zero"], ray=True),
        "experiment": Part(290, [PYTHON, "-m", "engine", *demo], ray=True),
    }


def run_part(part: Part, limit: float, log: Path, rows: Path) -> tuple[str, float]:
    """How it ended, in words, and its seconds."""
    began = time.monotonic()
    environment = os.environ | {"PERF_SECONDS": f"{limit:.0f}", "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("w") as stream:
        try:
            done = subprocess.run(
                part.command, stdout=stream, stderr=subprocess.STDOUT, env=environment, timeout=limit, check=False
            )
            ended = "done" if done.returncode == 0 else f"failed, exit {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"stopped at its limit of {limit:.0f} s"
    return ended, time.monotonic() - began


def page(rows: list[dict[str, Any]], notes: list[str], command: str) -> str:
    """The whole page, of the rows that the parts have written and how each part ended."""
    device = next((row for row in rows if row["what"] == "device"), None)
    paragraphs = ["# On one GPU", machine(command)]
    if device is not None:
        paragraphs.append(
            f"{device['name']}, torch {device['torch']}: a copy moves {device['tb_per_s']:.2f} TB/s, reads and writes "
            f"counted; a bfloat16 product runs at {device['tflops']:.0f} TFLOP/s. Shares below are of these."
        )
    paragraphs.append("\n".join(f"- {note}" for note in notes))
    for what, columns in (("sampler", SAMPLER), ("training", TRAINING)):
        found = [row for row in rows if row["what"] == what]
        if found:
            cells = [[_cell(key, row.get(key)) for key, _ in columns] for row in found]
            paragraphs.append(table([title for _, title in columns], cells))
    other = [row for row in rows if row["what"] not in ("sampler", "training", "device")]
    paragraphs += [f"{row['what']}: {row['text']}" for row in other]
    return "\n\n".join(paragraphs) + "\n"


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if key in PERCENT:
        return f"{value:.0%}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(parts("", ""))
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(names)} (default: all)")
    parser.add_argument("--seconds", type=float, default=540, help="that all parts may take together (default 540)")
    parser.add_argument("--out", type=Path, help="folder for logs and the rows of numbers (default: a temporary one)")
    args = parser.parse_args()
    if unknown := [name for name in args.parts if name not in names]:
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(names)}")
    began = time.monotonic()
    out = args.out or Path(tempfile.mkdtemp(prefix="perf-gpu-"))
    out.mkdir(parents=True, exist_ok=True)
    rows, notes = out / "rows.jsonl", []
    rows.write_text("")
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name, part in parts(str(rows), folder).items():
            if args.parts and name not in args.parts:
                continue
            left = args.seconds - (time.monotonic() - began)
            if part.ray and importlib.util.find_spec("ray") is None:
                notes.append(f"{name}: left out, Ray is not installed here")
            elif left < LEAST_SECONDS:
                notes.append(f"{name}: left out, {left:.0f} s were left")
            else:
                print(f"{name} ...", flush=True)
                log = out / f"{name}.log"
                ended, seconds = run_part(part, min(part.limit, left), log, rows)
                notes.append(f"{name}: {ended}, {seconds:.0f} s")
                print(notes[-1], flush=True)
                if ended != "done":
                    failed = True
                    print(log.read_text()[-LOG_END:], flush=True)
                elif name in ("tests", "experiment"):
                    notes[-1] += _last(name, log)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    on_gpu = any(row["what"] == "device" and row["gpu"] for row in found)
    if not on_gpu:
        notes.append("no GPU here: tiny models on the CPU, to try the command; nothing of CUDA was run")
    command = " ".join(["python -m perf.gpu", *args.parts])
    text = page(found, notes, command)
    print(text)
    (out / "gpu.md").write_text(text)
    if on_gpu and not args.parts:
        (RESULTS / "gpu.md").write_text(text)
    return int(failed)


def _last(name: str, log: Path) -> str:
    """What a part that writes no rows came to: the tests' last line, or the experiment's table."""
    lines = log.read_text().strip().splitlines()
    if name == "tests":
        return f": {lines[-1].strip('= ')}" if lines else ""
    document = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return f": {len(document.get('models', []))} models" if document else ""


if __name__ == "__main__":
    sys.exit(main())
