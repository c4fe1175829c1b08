"""The split of the noise, against simulation and against the noise that was published."""

import numpy as np
import pytest
from scipy import stats

from engine.leak.clusters import clusters_of
from engine.leak.estimator import leak_at_k, prompt_leak
from engine.leak.variance import noise, plan_samples, sampling_half_width, sampling_variance


def draw(rng, prompts, samples, a=0.336, b=0.957):
    """Binary scores; these a and b give the published leak@1..128 of GradDiff on TOFU to .002."""
    chance = stats.beta.ppf((np.arange(prompts) + 0.5) / prompts, a, b)
    return (rng.random((prompts, samples)) < chance[:, None]).astype(float)


def test_at_k_1_it_is_the_variance_of_a_mean():
    scores = np.random.default_rng(0).random((3, 20))
    assert sampling_variance(scores, np.array([1]))[:, 0] == pytest.approx(scores.var(axis=1, ddof=1) / 20)


def test_equals_leaving_out_one_sample_at_a_time():
    row = np.random.default_rng(1).random(12)
    without = [float(leak_at_k([np.delete(row, i)], 5)) for i in range(12)]
    assert sampling_variance(row[None], np.array([5]))[0, 0] == pytest.approx(11 * np.var(without))


def test_no_variance_is_claimed_where_no_sample_can_be_left_out():
    scores = np.array([[0.1, 0.5, np.nan], [0.3, 0.4, 0.9]])
    variance = sampling_variance(scores, np.array([2]))
    assert np.isnan(variance[0, 0])
    assert variance[1, 0] > 0


def test_agrees_with_the_published_noise_over_seeds():
    """24 seeds of one GradDiff model, 400 prompts, n = 200: sd .0011, .0022, .0037, .0066 at k = 1, 8, 32, 128."""
    scores = draw(np.random.default_rng(2), 400, 200)
    k = np.array([1, 8, 32, 128])
    assert leak_at_k(scores, k) == pytest.approx([0.2610, 0.5733, 0.7281, 0.8302], abs=0.015)
    ratio = noise(scores, k).sampling / [0.0011, 0.0022, 0.0037, 0.0066]
    assert ratio[:3] == pytest.approx([1, 1, 1], abs=0.15)
    assert 1 < ratio[3] < 1.4  # k beyond n / 2: the jackknife errs upwards


def test_parts_agree_with_simulation_over_seeds_and_over_prompts():
    k = np.array([1, 4])
    same_prompts, new_prompts = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        same_prompts.append(leak_at_k(draw(rng, 50, 20), k))
        chance = rng.beta(0.336, 0.957, 50)
        new_prompts.append(leak_at_k((rng.random((50, 20)) < chance[:, None]).astype(float), k))
    found = noise(draw(np.random.default_rng(0), 50, 20), k)
    assert found.sampling == pytest.approx(np.std(same_prompts, axis=0), rel=0.25)
    assert np.hypot(found.sampling, found.prompts) == pytest.approx(np.std(new_prompts, axis=0), rel=0.25)


def test_what_authors_share_is_a_part_of_its_own():
    """Prompts that differ by author alone, by themselves alone, and by both; the truth is the simulation's."""
    labels, k = clusters_of(np.repeat(np.arange(40), 10).tolist(), 400), np.array([1])
    for author_sd, prompt_sd in ((0.1, 0.0), (0.0, 0.1), (0.1, 0.1)):
        parts = []
        for seed in range(30):
            rng = np.random.default_rng(seed)
            chance = 0.5 + np.repeat(rng.standard_normal(40) * author_sd, 10) + rng.standard_normal(400) * prompt_sd
            scores = (rng.random((400, 50)) < chance.clip(0, 1)[:, None]).astype(float)
            found = noise(scores, k, labels)
            parts.append([found.sampling[0] ** 2, found.prompts[0] ** 2, found.clusters[0] ** 2])
        expected = [0.24 / 50 / 400, prompt_sd**2 / 400, author_sd**2 / 40]
        assert np.mean(parts, axis=0) == pytest.approx(expected, rel=0.15, abs=6e-6)


