"""How benchmark results are written down: a dated Markdown page with the machine, the command and a table."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
REPEATS = 5


def side_by_side(ways: Sequence[Callable[[], object]], repeats: int = REPEATS) -> list[list[float]]:
    """Seconds of each way, `repeats` of each, taken in turns so that a busy machine slows all alike."""
    seconds: list[list[float]] = [[] for _ in ways]
    for _ in range(repeats):
        for way, taken in zip(ways, seconds, strict=True):
            clock = time.perf_counter()
            way()
            taken.append(time.perf_counter() - clock)
    return seconds


def median_ratio(slow: list[float], fast: list[float]) -> float:
    """Median over the runs of slow / fast, each pair taken in the same turn."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def machine(command: str) -> str:
    """One line on when and where a command was run."""
    return (
        f"{time.strftime('%Y-%m-%d')}, {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}; `{command}`"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def write_page(name: str, paragraphs: Sequence[str]) -> None:
    """Print the page and write it to perf/results/<name>.md."""
    page = "\n\n".join(paragraphs) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(page)
    print(page)


def insert(path: Path, name: str, text: str) -> None:
    """Put text into a page, between its marks `<!-- NAME: begin -->` and `<!-- NAME: end -->`."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = path.read_text().partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{path}: no marks {begin} and {end}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.partition(end)[2]}")


def write(
    name: str, title: str, command: str, notes: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    """Print a page of one table and write it to perf/results/<name>.md."""
    write_page(name, [f"# {title}", machine(command), notes, table(header, rows)])
