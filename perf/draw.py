"""Drawing tokens from logits: two levels against running sums over the whole vocabulary, on one thread.

python -m perf.draw
"""

from __future__ import annotations

import statistics

import numpy as np
import torch

from benchmarks.base import Decoding
from engine.decode import token_sampling
from perf.report import median_ratio, side_by_side, write

# Cache rows, vocabulary, samples over all rows, type of the logits.
CASES = (
    (200, 262_144, 200, torch.float32),
    (200, 262_144, 200, torch.bfloat16),
    (16, 262_144, 3_200, torch.float32),
    (1, 262_144, 200, torch.float32),
    (64, 32_000, 64, torch.float32),
    (16, 32_000, 800, torch.float32),
)


def measure(rows: int, vocabulary: int, samples: int, dtype: torch.dtype) -> list[str]:
    """One row of the table."""
    random = np.random.default_rng(0)
    logits = (2 * torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(0))).to(dtype)
    row, uniform = np.arange(samples) % rows, random.random(samples)
    wide = token_sampling.WIDE

    def draw(level_above: int) -> token_sampling.Drawn:
        token_sampling.WIDE = level_above
        try:
            return token_sampling.draw(logits, row, uniform, Decoding())
        finally:
            token_sampling.WIDE = wide

    two, one = side_by_side([lambda: draw(wide), lambda: draw(vocabulary)])
    same = (draw(wide).token_S == draw(vocabulary).token_S).mean()
    shape = [f"{rows} x {vocabulary:,}", str(dtype).removeprefix("torch."), f"{samples:,}"]
    return [*shape, f"{1000 * statistics.median(two):.1f} ms", f"{median_ratio(one, two):.1f}x", f"{same:.2%}"]


def main() -> None:
    torch.set_num_threads(1)
    write(
        "draw",
        "Drawing in two levels",
        "python -m perf.draw",
        "Random logits (normal, sd 2), T = 1. One level: running sums of all weights in float64; same: tokens that "
        "are. Medians of 5, in turns.",
        ["logits", "type", "samples", "two levels", "against one", "same"],
        [measure(*case) for case in CASES],
    )


if __name__ == "__main__":
    main()
