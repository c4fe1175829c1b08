"""Membership inference: does a model know a text from its training? Six scores, their AUC, and privleak.

Log-probabilities come in (natural, one row an item, of any lengths); each score is larger for what looks more like
training data. Only `gradient_norm` takes a model.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from methods.base import TokenBatch

Floats = NDArray[np.float64]
K = 0.4  # share of the least likely tokens, MUSE's Min-40%
SMALLEST_STD = 1e-3  # of a model that is certain of the next token: no division by zero


def loss_score(nll: ArrayLike) -> Floats:
    """Minus the mean negative log-likelihood of each item: [items]. Source: Yeom et al. 2018, arXiv 1709.01604."""
    return -np.asarray(nll, dtype=np.float64)


def zlib_score(nll: ArrayLike, texts: Sequence[str]) -> Floats:
    """Minus the loss over the compressed length of the text in bytes: [items]. Source: Carlini et al. 2021."""
    lengths = np.array([len(zlib.compress(text.encode("utf-8", "replace"))) for text in texts], dtype=np.float64)
    return -np.asarray(nll, dtype=np.float64) / lengths


def reference_score(nll: ArrayLike, reference_nll: ArrayLike) -> Floats:
    """How much likelier each item is to the model than to a reference model that never saw it: [items]."""
    return np.asarray(reference_nll, dtype=np.float64) - np.asarray(nll, dtype=np.float64)


def min_k_score(logprobs: Sequence[ArrayLike], k: float = K) -> Floats:
    """Mean of the share k of each item's token log-probabilities that are lowest: [items].

    At least one token is taken; NaN for an item without tokens. Source: Shi et al. 2024, arXiv 2310.16789.
    """
    return np.array([_lowest(np.asarray(row, dtype=np.float64), k) for row in logprobs], dtype=np.float64)


def min_k_plus_plus_score(
    logprobs: Sequence[ArrayLike], means: Sequence[ArrayLike], stds: Sequence[ArrayLike], k: float = K
) -> Floats:
    """Min-K% of log-probabilities normalised by what the model expects of the next token: [items].

    means, stds: mean and standard deviation of log p under p itself, over the vocabulary, at each token.
    Source: Zhang et al. 2025, arXiv 2404.02936.
    """
    rows = []
    for logprob, mean, std in zip(logprobs, means, stds, strict=True):
        spread = np.maximum(np.asarray(std, dtype=np.float64), SMALLEST_STD)
        rows.append((np.asarray(logprob, dtype=np.float64) - np.asarray(mean, dtype=np.float64)) / spread)
    return min_k_score(rows, k)


def gradnorm_score(gradient_norms: ArrayLike) -> Floats:
    """Minus the gradient norm of each item: what was trained on pulls less: [items]. Source: arXiv 2402.17012."""
    return -np.asarray(gradient_norms, dtype=np.float64)


def gradient_norm(model: Any, sequence: TokenBatch) -> float:
    """Mean over the model's parameter tensors of the L2 norm of the gradient of one sequence's mean loss.

    sequence: a batch of one. One backward pass: as dear as a training step on it. The model's own gradients stay as
    they are.
    """
    import torch

    from methods.base import mean_nll

    parameters = [each for each in model.parameters() if each.requires_grad]
    with torch.enable_grad():
        gradients = torch.autograd.grad(mean_nll(model, sequence), parameters, allow_unused=True)
    norms = [gradient.float().norm() for gradient in gradients if gradient is not None]
    return float(torch.stack(norms).mean())


def auc(members: ArrayLike, others: ArrayLike) -> float:
    """Probability that a member scores above another, ties counted half, in [0, 1]; 0.5: told apart by nothing.

    members, others: scores [items], larger for what looks more like training data. Raises ValueError for empty input
    or NaN.
    """
    from scipy.stats import rankdata

    inside, outside = np.asarray(members, dtype=np.float64), np.asarray(others, dtype=np.float64)
    scores = np.concatenate([inside, outside])
    if not inside.size or not outside.size or np.isnan(scores).any():
        raise ValueError("AUC needs at least one score of each kind, none of them NaN")
    above = rankdata(scores)[: inside.size].sum() - inside.size * (inside.size + 1) / 2
    return float(above / (inside.size * outside.size))


def privleak(unlearned_auc: float, retain_auc: float) -> float:
    """Relative change of 1 - AUC against the retain model, in percent: 0 is ideal.

    Below 0 the forget set still looks like training data (under-unlearning), above 0 it stands out as unlearned.
    Raises ValueError for a retain AUC of 1. Source: MUSE, arXiv 2407.06460, on Min-K%.
    """
    if retain_auc >= 1:
        raise ValueError("privleak is not defined for a retain model that tells the sets apart wholly (AUC 1)")
    return 100 * (retain_auc - unlearned_auc) / (1 - retain_auc)


def _lowest(row: Floats, k: float) -> float:
    count = max(1, int(row.size * k))
    return float(np.partition(row, count - 1)[:count].mean()) if row.size else float("nan")
