"""Numbers as people and JSON read them: an estimate with its interval as text, null for what has no finite value."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePath

Estimate = tuple[float, float, float]  # estimate, low, high


def number_text(value: float | None, missing: str = "-") -> str:
    """A number with three decimals, "0.120"; `missing` where it was not measured."""
    return missing if value is None else f"{value:.3f}".replace("-0.000", "0.000")


def interval_text(estimate: Estimate | None, missing: str = "-") -> str:
    """An estimate with its interval, "0.120 [0.080, 0.170]"; `missing` where there is none."""
    if estimate is None:
        return missing
    middle, low, high = estimate
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]".replace("-0.000", "0.000")


def without_folders(options: Mapping[str, object]) -> dict[str, object]:
    """Options without the folders of this machine that they name, which may tell names of users and projects."""
    return {
        key: PurePath(value).name if isinstance(value, str) and value.startswith(("/", "~", ".")) else value
        for key, value in options.items()
    }


def finite(value: object) -> object:
    """`value` with None for every number in it that is not finite: NaN stands for "not known", in JSON null does."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
