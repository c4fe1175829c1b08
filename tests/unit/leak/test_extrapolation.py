"""The model beyond n against scipy's distribution, known parameters and held-out samples."""

import numpy as np
import pytest
from scipy import integrate, stats

from engine.leak.estimator import leak_at_k
from engine.leak.extrapolation import LeakModel, fit_leak_model, fit_p_value, leak_beyond_n


def draw(seed, prompts, samples, never=0.3, a=0.5, b=4.0):
    rng = np.random.default_rng(seed)
    chance = np.where(rng.random(prompts) < never, 0.0, rng.beta(a, b, prompts))
    return (rng.random((prompts, samples)) < chance[:, None]).astype(float)


@pytest.mark.parametrize("k", [1, 7, 500])
def test_leak_at_k_equals_the_integral_over_prompts(k):
    missed = integrate.quad(lambda q: stats.beta.pdf(q, 2.0, 5.0) * (1 - q) ** k, 0, 1)[0]
    assert float(LeakModel(0.25, 2.0, 5.0).leak_at_k(k)) == pytest.approx(0.75 * (1 - missed), abs=1e-7)


def test_chances_stand_for_the_distribution():
    chances = LeakModel(0.25, 2.0, 5.0).chances(4000)
    assert (chances == 0).mean() == pytest.approx(0.25, abs=0.001)
    assert chances.mean() == pytest.approx(0.75 * 2 / 7, abs=1e-3)


def test_fit_maximises_the_likelihood_of_scipys_beta_binomial():
    scores = draw(0, 300, 40, never=0.0)
    leaks = scores.sum(axis=1).astype(int)
    fitted = fit_leak_model(leaks, np.full(300, 40))

    def likelihood(a, b):
        return stats.betabinom.logpmf(leaks, 40, a, b).sum()

    assert fitted.never < 0.05
    at_fit = np.logaddexp(
        np.log(fitted.never) + np.where(leaks == 0, 0, -np.inf),
        np.log1p(-fitted.never) + stats.betabinom.logpmf(leaks, 40, fitted.a, fitted.b),
    ).sum()
    assert at_fit >= max(likelihood(a, b) for a in (0.4, 0.5, 0.6) for b in (3.0, 4.0, 5.0))


def test_fit_finds_the_parameters_of_much_data():
    scores = draw(1, 5000, 60)
    model = fit_leak_model(scores.sum(axis=1).astype(int), np.full(5000, 60))
    assert (model.never, model.a, model.b) == pytest.approx((0.3, 0.5, 4.0), rel=0.2)


def test_predicts_held_out_leak_at_128_from_32_samples():
    scores = draw(2, 400, 256)
    predicted = leak_beyond_n(scores[:, :32], np.array([128]))
    held_out = float(leak_at_k(scores, 128))
    assert predicted.leak[0] == pytest.approx(held_out, abs=0.05)
    assert predicted.low[0] < held_out < predicted.high[0]
    assert predicted.warning is None


def test_warns_where_the_model_cannot_fit():
    half = np.r_[np.full(100, 4), np.full(100, 36)]  # two kinds of prompts, each with too little spread
    p_value = fit_p_value(fit_leak_model(half, np.full(200, 40)), half, np.full(200, 40))
    assert p_value < 1e-6


def test_too_few_prompts_cannot_be_tested(monkeypatch):
    monkeypatch.setattr("engine.leak.extrapolation.REFITS", 10)
    assert leak_beyond_n(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([8])).warning == "too few prompts to test the fit"


@pytest.mark.parametrize(("scores", "says"), [([[0.5, 1.0]], "binary"), ([[0.0, 0.0]], "no sample leaks")])
def test_what_it_cannot_model_is_refused(scores, says):
    with pytest.raises(ValueError, match=says):
        leak_beyond_n(np.array(scores), np.array([8]))