def test_a_single_author_says_nothing_about_authors():
    scores = np.random.default_rng(0).random((5, 10)) * np.linspace(0.2, 1, 5)[:, None]
    found = noise(scores, np.array([2]), clusters_of(["a"] * 5, 5))
    assert np.isnan(found.clusters[0])
    assert found.prompts[0] > 0


def test_plan_counts_authors_and_says_when_no_number_of_prompts_will_do():
    author = np.repeat(np.random.default_rng(5).random(10), 20)
    pilot = (np.random.default_rng(6).random((200, 40)) < author[:, None]).astype(float)
    labels = clusters_of(np.repeat(np.arange(10), 20).tolist(), 200)
    plan = plan_samples(pilot, 1, 0.05, clusters=labels)
    standard_error = pilot.mean(axis=1).reshape(10, 20).mean(axis=1).std(ddof=1) / np.sqrt(plan.clusters)
    assert 1.96 * standard_error == pytest.approx(0.05, rel=0.02)
    assert plan.prompts == 0
    assert plan_samples(pilot, 1, 0.05).clusters == 0


def test_one_prompt_says_nothing_about_prompts():
    found = noise(np.random.default_rng(0).random((1, 10)), np.array([2]))
    assert found.sampling[0] > 0
    assert np.isnan(found.prompts[0])


@pytest.mark.parametrize("half_width", [0.006, 0.004, 0.001])
def test_plan_reaches_the_half_width_on_new_data(half_width):
    pilot = draw(np.random.default_rng(3), 400, 100)
    plan = plan_samples(pilot, 4, half_width)
    estimates = [leak_at_k(draw(np.random.default_rng(seed), 400, plan.samples), 4) for seed in range(60)]
    assert 1.96 * np.std(estimates) == pytest.approx(half_width, rel=0.3)


def test_plan_says_how_many_prompts_a_population_needs():
    pilot = draw(np.random.default_rng(4), 100, 50)
    plan = plan_samples(pilot, 1, 0.02)
    standard_error = prompt_leak(pilot, np.array([1])).std(ddof=1) / np.sqrt(plan.prompts)
    assert 1.96 * standard_error == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize(
    ("k", "half_width", "says"), [(20, 0.1, "more than 20 valid"), (2, 0, "positive"), (2, 0.1, "score the same")]
)
def test_plan_refuses_what_it_cannot_answer(k, half_width, says):
    with pytest.raises(ValueError, match=says):
        plan_samples(np.zeros((3, 20)), k, half_width)


def test_prompts_taken_in_blocks_give_what_all_at_once_give(monkeypatch):
    from engine.leak import estimator, variance

    scores = np.random.default_rng(0).integers(0, 5, (50, 12)) / 4
    scores[::7, 3:5] = np.nan
    k = np.array([1, 4, 8])
    whole = estimator.prompt_leak(scores, k), variance.sampling_variance(scores, k)
    monkeypatch.setattr(estimator, "_BLOCK", 12 * 8)
    monkeypatch.setattr(variance, "_BLOCK", 12 * 8)
    for found, expected in zip(
        (estimator.prompt_leak(scores, k), variance.sampling_variance(scores, k)), whole, strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-15)


def test_the_half_width_of_the_sampling_error_covers_the_truth_on_the_same_prompts():
    chances = np.random.default_rng(3).beta(0.5, 4, size=30)
    truth = (1 - (1 - chances) ** 8).mean()
    covered = []
    for seed in range(200):
        scores = (np.random.default_rng([9, seed]).random((30, 40)) < chances[:, None]).astype(float)
        covered.append(abs(leak_at_k(scores, [8])[0] - truth) <= sampling_half_width(scores, 8))
    assert 0.93 <= np.mean(covered) <= 1.0  # the jackknife errs upwards


def test_the_half_width_is_not_known_with_k_samples_and_leaves_out_prompts_with_fewer():
    scores = np.array([[0.0, 0.2, 0.9, 0.4], [1.0, 0.1, 0.6, 0.3]])
    short = np.vstack([scores, [1.0, np.nan, np.nan, 0.0]])
    assert np.isnan(sampling_half_width(scores, 4))
    assert np.isnan(sampling_half_width(scores[:, :2], 3))
    assert sampling_half_width(short, 3) == sampling_half_width(scores, 3) > 0
