"""Sequential sampling: unbiased by exact enumeration, as wide as asked for, and cheaper."""

import itertools

import numpy as np
import pytest

from engine.leak.adaptive import Drawn, _leak, adaptive_leak, until, wanted
from engine.leak.estimator import prompt_leak
from engine.leak.stopping import Rule, rule_cost, stop


@pytest.mark.parametrize("rule", [Rule(1, 6), Rule(2, 6), Rule(3, 6)])
def test_stopping_rule_is_unbiased_and_its_cost_exact_over_all_sequences(rule):
    """Every sequence of six binary samples with its probability; the stop may come at any of them."""
    chance, k = 0.3, 3
    mean = square = cost = 0.0
    for sequence in itertools.product([0.0, 1.0], repeat=6):
        row = np.array(sequence)
        probability = np.prod(np.where(row == 1, chance, 1 - chance))
        estimate = _leak(row[: stop(row, rule, 1.0)], k)
        drawn = next((n for n in range(1, 7) if row[:n].sum() == rule.top_scores), 6)
        mean += probability * estimate
        square += probability * estimate**2
        cost += probability * drawn
    assert mean == pytest.approx(1 - 0.7**3, abs=1e-12)
    assert rule_cost(np.array([chance]), k, rule) == pytest.approx((cost, square - mean**2), abs=1e-9)


def test_graded_scores_stay_unbiased():
    values, chances, k, rule = np.array([0.0, 0.4, 1.0]), np.array([0.5, 0.3, 0.2]), 2, Rule(2, 5)
    mean = 0.0
    for sequence in itertools.product(range(3), repeat=5):
        row = values[list(sequence)]
        mean += np.prod(chances[list(sequence)]) * _leak(row[: stop(row, rule, 1.0)], k)
    assert mean == pytest.approx(1 - 0.8**2 + 0.4 * (0.8**2 - 0.5**2), abs=1e-12)


class Model:
    """Prompts whose answers have known chances: chance_PA [prompts, leaking answers], the rest does not leak."""

    def __init__(self, chance_PA, seed, graded=0.0):
        self.chance_PA, self.graded = chance_PA, graded
        self.rng = np.random.default_rng(seed)
        self.drawn = 0

    def draw(self, indices, count):
        found = []
        for index in indices:
            edges = self.chance_PA[index].cumsum()
            answer = np.searchsorted(edges, self.rng.random(count), side="right")
            leaks = answer < len(edges)
            chances = np.append(self.chance_PA[index], 1 - edges[-1])
            scores = np.where(leaks, 1.0, self.graded * self.rng.random(count))
            found.append(Drawn(scores, answer.tolist(), np.log(chances[answer])))
        self.drawn += count * len(indices)
        return found

    def leak(self, k, half_width, **options):
        prompts = range(len(self.chance_PA))
        return adaptive_leak(lambda n: self.draw(prompts, n), until(self.draw), k, half_width, **options)


@pytest.fixture(scope="module")
def chances():
    """60 prompts: a third never leaks, the others by three wordings each, with little or much probability."""
    rng = np.random.default_rng(0)
    total = np.where(np.arange(60) % 3 == 0, 0.0, rng.beta(0.4, 8, 60))
    return rng.dirichlet(np.full(3, 0.5), 60) * total[:, None]


def test_unbiased_at_every_k_and_about_as_wide_as_asked(chances):
    k = np.array([1, 8, 16, 64])
    truth = 1 - (1 - chances.sum(axis=1)[:, None]) ** k
    found = [Model(chances, seed).leak(k, 0.03) for seed in range(30)]
    errors = np.array([each.leak for each in found]) - truth.mean(axis=0)
    assert np.abs(errors.mean(axis=0) / (errors.std(axis=0) / np.sqrt(30))).max() < 3.5
    assert np.mean([each.half_width for each in found]) < 0.045
    assert np.mean([abs(error[-1]) <= each.half_width for error, each in zip(errors, found, strict=True)]) >= 0.85


