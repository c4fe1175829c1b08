"""Progress of stages that run in Ray workers, shown by the driver on stderr.

A small Ray actor holds what the workers report; a thread of the driver draws it: a line a model on a terminal, one line
every few seconds elsewhere. Knows nothing of what the stages do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from engine.cluster import ray_cluster
from engine.cluster.reporter import Board, Reporter, Row
from engine.cluster.time_left import Likened, Planned, TimeLeft

if TYPE_CHECKING:
    from ray.actor import ActorHandle
    from rich.table import Table

DRAW_SECONDS = 0.5
PLAIN_SECONDS = 15.0
TRAINING = "train"  # the kind of the stages that save and stop when asked
MOST_SHOWN = 6  # subjects in a plain line


@dataclasses.dataclass
class Running:
    """A stage that was asked for: of which subject (a model, mostly), what kind of work, how far it is, a note, and
    whether a worker is at it or it waits."""

    subject: str
    kind: str
    total: float
    done: float = 0.0
    note: str = ""
    begun: bool = False

    def __str__(self) -> str:
        return f"{self.kind} {self.done:.0f}/{self.total:.0f}"


class Progress:
    """The driver's side. `with progress.task(kind, label, total) as reporter:` shows one stage while it runs.

    on_row: called with (label, step, row) for every row that a worker reports. board: of another process, whose
    `stop_trainings` stops the trainings that are shown here.
    """

    def __init__(
        self,
        quiet: bool = False,
        on_row: Callable[[str, int, Row], None] | None = None,
        board: ActorHandle[Board] | None = None,
    ) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=sys.stderr, quiet=quiet, soft_wrap=True)
        self.board: Any = board  # handle of the actor, which Ray types as a function's result
        self.of_another = board is not None
        self.suffix = f" {uuid.uuid4().hex}" if self.of_another else ""  # tells labels on one board apart
        self.on_terminal = self.console.is_terminal and not quiet
        self.lock = threading.Lock()
        self.subjects: dict[str, str] = {}  # every subject in order -> what became of it, once it is finished
        self.running: dict[str, Running] = {}
        self.time_left = TimeLeft(narrow={TRAINING})
        self.stopped = threading.Event()
        self.on_row = on_row
        self.started = time.monotonic()
        self.view = Live(console=self.console, transient=True, auto_refresh=False, get_renderable=self._table)

    def __enter__(self) -> Progress:
        if self.on_terminal:
            self.view.start()
        self.drawing = threading.Thread(target=self._draw, daemon=True)
        self.drawing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.drawing.join()
        self._take_rows()
        if self.on_terminal:
            self.view.stop()
        if self.board is not None and not self.of_another:
            import ray

            with contextlib.suppress(Exception):  # the cluster may be gone
                ray.kill(self.board)  # Ray would keep its process for as long as the driver lives

    def shared_board(self) -> ActorHandle[Board]:
        """Where workers report, for the Progress of other processes."""
        import ray

        with self.lock:
            if self.board is None:
                self.board = ray.remote(Board).options(num_cpus=0, scheduling_strategy=ray_cluster.here()).remote()
            board: ActorHandle[Board] = self.board
            return board

    def stop_trainings(self, patience: float) -> None:
        """Ask every training under way to save and stop, those of processes that share the board too, and wait until
        they have, at most `patience` seconds: one that has made no step, which may be waiting for a CPU, has nothing to
        save."""
        if self.board is None:
            return
        import ray

        deadline = time.monotonic() + patience
        try:
            ray.get(self.board.stop.remote(), timeout=patience)
            while time.monotonic() < deadline:
                with contextlib.suppress(ray.exceptions.GetTimeoutError):  # a machine that is busy saving
                    state: dict[str, tuple[float, str]] = ray.get(self.board.read.remote(), timeout=10)
                    if not any(label.startswith(f"{TRAINING} ") and done for label, (done, _) in state.items()):
                        break
                time.sleep(0.1)
        except Exception:  # the cluster is gone: the last checkpoints stand
            return

    def plan(self, planned: Planned, likened: Likened | None = None) -> None:
        """The work that is to come, by subject, in the order in which they are shown. likened: as TimeLeft's."""
        with self.lock:
            self.subjects |= dict.fromkeys(planned, "")
            self.time_left.plan(planned, likened)

    def only(self, subject: str, rests: Mapping[str, float]) -> None:
        """What is left to do of a subject, by kind, whatever more of it was planned."""
        with self.lock:
            self.time_left.only(subject, rests)

    def finish(self, subject: str, outcome: str = "done") -> None:
        """Nothing is left to do of a subject."""
        with self.lock:
            self.subjects[subject] = outcome
            self.time_left.finish(subject)

    @contextlib.contextmanager
    def task(self, kind: str, label: str, total: float, amount: float = 0.0) -> Iterator[Reporter]:
        """Show work of `total` units while the block runs. label: begins with the subject, one word. amount: as
        planned for the kind."""
        board, subject = self.shared_board(), _subject(label)
        with self.lock:
            key = f"{kind} {label}{self.suffix}"
            while key in self.running:  # two may wait for the same stage
                key += "+"
            self.subjects.setdefault(subject, "")
            self.running[key] = Running(subject, kind, total)
            self.time_left.ask(key, subject, kind, amount)
        try:
            yield Reporter(board, key)
        finally:
            self.board.end.remote(key)
            with self.lock:
                del self.running[key]
                self.time_left.end(key)
                if subject not in self.time_left.planned and not any(
                    each.subject == subject for each in self.running.values()
                ):
                    self.subjects.pop(subject, None)

    def found(self, kind: str, label: str, amount: float) -> None:
        """Work that was done before."""
        with self.lock:
            self.time_left.found(_subject(label), kind, amount)

    def say(self, text: str) -> None:
        """One line on stderr with the seconds since the start."""
        from rich.markup import escape  # a path may hold [brackets]

        self.console.print(f"[dim]{time.monotonic() - self.started:6.1f} s[/dim]  {escape(text)}", highlight=False)

    def _take_rows(self) -> None:
        if self.board is None or self.of_another:
            return
        import ray

        with contextlib.suppress(Exception):  # as in _look
            rows: list[tuple[str, int, Row]] = ray.get(self.board.take.remote(), timeout=10)
            if self.on_row is not None:  # else the board has forgotten them
                for label, step, row in rows:
                    self.on_row(label, step, row)

    def _draw(self) -> None:
        last_plain = time.monotonic()
        while not self.stopped.wait(DRAW_SECONDS):
            if self.board is None:
                continue
            self._take_rows()
            self._look()
            if self.on_terminal:
                self.view.refresh()
            elif time.monotonic() - last_plain > PLAIN_SECONDS:
                last_plain = time.monotonic()
                self.say(self._line())

    def _look(self) -> None:
        """Take over what the workers have reported."""
        import ray

        try:
            state: dict[str, tuple[float, str]] = ray.get(self.board.read.remote(), timeout=10)
        except Exception:  # progress must never end the work: the cluster may be going down
            return
        with self.lock:
            for key, running in self.running.items():
                if key not in state:
                    continue
                running.begun = True
                running.done, running.note = state[key]
                self.time_left.begin(key)
                if running.total:
                    self.time_left.advance(key, running.done / running.total)

    def _states(self) -> list[tuple[str, list[Running], str]]:
        """By subject: what workers are at, and what became of it, else that it waits."""
        with self.lock:
            under_way: dict[str, list[Running]] = {}
            for each in self.running.values():
                if each.begun:
                    under_way.setdefault(each.subject, []).append(each)
            return [(name, under_way.get(name, []), said or "waits") for name, said in self.subjects.items()]

    def _left(self) -> str:
        with self.lock:
            seconds = self.time_left.seconds()
        return "" if seconds is None else f"about {clock_time(seconds)} left"

    def _line(self) -> str:
        """All in one line: "target train 20/60; npo sample 4/15; 2 done, 3 wait; about 1:30 left"."""
        states = self._states()
        busy = [f"{name} {running[0]}" for name, running, _ in states if running]
        counts = [
            f"{count} {said}"
            for said, count in (
                ("done", sum(said == "done" for _, _, said in states)),
                ("failed", sum(said == "failed" for _, _, said in states)),
                ("wait", sum(not running and said == "waits" for _, running, said in states)),
            )
            if count
        ]
        more = [f"{len(busy) - MOST_SHOWN} more at work"] if len(busy) > MOST_SHOWN else []
        return "; ".join(part for part in (*busy[:MOST_SHOWN], *more, ", ".join(counts), self._left()) if part)

    def _table(self) -> Table:
        """A line a subject with its bar, and the time that all of it takes below."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        for name, running, said in self._states():
            if not running:
                table.add_row(name, Text(said, style="dim"))
                continue
            first, more = running[0], f" and {len(running) - 1} more" if len(running) > 1 else ""
            bar = ProgressBar(total=first.total or 1, completed=first.done, width=24)
            table.add_row(name, f"{first}{more}", bar, Text(first.note, style="dim"))
        table.add_row("", Text(f"{clock_time(time.monotonic() - self.started)} so far", style="dim"), self._left())
        return table


def clock_time(seconds: float) -> str:
    """1:30, or 2:00:00."""
    hours, minutes = divmod(round(seconds) // 60, 60)
    ending = f"{round(seconds) % 60:02d}"
    return f"{hours}:{minutes:02d}:{ending}" if hours else f"{minutes}:{ending}"


def _subject(label: str) -> str:
    return label.partition(" ")[0]
