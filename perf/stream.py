"""Memory of `leakatk score` and `leakatk leak` on a large file that others made.

python -m perf.stream [--bytes 2000000000]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from perf.report import write

SAMPLES = 200


def write_generations(path: Path, size: int) -> int:
    """Prompts of 200 random responses, about 170 characters each, until the file has `size` bytes; returns how many."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(3, 9))) for _ in range(4000)]
    phrases = [" ".join(rng.choices(words, k=8)) for _ in range(20_000)]
    count = written = 0
    with path.open("w") as file:
        while written < size:
            responses = [" ".join(rng.choices(phrases, k=3)) for _ in range(SAMPLES)]
            row = {"prompt_id": f"p{count}", "prompt": "", "reference": rng.choice(phrases), "responses": responses}
            written += file.write(json.dumps(row) + "\n")
            count += 1
    return count


def peak_mib(*arguments: str) -> float:
    """Largest resident size of a `leakatk` command, in MiB."""
    process = subprocess.Popen([sys.executable, "-m", "engine", *arguments], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{arguments[0]}: exit code {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=2_000_000_000)
    size = parser.parse_args().bytes
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        generations, scores = Path(folder) / "generations.jsonl", Path(folder) / "scores.jsonl"
        for each in (size // 10, size):
            prompts = write_generations(generations, each)
            scored = peak_mib("score", str(generations), "--metric", "rouge_l_recall", "--out", str(scores))
            estimated = peak_mib("leak", str(scores), "--k", "1,8,64")
            rows.append([f"{each / 1e9:g} GB", f"{prompts:,}", f"{scored:.0f}", f"{estimated:.0f}"])
            scores.unlink()
    write(
        "stream",
        "Memory of scoring and estimating files",
        f"python -m perf.stream --bytes {size}",
        f"Generations of {SAMPLES} responses a prompt, nearly all different, scored by ROUGE-L recall; then leak@k of "
        "the scores. Largest resident size of the command, libraries included.",
        ["file", "prompts", "`leakatk score`, MiB", "`leakatk leak`, MiB"],
        rows,
    )


if __name__ == "__main__":
    main()
