"""What foretells an attack is told by ranks: scipy's rho, and numbers that order nothing; strangers are strangers."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from benchmarks.fictional import Fictional
from perf.foretell import Model, experiment, order, spearman, strangers


def models(before, after, seeds=3):
    return [
        Model(seed, f"m{index}", {"number": one + seed}, {"attack": other})
        for seed in range(seeds)
        for index, (one, other) in enumerate(zip(before, after, strict=True))
    ]


def test_rho_is_scipys_with_ties():
    rng = np.random.default_rng(0)
    one, other = rng.integers(0, 5, 40), rng.integers(0, 5, 40)
    assert spearman(one, other) == pytest.approx(spearmanr(one, other).statistic)


def test_a_number_that_is_the_same_for_all_orders_nothing():
    found = order(models([0.0] * 6, range(6)), "number", "attack", draws=50)
    assert (found.rho, found.low, found.high) == (0.0, 0.0, 0.0)


def test_the_same_order_in_every_seed_is_one_and_the_interval_holds_rho():
    assert order(models(range(8), [each**3 for each in range(8)]), "number", "attack", draws=50).rho == 1.0
    rng = np.random.default_rng(1)
    found = order(models(rng.random(20), rng.random(20)), "number", "attack", draws=400)
    assert found.low < found.rho < found.high
    assert found.high - found.low > 0.3  # 20 models say little of no relation at all


def test_a_model_that_a_seed_lacks_is_left_out_there_alone():
    some = models([1, 2, 3, 4], [1, 2, 3, 4])
    wrong = Model(9, "m0", {"number": 9.0}, {"attack": 0.0})
    right = [Model(9, f"m{each}", {"number": each}, {"attack": each}) for each in (1, 2)]
    assert order([*some, wrong, *right], "number", "attack", draws=10).rho == pytest.approx((3 - 0.5) / 4)


def test_strangers_are_authors_whom_no_model_has_seen():
    own = Fictional.load(split="forget10", seed=0)
    questions = {example.question for example in (*own.forget, *own.retain)}
    found = strangers(own, 1000)
    assert len(found) > 36
    assert not questions & {example.question for example in found}


def test_the_experiment_has_the_attacks_and_the_methods_that_were_named():
    found = experiment(1, "npo,rmu", 16)
    assert [found.label(each) for each in found.methods] == ["npo", "rmu"]
    assert [attack.name for attack in found.attacks] == ["relearn", "quantize"]
    settings = found.with_protocol(Fictional.load().protocol).train  # those that the methods' settings were made for
    assert (settings.lr, settings.steps, settings.batch_size) == (1e-3, 30, 40)
    assert (found.seed, found.benchmark.options["seed"], found.leak.k) == (1, 1, (1, 2, 4, 8, 16))
