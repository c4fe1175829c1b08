"""How long the rest of a run takes: from the work that is planned and the time that work of each kind has taken so far.

Amounts of planned work come in by subject (a model) and kind (training, sampling), each kind in a unit of its own; then
what is asked for, what begins, how far it is, and what ends. Seconds come out. Knows nothing of what the work is or who
does it.

Two bounds are known of work in chains, one a subject (Graham 1966): it takes at least the whole work at the machine's
full speed, and at least its longest chain, of which some kinds spread over the machine and some do not (a training); it
takes at most the whole and what does not spread of the longest chain. The machine's full speed is seen by sharing the
time that passes among all pieces under way, that of a kind that does not spread by its quickest piece. Chains that have
not begun wait for one that ends, where not all were ever under way at once. Told is the geometric mean of the two,
which is off by less than 1.5 where the speeds are right.
"""

from __future__ import annotations

import dataclasses
import heapq
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

Planned = Mapping[str, Mapping[str, float]]  # subject -> kind -> amount
Likened = Mapping[str, tuple[str, float]]  # kind -> another, and how many of its amounts take as long as one


@dataclasses.dataclass
class _Piece:
    subject: str
    kind: str
    amount: float
    begun: bool = False
    share: float = 0.0
    seconds: float = 0.0


class TimeLeft:
    """`plan`, then `ask`, `begin`, `advance` and `end` of each piece of work by its key, and `finish` of a subject.

    narrow: the kinds that do not spread over the machine."""

    def __init__(self, narrow: Collection[str] = (), clock: Callable[[], float] = time.monotonic) -> None:
        self.narrow, self.clock = narrow, clock
        self.planned: Planned = {}
        self.likened: Likened = {}
        self.finished: set[str] = set()
        self.pieces: dict[str, _Piece] = {}
        self.spent: dict[tuple[str, str], float] = defaultdict(float)  # seconds by subject and kind
        self.worked: dict[str, float] = defaultdict(float)  # amount by kind that seconds were spent on
        self.quickest: dict[str, float] = {}  # least seconds an amount of 1 of a kind
        self.most_at_once = 1
        self.done: dict[tuple[str, str], float] = defaultdict(float)  # amount by subject and kind, found ones too
        self.last = clock()

    def plan(self, planned: Planned, likened: Likened | None = None) -> None:
        """What there is to do. Kinds that are not planned are taken to cost every subject the same time. likened: by
        what the time of a kind is guessed before any of it was seen."""
        self.planned, self.likened = planned, likened or {}

    def ask(self, key: str, subject: str, kind: str, amount: float) -> None:
        """A piece of `amount`, as planned for its kind, is asked for. While it waits for its turn it takes no time."""
        self.pieces[key] = _Piece(subject, kind, amount)

    def begin(self, key: str) -> None:
        """Somebody is at the piece."""
        piece = self.pieces.get(key)
        if piece is not None and not piece.begun:
            self._share_time()
            piece.begun = True
            self.most_at_once = max(self.most_at_once, len(self._under_way()))

    def advance(self, key: str, share: float) -> None:
        """So much of the piece, in 0..1, is done."""
        piece = self.pieces.get(key)
        if piece is not None and share > piece.share:
            self._share_time()
            self._add(piece, min(share, 1.0))

    def end(self, key: str) -> None:
        """The piece is done."""
        self._share_time()
        piece = self.pieces.pop(key)
        self._add(piece, 1.0)
        if piece.amount and piece.seconds:
            each = piece.seconds / piece.amount
            self.quickest[piece.kind] = min(each, self.quickest.get(piece.kind, each))

    def found(self, subject: str, kind: str, amount: float) -> None:
        """A piece that was done before: it takes no time."""
        self.done[subject, kind] += amount

    def only(self, subject: str, rests: Mapping[str, float]) -> None:
        """What is left of the subject, whatever more of it was planned."""
        for kind, amount in self.planned.get(subject, {}).items():
            self.done[subject, kind] = amount - rests.get(kind, 0.0)

    def finish(self, subject: str) -> None:
        """Nothing of the subject is left, whatever was planned."""
        self.finished.add(subject)

    def seconds(self) -> float | None:
        """Until all that is planned is done; None before there is anything to go by, and when that is done."""
        self._share_time()
        rests = {
            (subject, kind): max(amount - self.done[subject, kind], 0.0)
            for subject, kinds in self.planned.items()
            for kind, amount in kinds.items()
            if subject not in self.finished
        }
        if not rests or any(rest and self._shared(kind) is None for (_, kind), rest in rests.items()):
            return None
        unplanned = self._unplanned()
        whole, chains, narrow = sum(unplanned.values()), dict(unplanned), dict.fromkeys(unplanned, 0.0)
        for (subject, kind), rest in rests.items():
            if rest:
                shared = self._shared(kind) or 0.0
                whole += rest * shared
                if kind in self.narrow:
                    narrow[subject] += rest * max(self._own(kind), shared)
                else:
                    chains[subject] += rest * shared
        least = max(whole, self._last_end({subject: chains[subject] + narrow[subject] for subject in chains}))
        return float((least * (whole + self._last_end(narrow) * (1 - 1 / self.most_at_once))) ** 0.5)

    def _last_end(self, chains: Mapping[str, float]) -> float:
        """When the last chain ends, those under way first, as many at once as there ever were."""
        busy = {piece.subject for piece in self._under_way()}
        ends = [0.0] * self.most_at_once
        for subject in sorted(chains, key=lambda each: each not in busy):
            heapq.heapreplace(ends, ends[0] + chains[subject])
        return max(ends)

    def _add(self, piece: _Piece, share: float) -> None:
        amount = piece.amount * (share - piece.share)
        piece.share = share
        if piece.begun:
            self.worked[piece.kind] += amount
        self.done[piece.subject, piece.kind] += amount

    def _shared(self, kind: str) -> float | None:
        """Seconds of the whole machine an amount of 1; None before there is anything to go by."""
        if not self.worked[kind]:
            other, times = self.likened.get(kind, ("", 0.0))
            each = self._shared(other) if other else None
            return None if each is None else times * each
        return sum(seconds for (_, of), seconds in self.spent.items() if of == kind) / self.worked[kind]

    def _own(self, kind: str) -> float:
        """Seconds of one chain an amount of 1: of the quickest piece that has ended, or else of those under way."""
        if kind in self.quickest:
            return self.quickest[kind]
        begun = [each for each in self.pieces.values() if each.kind == kind and each.share * each.amount > 0]
        return min((each.seconds / (each.share * each.amount) for each in begun), default=0.0)

    def _unplanned(self) -> dict[str, float]:
        """By unfinished subject, the rest of kinds that are not planned: finished subjects say how much they are."""
        planned = {kind for kinds in self.planned.values() for kind in kinds}
        took: dict[str, float] = defaultdict(float)
        for (subject, kind), seconds in self.spent.items():
            if kind not in planned:
                took[subject] += seconds
        usual = [took[subject] for subject in self.finished if subject in took]
        most = statistics.median(usual) if usual else 0.0
        return {each: max(most - took[each], 0.0) for each in self.planned if each not in self.finished}

    def _share_time(self) -> None:
        now = self.clock()
        passed, self.last = now - self.last, now
        under_way = self._under_way()
        for piece in under_way:
            piece.seconds += passed
            self.spent[piece.subject, piece.kind] += passed / len(under_way)

    def _under_way(self) -> list[_Piece]:
        return [piece for piece in self.pieces.values() if piece.begun]