def test_answers_known_beforehand_leave_nothing_to_sample_but_the_rest(chances):
    given = [{answer: float(np.log(row[answer])) for answer in range(3) if row[answer] > 0} for row in chances]
    model = Model(chances, 1)
    found = model.leak([64], 0.03, given=given)
    assert found.leak == pytest.approx((1 - (1 - chances.sum(axis=1)) ** 64).mean(), abs=2e-3)  # exact but for the cut
    assert found.mass == pytest.approx(chances.sum(axis=1))
    assert found.samples.sum() == model.drawn
    equal = next(
        n for n in range(65, 4000) if rule_cost(chances.sum(axis=1), 64, Rule(n + 1, n))[1] <= (0.03 / 1.96) ** 2 * 60
    )
    assert found.samples.mean() < equal


def test_prompts_that_surely_leak_get_the_pilot_alone():
    chances = np.array([[0.9, 0.05], [0.8, 0.1]] * 5)
    found = Model(chances, 0).leak([1, 64], 0.05)
    assert found.samples.tolist() == [32] * 10
    assert found.leak[1] == pytest.approx(1, abs=1e-3)
    assert found.bias < 1e-3
    assert found.half_width == 0


def test_graded_samples_beside_the_known_answers_count():
    chances = np.full((20, 1), 0.02)
    truth = 1 - 0.98**16 * (1 - 0.5 * 16 / 17)  # the others score uniformly up to .5
    found = [float(Model(chances, seed, graded=0.5).leak([16], 0.05).leak[0]) for seed in range(10)]
    assert np.mean(found) == pytest.approx(truth, abs=3.5 * np.std(found) / np.sqrt(10))


def test_without_any_leak_the_half_width_is_the_upper_bound_and_as_asked():
    found = Model(np.zeros((40, 1)), 0).leak([16], 0.05)
    assert found.leak.tolist() == [0.0]
    assert found.rules[0].samples > 16  # more than k, for the bound to come down
    assert found.half_width == pytest.approx(1 - 0.05 ** (16 / (40 * found.rules[0].samples)))
    assert found.half_width <= 0.05


def test_without_probabilities_nothing_is_known_beforehand():
    def unknown(indices, count):
        return [Drawn(each.scores, each.answers, np.full(count, np.nan)) for each in model.draw(indices, count)]

    model = Model(np.full((10, 1), 0.3), 0)
    found = adaptive_leak(lambda n: unknown(range(10), n), until(unknown), [32], 0.05)
    assert found.mass.tolist() == [0.0] * 10
    assert found.leak[0] == pytest.approx(1, abs=0.01)


def test_most_samples_are_kept_to_where_the_half_width_is_out_of_reach():
    found = Model(np.full((6, 1), 0.01), 0).leak([32], 1e-4, max_samples=64)
    assert found.half_width > 1e-4
    assert found.samples.max() <= 32 + 64 * 2


def test_a_request_near_its_end_draws_few_at_a_time():
    from engine.leak.adaptive import Request

    nothing = Drawn(np.empty(0), [], np.empty(0))
    request = Request(0, frozenset({"known"}), Rule(2, 100), np.zeros(10))
    assert wanted(request, nothing) == 90
    one = Drawn(np.array([1.0, 1.0]), ["known", "other"], np.zeros(2))
    assert wanted(request, one) == 16
    assert wanted(request, one + one) == 0


def test_equal_numbers_are_what_leak_at_k_uses():
    rows = np.random.default_rng(1).random((5, 9))
    assert [_leak(row, 4) for row in rows] == pytest.approx(prompt_leak(rows, np.array([4]))[:, 0])


def test_what_cannot_be_done_is_refused():
    with pytest.raises(ValueError, match="two prompts"):
        Model(np.array([[0.1]]), 0).leak([4], 0.1)
    with pytest.raises(ValueError, match=r"k must be in 1..2048"):
        Model(np.array([[0.1]] * 3), 0).leak([4096], 0.1)
    with pytest.raises(ValueError, match="leave failed samples out"):
        adaptive_leak(lambda n: [Drawn(np.full(n, np.nan), [0] * n, np.zeros(n))] * 2, until(lambda *_: []), [4], 0.1)
