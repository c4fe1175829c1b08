"""The time left of a run, against runs that are played through on a clock of their own."""

import random

import pytest

from engine.cluster.time_left import TimeLeft


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def played(pieces, cores, planned, step=0.5, asked_at_once=False):
    """Estimates at each moment, and when all was done. pieces: (subject, kind, amount, seconds alone), begun in order,
    at most as many at once as there are cores and each in time after the one before it of its subject; asked for just
    before that, or all at once."""
    clock = Clock()
    left = TimeLeft(clock)
    left.plan(planned)
    waiting, running, seen = list(enumerate(pieces)), {}, []
    if asked_at_once:
        for number, piece in waiting:
            left.ask(str(number), *piece[:3])
    while waiting or running:
        busy = {pieces[number][0] for number in running}
        for number, piece in list(waiting):
            if len(running) < cores and piece[0] not in busy:
                busy.add(piece[0])
                waiting.remove((number, piece))
                running[number] = 0.0
                if not asked_at_once:
                    left.ask(str(number), *piece[:3])
                left.begin(str(number))
        clock.now += step
        for number in list(running):
            running[number] += step
            seconds = pieces[number][3]
            if running[number] >= seconds:
                left.end(str(number))
                del running[number]
            else:
                left.advance(str(number), running[number] / seconds)
        for subject in planned:
            if not any(piece[0] == subject for _, piece in waiting) and not any(
                pieces[number][0] == subject for number in running
            ):
                left.finish(subject)
        seen.append((clock.now, left.seconds()))
    return seen, clock.now


def run_of(models, rng):
    """Trainings, samplings and a kind that is not planned, of models that differ in size by up to three times."""
    pieces, planned = [], {}
    for model in models:
        steps, tokens = rng.randint(100, 300), rng.randint(1000, 1500)
        planned[model] = {"train": float(steps), "sample": float(tokens)}
        pieces += [(model, "train", steps, steps / 20), (model, "sample", tokens, tokens / 100)]
        pieces.append((model, "likelihoods", 0.0, rng.uniform(2, 4)))
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


def _with_cores(run, cores):
    pieces, planned = run
    return pieces, cores, planned


def test_nothing_is_told_before_work_of_each_kind_has_begun():
    clock = Clock()
    left = TimeLeft(clock)
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
    left = TimeLeft(clock)
    left.plan({"a": {"sample": 10.0}, "b": {"sample": 10.0}, "c": {"sample": 10.0}})
    left.found("a", "sample", 10.0)
    left.finish("a")
    left.ask("1", "b", "sample", 10.0)
    left.begin("1")
    clock.now = 4.0
    left.end("1")
    assert left.seconds() == pytest.approx(4.0)
