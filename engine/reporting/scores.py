"""Scores files, JSON lines: {"prompt_id": str, "scores": [float or null, ...]}, one row a prompt.

In: a path; out: prompt ids, scores and the lines that could not be read. Read line by line; numpy only.
Knows nothing of what is done with the scores.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.leak.estimator import Floats


@dataclasses.dataclass(frozen=True)
class Scores:
    """rows: float64 [samples] of each prompt, NaN = failed. malformed: (line number, reason) of every line left out."""

    prompt_ids: list[str]
    rows: list[Floats]
    malformed: list[tuple[int, str]]


def read_scores(path: Path) -> Scores:
    """All prompts of a scores file, in its order. Lines that are not a row of the format are left out and listed.

    Raises UserError for a missing file, no readable line, a prompt id that stands twice, a score outside [0, 1].
    """
    lines: dict[str, int] = {}
    rows, malformed = [], []
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    prompt_id, row = _parse(line)
                except ValueError as reason:
                    malformed.append((number, str(reason)))
                    continue
                if prompt_id in lines:
                    raise UserError(
                        f"{path}:{number}: prompt_id {prompt_id!r} stands on line {lines[prompt_id]} too; "
                        "give each row its own id"
                    )
                outside = row[(row < 0) | (row > 1)]
                if outside.size:
                    raise UserError(f"{path}:{number}: scores must lie in [0, 1], found {outside[0]:g}; rescale them")
                lines[prompt_id] = number
                rows.append(row)
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror or error}; give a scores file as `leakatk score` writes it"
        ) from error
    if not rows:
        found = f"line {malformed[0][0]}: {malformed[0][1]}" if malformed else "the file is empty"
        raise UserError(f'{path}: no row of the form {{"prompt_id": ..., "scores": [...]}}; {found}')
    return Scores(list(lines), rows, malformed)


def _parse(line: str) -> tuple[str, Floats]:
    try:
        row: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    missing = [key for key in ("prompt_id", "scores") if key not in row]
    if missing:
        raise ValueError(f"no {' and no '.join(missing)}; found {', '.join(row) or 'nothing'}")
    prompt_id, scores = row["prompt_id"], row["scores"]
    if not isinstance(prompt_id, str | int):
        raise ValueError(f"prompt_id must be a string, found {type(prompt_id).__name__}")
    if not isinstance(scores, list) or not scores:
        raise ValueError("scores must be a list of at least one number or null")
    wrong = [score for score in scores if not (score is None or isinstance(score, int | float))]
    if wrong:
        raise ValueError(f"scores must be numbers or null, found {wrong[0]!r}")
    return str(prompt_id), np.array(scores, dtype=np.float64)


def pair(model: Scores, retain: Scores) -> list[Floats]:
    """The retain model's rows in the order of the model's prompts. UserError where the prompts are not the same."""
    rows = dict(zip(retain.prompt_ids, retain.rows, strict=True))
    missing = [prompt_id for prompt_id in model.prompt_ids if prompt_id not in rows]
    extra = set(rows) - set(model.prompt_ids)
    if missing or extra:
        first = missing[0] if missing else min(extra)
        raise UserError(
            f"model and retain scores are of different prompts: {len(missing)} only in the model's, "
            f"{len(extra)} only in the retain's (first: {first!r}); score both on the same prompts"
        )
    return [rows[prompt_id] for prompt_id in model.prompt_ids]
