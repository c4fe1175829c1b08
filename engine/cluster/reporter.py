"""What workers tell the driver while they work: how far they are, a note, rows of numbers.

Knows nothing of how it is shown, or of what the work is.
"""

from __future__ import annotations

import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ray.actor import ActorHandle

REPORT_SECONDS = 0.25  # between two reports that are not forced
ANSWER_SECONDS = 0.05  # in which a report is answered, mostly in a few thousandths
Row = dict[str, float]


class Report(Protocol):
    """Handed to workers: `report(done, note)` tells the driver, at most a few times a second unless it is forced; a
    `row` of numbers is always told."""

    def __call__(self, done: float, note: str = "", force: bool = False, row: Row | None = None) -> None: ...

    def begin(self) -> None:
        """A worker has begun: until then the work waits for its turn on the cluster."""
        ...

    def stopping(self) -> bool:
        """Whether trainings are to save and stop; hardly waits."""
        ...

    def of(self, part: str) -> Report:
        """A report for one part of the same work; the parts' numbers are added up."""
        ...


class Board:
    """What the workers have reported, held by a small actor: per label, per part, units of work done, and a note."""

    def __init__(self) -> None:
        self.begun: set[str] = set()
        self.done: dict[str, dict[str, float]] = {}
        self.notes: dict[str, str] = {}
        self.rows: list[tuple[str, int, Row]] = []
        self.stopping = False

    def put(self, label: str, part: str, done: float, note: str) -> bool:
        """Note what was done; answers whether trainings are to stop."""
        self.done.setdefault(label, {})[part] = done
        if note:
            self.notes[label] = note
        return self.stopping

    def begin(self, label: str) -> None:
        """Note that a worker is at it."""
        self.begun.add(label)

    def end(self, label: str) -> None:
        """Forget what is no longer under way."""
        self.begun.discard(label)
        self.done.pop(label, None)
        self.notes.pop(label, None)

    def stop(self) -> None:
        """From now on every report is answered that trainings are to stop."""
        self.stopping = True

    def keep(self, label: str, step: int, row: Row) -> None:
        """Note a row of numbers for the next `take`."""
        self.rows.append((label, step, row))

    def take(self) -> list[tuple[str, int, Row]]:
        """What was kept since the last call."""
        rows, self.rows = self.rows, []
        return rows

    def read(self) -> dict[str, tuple[float, str]]:
        """By label of what is under way: units of work done, and the latest note."""
        return {label: (sum(self.done.get(label, {}).values()), self.notes.get(label, "")) for label in self.begun}


class Reporter:
    """A Report to the driver's Board.

    Answers are heard through futures: a task that waits by ray.get or ray.wait, however shortly, hands its CPU back
    meanwhile, which Ray gives to the next task at once, so that more work than fits would run side by side.
    """

    def __init__(self, board: ActorHandle[Board], label: str, part: str = "") -> None:
        self.board, self.label, self.part = board, label, part
        self.last = 0.0
        self.answer: Future[bool] | None = None
        self.told = False

    def __reduce__(self) -> tuple[type[Reporter], tuple[ActorHandle[Board], str, str]]:
        return Reporter, (self.board, self.label, self.part)  # where it is sent to, no answer is awaited yet

    def __call__(self, done: float, note: str = "", force: bool = False, row: Row | None = None) -> None:
        if row is not None:
            self.board.keep.remote(self.label, int(done), row)
        if force or time.monotonic() - self.last > REPORT_SECONDS:
            self._hear(0.0)  # of the report before, whose answer would be lost
            self.last = time.monotonic()
            self.answer = self.board.put.remote(self.label, self.part, done, note).future()

    def begin(self) -> None:
        self.board.begin.remote(self.label)

    def stopping(self) -> bool:
        """Whether a report was answered so. The last one, often just made, is given ANSWER_SECONDS."""
        self._hear(ANSWER_SECONDS)
        return self.told

    def _hear(self, patience: float) -> None:
        if self.answer is None:
            return
        try:
            self.told |= self.answer.result(patience)
        except TimeoutError:  # it may come during the next step
            return
        except Exception:  # the driver's node is gone, and the board with it: a worker elsewhere goes on unseen
            pass
        self.answer = None

    def of(self, part: str) -> Reporter:
        return Reporter(self.board, self.label, part)


class Silent:
    """A Report that tells nobody."""

    def __call__(self, done: float, note: str = "", force: bool = False, row: Row | None = None) -> None:
        pass

    def begin(self) -> None:
        pass

    def stopping(self) -> bool:
        return False

    def of(self, part: str) -> Silent:
        return self
