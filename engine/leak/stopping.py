"""When to stop sampling a prompt: at the r-th sample with the top score or at n samples, and what such a rule costs.

In: probabilities of the top score, of prompts like those to sample; out: the cheapest rule for a wanted variance of
leak@k. Knows nothing of how samples are drawn. See engine/leak/adaptive.py.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from engine.leak.estimator import Floats, Ints

TOP_COUNTS = (2, 3, 4, 8, 16, 64)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Stop a prompt at its `top_scores`-th residual sample with the top score, or at `samples` residual samples."""

    top_scores: int
    samples: int


def larger(one: Rule, other: Rule) -> Rule:
    return Rule(max(one.top_scores, other.top_scores), max(one.samples, other.samples))


def stop(row: Floats, rule: Rule, top: float) -> int | None:
    """Samples of the row that count towards the estimate, None where the rule asks for more."""
    tops = np.flatnonzero(row[: rule.samples] >= top)
    if len(tops) >= rule.top_scores:
        return int(tops[rule.top_scores - 1])
    return rule.samples if len(row) >= rule.samples else None


def plan_rule(chances: Floats, k: int, variance: float, max_samples: int) -> Rule:
    """The rule with the fewest expected samples whose mean variance is at most `variance`.

    chances: probabilities that a sample has the top score, of prompts like those to sample.
    Raises ValueError where no rule of max_samples reaches the variance.
    """
    best, best_cost = None, np.inf
    for top_scores in (*TOP_COUNTS, max_samples + 1):
        costs = _Costs(chances, k, top_scores, max_samples)
        low, high = k - 1, max_samples + 1  # more samples, less variance: the fewest that are enough, by bisection
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if costs.at(middle)[1] <= variance else (middle, high)
        if high <= max_samples and (cost := costs.at(high)[0]) < best_cost:
            best, best_cost = Rule(top_scores, high), cost
    if best is None:
        raise ValueError(f"no rule with at most {max_samples} samples a prompt reaches the half-width at k = {k}")
    return best


def rule_cost(chances: Floats, k: int, rule: Rule) -> tuple[float, float]:
    """Expected samples and variance of the leak@k estimate under a rule, exact, averaged over prompts.

    chances: float64 [P], each prompt's probability of the top score; every other score counts as 0.
    """
    return _Costs(chances, k, rule.top_scores, rule.samples).at(rule.samples)


class _Costs:
    """rule_cost of Rule(r, n) at many n for one r: what stops at the r-th top score is summed once.

    Shape letters: P prompts, S samples at which the r-th top score may come, T fewer top scores than r.
    """

    def __init__(self, chances: Floats, k: int, r: int, most: int) -> None:
        chance_P1 = np.clip(chances, 1e-12, 1 - 1e-12)[:, None]
        self.log_P1, self.log_not_P1 = np.log(chance_P1), np.log1p(-chance_P1)
        self.k, self.r = k, r
        stop_S = np.arange(r, most + 1)
        pmf_PS = np.exp(_log_choose(stop_S - 1, r - 1) + r * self.log_P1 + (stop_S - r) * self.log_not_P1)
        missed_S = _all_missed(stop_S - 1, r - 1, k)
        self.sums = [np.cumsum(pmf_PS * each, axis=1) for each in (stop_S, missed_S, missed_S**2)]

    def at(self, n: int) -> tuple[float, float]:
        """Expected samples and variance at most n samples."""
        few_T = np.arange(min(self.r, n + 1))
        pmf_PT = np.exp(_log_choose(n, few_T) + few_T * self.log_P1 + (n - few_T) * self.log_not_P1)
        missed_T = _all_missed(np.full(len(few_T), n), few_T, self.k)
        stopped = [each[:, n - self.r] if n >= self.r else 0.0 for each in self.sums]
        spent_P, mean_P, square_P = (
            part + pmf_PT @ rest
            for part, rest in zip(stopped, (np.full(len(few_T), n), missed_T, missed_T**2), strict=True)
        )
        return float(spent_P.mean()), float(np.maximum(square_P - mean_P**2, 0).mean())


def _log_choose(n: Ints | int, k: Ints | int) -> Floats:
    from scipy.special import gammaln

    return np.asarray(gammaln(np.add(n, 1.0)) - gammaln(np.add(k, 1.0)) - gammaln(np.subtract(n, k) + 1.0))


def _all_missed(n: Ints, tops: Ints | int, k: int) -> Floats:
    """C(n - tops, k) / C(n, k): the chance that k of n samples hold none of the top scores; 0 where n < k."""
    rest = n - tops
    possible = rest >= k
    ratio = _log_choose(np.where(possible, rest, k), k) - _log_choose(np.where(possible, n, k), k)
    return np.asarray(np.where(possible, np.exp(ratio), 0.0))
