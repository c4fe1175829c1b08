"""Membership inference: scores by hand and by a literal loop, AUC by counting pairs, gradient norm by backward."""

import math
import zlib

import numpy as np
import pytest
import torch

from engine.metrics import privacy
from methods.base import TokenBatch


def counted_auc(members, others):
    won = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    return sum(won) / len(won)


def test_auc_is_the_share_of_pairs_won_ties_by_half():
    generator = np.random.default_rng(0)
    members, others = generator.integers(0, 9, 37), generator.integers(-2, 7, 23)
    assert privacy.auc(members, others) == pytest.approx(counted_auc(members, others))
    assert privacy.auc([1, 2], [0]) == 1
    assert privacy.auc([0], [1, 2]) == 0
    assert privacy.auc([3, 3], [3]) == 0.5


@pytest.mark.parametrize(("members", "others"), [([], [1.0]), ([1.0], []), ([float("nan")], [1.0])])
def test_auc_refuses_what_it_cannot_rank(members, others):
    with pytest.raises(ValueError, match="AUC"):
        privacy.auc(members, others)


def test_privleak_by_hand():
    assert privacy.privleak(0.5, 0.5) == 0
    assert privacy.privleak(1.0, 0.6) == pytest.approx(-100)  # still known
    assert privacy.privleak(0.2, 0.6) == pytest.approx(100)  # stands out as unlearned
    with pytest.raises(ValueError, match="AUC 1"):
        privacy.privleak(0.5, 1.0)


def test_every_score_is_larger_for_the_better_known_text():
    known, unknown = [-0.1] * 10, [-3.0] * 10
    assert np.diff(privacy.loss_score([3.0, 0.1])) > 0
    assert np.diff(privacy.min_k_score([unknown, known])) > 0
    assert np.diff(privacy.reference_score([3.0, 0.1], [3.0, 3.0])) > 0
    assert np.diff(privacy.gradnorm_score([9.0, 1.0])) > 0
    assert np.diff(privacy.zlib_score([3.0, 0.1], ["a text", "a text"])) > 0


def test_zlib_divides_the_loss_by_the_compressed_bytes():
    text = "naïve " * 20
    assert privacy.zlib_score([2.0], [text]) == pytest.approx([-2.0 / len(zlib.compress(text.encode()))])


def test_min_k_averages_the_least_likely_tokens():
    # 40% of 5 tokens are 2: the two lowest
    assert privacy.min_k_score([[-1.0, -5.0, -2.0, -4.0, -3.0]]) == pytest.approx([-4.5])
    assert privacy.min_k_score([[-1.0, -2.0]]) == pytest.approx([-2.0])  # one token at least
    assert privacy.min_k_score([[-1.0, -5.0, -3.0]], k=1.0) == pytest.approx([-3.0])
    assert np.isnan(privacy.min_k_score([[]])).all()


def test_min_k_plus_plus_equals_its_formula_over_a_vocabulary():
    generator = np.random.default_rng(1)
    p = generator.dirichlet(np.ones(6), size=10)  # next-token distributions at 10 positions
    tokens = generator.integers(0, 6, 10)
    means = [sum(x * math.log(x) for x in row) for row in p]
    stds = [math.sqrt(sum(x * (math.log(x) - mean) ** 2 for x in row)) for row, mean in zip(p, means, strict=True)]
    normalised = sorted((math.log(p[t, w]) - means[t]) / stds[t] for t, w in enumerate(tokens))
    found = privacy.min_k_plus_plus_score([np.log(p[np.arange(10), tokens])], [means], [stds], k=0.3)
    assert found == pytest.approx([sum(normalised[:3]) / 3])
    assert np.isfinite(privacy.min_k_plus_plus_score([[0.0]], [[0.0]], [[0.0]])).all()


def test_gradient_norm_equals_a_backward_pass_and_leaves_no_gradient(base_model):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 12, 30, 2]])
    labels = torch.tensor([[-100, -100, 12, 30, -100]])
    found = privacy.gradient_norm(model, TokenBatch(ids, labels, torch.ones_like(ids)))
    assert all(each.grad is None for each in model.parameters())
    log_p = model(ids).logits[0].log_softmax(-1)
    (-(log_p[1, 12] + log_p[2, 30]) / 2).backward()
    norms = [math.sqrt(float((each.grad**2).sum())) for each in model.parameters()]
    assert found == pytest.approx(sum(norms) / len(norms), rel=1e-4)
