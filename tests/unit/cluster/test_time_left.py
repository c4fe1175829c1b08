"""The time left of a run, against runs that are played through on a clock of their own."""

import random

import pytest

from engine.cluster.time_left import TimeLeft


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def played(pieces, cores, planned, step=0.5, asked_at_once=False, likened=None):
    """Estimates at each moment, and when all was done.

    pieces: (subject, kind, amount, seconds on one core, units), each after the one before it of its subject, its units
    on cores of their own. The first that can go on takes a core; pieces are asked for just before, or all at once."""
    clock = Clock()
    left = TimeLeft({"train"}, clock)
    left.plan(planned, likened)
    asked, begun, ended = set(), set(), set()
    open_units = {number: piece[4] for number, piece in enumerate(pieces)}  # that have not begun
    running, seen = [], []  # [piece, seconds left]

    def ask(number):
        if number not in asked:
            asked.add(number)
            left.ask(str(number), *pieces[number][:3])

    for number in range(len(pieces)) if asked_at_once else ():
        ask(number)
    while len(ended) < len(pieces):
        blocked = set()
        for number, (subject, _, _, seconds, units) in enumerate(pieces):
            if number in ended or subject in blocked:
                continue
            blocked.add(subject)
            while open_units[number] and len(running) < cores:
                ask(number)
                open_units[number] -= 1
                running.append([number, seconds / units])
                if number not in begun:
                    begun.add(number)
                    left.begin(str(number))
        clock.now += step
        for unit in running:
            unit[1] -= step
        running = [unit for unit in running if unit[1] > 0]
        for number in begun - ended:
            _, _, _, seconds, units = pieces[number]
            under_way = [unit[1] for unit in running if unit[0] == number]
            if not open_units[number] and not under_way:
                ended.add(number)
                left.end(str(number))
            elif units == 1:
                left.advance(str(number), 1 - under_way[0] / seconds)
            else:
                left.advance(str(number), 1 - (open_units[number] + len(under_way)) / units)
        for subject in planned:
            if all(number in ended for number, piece in enumerate(pieces) if piece[0] == subject):
                left.finish(subject)
        seen.append((clock.now, left.seconds()))
    return seen, clock.now


def run_of(models, rng):
    """Trainings, samplings and a kind that is not planned, of models that differ in size by up to three times."""
    pieces, planned = [], {}
    for model in models:
        steps, tokens = rng.randint(100, 300), rng.randint(1000, 1500)
        planned[model] = {"train": float(steps), "sample": float(tokens)}
        pieces += [(model, "train", steps, steps / 20, 1), (model, "sample", tokens, tokens / 100, 8)]
        pieces.append((model, "likelihoods", 0.0, rng.uniform(2, 4), 1))
    return pieces, planned


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("asked_at_once", [False, True])
def test_after_a_third_it_is_never_off_by_more_than_twice(cores, seed, asked_at_once):
    rng = random.Random(seed)
    run = _with_cores(run_of([f"m{number}" for number in range(10)], rng), cores)
    seen, end = played(*run, asked_at_once=asked_at_once)
    for now, seconds in seen:
        rest = end - now
        if now > end / 3 and rest > 8:
            assert seconds is not None
            assert rest / 2 <= seconds <= rest * 2, (now, rest, seconds)


@pytest.mark.parametrize("cores", [1, 2, 8])
@pytest.mark.parametrize("guess", [0.15, 0.2, 0.3])
def test_work_that_was_not_seen_yet_is_guessed_by_its_like(cores, guess):
    """A token takes a fifth of a step, and nothing is sampled in the first third."""
    models = [f"m{number}" for number in range(10)]
    planned = {model: {"train": 200.0, "sample": 600.0} for model in models}
    pieces = [(model, "train", 200.0, 10.0, 1) for model in models]
    pieces += [(model, "sample", 600.0, 6.0, 8) for model in models]
    seen, end = played(pieces, cores, planned, likened={"sample": ("train", guess)})
    assert all(seconds is not None for now, seconds in seen if now < end - 1)
    for now, seconds in seen:
        if now > end / 3 and end - now > 8:
            assert (end - now) / 2 <= seconds <= (end - now) * 2, (now, end - now, seconds)
    unseen, _ = played(pieces, cores, planned)
    assert unseen[0][1] is None


def _with_cores(run, cores):
    pieces, planned = run
    return pieces, cores, planned


def test_nothing_is_told_before_work_of_each_kind_has_begun():
    clock = Clock()
    left = TimeLeft({"train"}, clock)
    assert left.seconds() is None
    left.plan({"a": {"train": 10.0, "sample": 10.0}})
    left.ask("1", "a", "train", 10.0)
    left.begin("1")
    clock.now = 5.0
    left.advance("1", 0.5)
    assert left.seconds() is None  # nothing is known of sampling
    left.end("1")
    left.ask("2", "a", "sample", 10.0)
    left.begin("2")
    clock.now = 7.0
    left.advance("2", 0.5)
    assert left.seconds() == pytest.approx(2.0)


def test_what_was_found_finished_takes_no_time():
    clock = Clock()
    left = TimeLeft({"train"}, clock)
    left.plan({"a": {"sample": 10.0}, "b": {"sample": 10.0}, "c": {"sample": 10.0}})
    left.found("a", "sample", 10.0)
    left.finish("a")
    left.ask("1", "b", "sample", 10.0)
    left.begin("1")
    clock.now = 4.0
    left.end("1")
    assert left.seconds() == pytest.approx(4.0)


def test_a_training_that_ended_early_leaves_nothing_of_its_plan():
    clock = Clock()
    left = TimeLeft({"train"}, clock)
    left.plan({"a": {"train": 100.0, "sample": 20.0}})
    left.ask("1", "a", "train", 10.0)
    left.begin("1")
    clock.now = 10.0
    left.end("1")
    left.only("a", {"sample": 10.0})
    left.ask("2", "a", "sample", 10.0)
    left.begin("2")
    clock.now = 12.0
    left.advance("2", 0.5)
    assert left.seconds() == pytest.approx(2.0)
