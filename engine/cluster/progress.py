"""Progress of stages that run in Ray workers, shown by the driver on stderr.

A small Ray actor holds what the workers report; a thread of the driver draws it: bars on a terminal, plain lines
elsewhere. Knows nothing of what the stages do.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from engine.cluster import ray_cluster
from engine.cluster.reporter import Board, Reporter, Row

if TYPE_CHECKING:
    from rich.progress import TaskID

DRAW_SECONDS = 0.5
PLAIN_SECONDS = 15.0
TRAINING = "train "  # how the labels of trainings begin


class Progress:
    """The driver's side. `with progress.task(label, total) as reporter:` shows one stage from start to end.

    on_row: called with (label, step, row) for every row that a worker reports.
    """

    def __init__(self, quiet: bool = False, on_row: Callable[[str, int, Row], None] | None = None) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        self.console = Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self.board: Any = None  # handle of the actor, which Ray types as a function's result
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[note]}"),
        )
        self.bars = Bars(*columns, console=self.console, transient=True)
        self.live = self.console.is_terminal and not quiet
        self.running: dict[str, TaskID] = {}
        self.lock = threading.Lock()
        self.stopped = threading.Event()
        self.on_row = on_row
        self.started = time.monotonic()

    def __enter__(self) -> Progress:
        if self.live:
            self.bars.start()
        self.drawing = threading.Thread(target=self._draw, daemon=True)
        self.drawing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.drawing.join()
        self._take_rows()
        if self.live:
            self.bars.stop()

    def stop_trainings(self, patience: float) -> None:
        """Ask every training under way to save and stop, and wait until they have, at most `patience` seconds."""
        import ray

        if self.board is None:
            return
        deadline = time.monotonic() + patience
        ray.get(self.board.stop.remote(), timeout=patience)
        while time.monotonic() < deadline and any(label.startswith(TRAINING) for label in list(self.running)):
            time.sleep(0.1)

    @contextlib.contextmanager
    def task(self, label: str, total: float) -> Iterator[Reporter]:
        """Show work named `label` of `total` units while the block runs, and one line when it ends."""
        import ray

        clock = time.monotonic()
        with self.lock:
            if self.board is None:
                self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=ray_cluster.ANYWHERE).remote()
            self.running[label] = self.bars.add_task(label, total=total, note="")
        try:
            yield Reporter(self.board, label)
        finally:
            with self.lock:
                self.bars.remove_task(self.running.pop(label))
        self.say(f"{label}: done in {time.monotonic() - clock:.1f} s")

    def say(self, text: str) -> None:
        """One line on stderr with the seconds since the start."""
        from rich.markup import escape  # a path may hold [brackets]

        self.console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/dim]  {escape(text)}", highlight=False)

    def _take_rows(self) -> None:
        import ray

        if self.on_row is None or self.board is None:
            return
        with contextlib.suppress(Exception):  # as in _draw
            rows: list[tuple[str, int, Row]] = ray.get(self.board.take.remote(), timeout=10)
            for label, step, row in rows:
                self.on_row(label, step, row)

    def _draw(self) -> None:
        import ray

        last_plain = time.monotonic()
        while not self.stopped.wait(DRAW_SECONDS):
            if self.board is None:
                continue
            self._take_rows()
            try:
                state: dict[str, tuple[float, str]] = ray.get(self.board.read.remote(), timeout=10)
            except Exception:  # progress must never end the work: the cluster may be going down
                continue
            with self.lock:
                shown = [(label, task, *state.get(label, (0.0, ""))) for label, task in self.running.items()]
                for _, task, done, note in shown:
                    self.bars.update(task, completed=done, note=note)
                tasks = {task.id: task for task in self.bars.tasks}
            if not self.live and time.monotonic() - last_plain > PLAIN_SECONDS:
                last_plain = time.monotonic()
                for label, task, done, note in shown:
                    if task in tasks:  # it may have ended since
                        total, elapsed = tasks[task].total or 0, tasks[task].elapsed or 0
                        self.say(f"{label}: {done:.0f} of {total:.0f}{_left(done, total, elapsed)} {note}")


def _left(done: float, total: float, elapsed: float) -> str:
    """How long the rest will take at the speed so far: ", about 1:30 left"; nothing before any is done."""
    if not 0 < done < total:
        return ""
    seconds = round(elapsed * (total - done) / done)
    hours, minutes = divmod(seconds // 60, 60)
    return (
        f", about {hours}:{minutes:02d}:{seconds % 60:02d} left"
        if hours
        else f", about {minutes}:{seconds % 60:02d} left"
    )
