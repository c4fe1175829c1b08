"""Sequential sampling: no more samples for prompts that surely leak, and still an unbiased leak@k.

In: a function that draws scores of more samples; out: leak@k with its sampling error and the samples spent.
Knows nothing of models.

The rule of a prompt: stop at the r-th sample with the top score, or at n samples. Stopping on a leak favours leaks, so
the sample that stopped it is left out: on the samples before it the ordinary estimator is unbiased (and it is 1 where
fewer than k of them are needed, since any k samples would hold a top score). For binary scores this is the estimator of
inverse binomial sampling (Haldane 1945; Girshick, Mosteller and Savage 1946). Rules are planned on a pilot of the
*other* half of the prompts, so that no prompt's own samples decide how many it gets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np

from engine.beyond import fit_leak_model
from engine.guarantees import mean_leak_bound
from engine.leak import Floats, Ints, pad_rows, prompt_leak

Draw = Callable[[Sequence[int], int], Sequence[Floats]]

TOP_COUNTS = (2, 3, 4, 8, 16, 64)


@dataclasses.dataclass(frozen=True)
class Rule:
    """Stop a prompt at its `top_scores`-th sample with the top score, or at `samples` samples."""

    top_scores: int
    samples: int


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveLeak:
    """leak@k of these prompts from sequential samples. half_width: of the sampling error, by the leak model fitted to
    all samples and, as in planning, with every score below the top counted as 0; where nothing leaked, the upper bound.

    samples: int64 [P], drawn of each prompt. rules: those of the prompts with even and with odd index.
    """

    k: int
    leak: float
    half_width: float
    samples: Ints
    rules: tuple[Rule, Rule]


def adaptive_leak(
    draw: Draw,
    prompts: int,
    k: int,
    half_width: float,
    confidence: float = 0.95,
    pilot: int = 16,
    batch: int = 16,
    max_samples: int = 2048,
    top: float = 1.0,
) -> AdaptiveLeak:
    """Sample until leak@k of these prompts is known to +- half_width, spending little on prompts that surely leak.

    draw(prompt indices, count) returns one array of `count` new scores in [0, 1] for each index, with none failed.
    top: scores from it on stop a prompt; unbiased where no score exceeds it.
    Raises ValueError for fewer than two prompts and where no rule of max_samples reaches the half-width.
    """
    if prompts < 2:
        raise ValueError("adaptive sampling plans each prompt on the others and needs two prompts or more")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    rows = [np.asarray(row, dtype=np.float64) for row in draw(range(prompts), pilot)]
    variance = (half_width / z) ** 2 * prompts
    even, odd = (plan_rule(_chances(rows[other::2], pilot, top), k, variance, max_samples) for other in (1, 0))
    rules = (even, odd)
    while unfinished := [i for i, row in enumerate(rows) if _stop(row, rules[i % 2], top) is None]:
        for index, more in zip(unfinished, draw(unfinished, batch), strict=True):
            rows[index] = np.append(rows[index], more)
    used = [row[: _stop(row, rules[index % 2], top)] for index, row in enumerate(rows)]
    drawn = np.array([len(row) for row in rows], dtype=np.int64)
    chances = [_chances(rows[half::2], rules[half].samples, top) for half in (0, 1)]
    if not any(half.any() for half in chances):
        error = float(mean_leak_bound(np.zeros((prompts, 1)), confidence)[0])
    else:
        spread = np.mean([rule_cost(half, k, rule)[1] for half, rule in zip(chances, rules, strict=True)])
        error = z * float(np.sqrt(spread / prompts))
    return AdaptiveLeak(k, _mean_leak(used, k), error, drawn, rules)


def _chances(rows: list[Floats], samples: int, top: float) -> Floats:
    """Probabilities of the top score that stand for these prompts, smoothed by the leak model; 0 where none has it."""
    leaks = np.array([(row[:samples] >= top).sum() for row in rows])
    if not leaks.any():
        return np.zeros(1)
    return fit_leak_model(leaks, np.array([len(row[:samples]) for row in rows])).chances(48)


def _stop(row: Floats, rule: Rule, top: float) -> int | None:
    """Samples of the row that count towards the estimate, None where the rule asks for more."""
    tops = np.flatnonzero(row[: rule.samples] >= top)
    if len(tops) >= rule.top_scores:
        return int(tops[rule.top_scores - 1])
    return rule.samples if len(row) >= rule.samples else None


def _mean_leak(used: list[Floats], k: int) -> float:
    """Mean over prompts of leak@k; 1 for a prompt that was stopped before the k samples that any estimate needs."""
    leak_P = np.ones(len(used))
    enough = [index for index, row in enumerate(used) if len(row) >= k]
    if enough:
        leak_P[enough] = prompt_leak(pad_rows([used[index] for index in enough])[0], np.array([k]))[:, 0]
    return float(leak_P.mean())


def plan_rule(chances: Floats, k: int, variance: float, max_samples: int) -> Rule:
    """The rule with the fewest expected samples whose mean variance is at most `variance`.

    chances: probabilities that a sample has the top score, of prompts like those to sample.
    """
    best, best_cost = None, np.inf
    for top_scores in (*TOP_COUNTS, max_samples + 1):
        low, high = k, max_samples + 1  # more samples, less variance: the fewest that are enough, by bisection
        while high - low > 1:
            middle = (low + high) // 2
            enough = rule_cost(chances, k, Rule(top_scores, middle))[1] <= variance
            low, high = (low, middle) if enough else (middle, high)
        if high <= max_samples and (cost := rule_cost(chances, k, Rule(top_scores, high))[0]) < best_cost:
            best, best_cost = Rule(top_scores, high), cost
    if best is None:
        raise ValueError(f"no rule with at most {max_samples} samples a prompt reaches the half-width at k = {k}")
    return best


def rule_cost(chances: Floats, k: int, rule: Rule) -> tuple[float, float]:
    """Expected samples and variance of the leak@k estimate under a rule, exact, averaged over prompts.

    chances: float64 [P], each prompt's probability of the top score; every other score counts as 0.
    """
    from scipy.stats import binom, nbinom

    r, n = rule.top_scores, rule.samples
    chances = np.clip(chances, 1e-12, 1.0)  # scipy's negative binomial knows no probability 0
    stop = np.arange(r, n + 1)
    few = np.arange(min(r, n + 1))
    chance = np.concatenate([nbinom.pmf(stop - r, r, chances[:, None]), binom.pmf(few, n, chances[:, None])], axis=1)
    missed = np.concatenate([_all_missed(stop - 1, r - 1, k), _all_missed(np.full(len(few), n), few, k)])
    spent = np.concatenate([stop, np.full(len(few), n)])
    mean = chance @ missed
    return float((chance @ spent).mean()), float((chance @ missed**2 - mean**2).mean())


def _all_missed(n: Ints, tops: Ints | int, k: int) -> Floats:
    """C(n - tops, k) / C(n, k): the chance that k of n samples hold none of the top scores; 0 where n < k."""
    from scipy.special import gammaln

    rest = n - tops
    possible = rest >= k
    ratio = gammaln(np.where(possible, rest, k) + 1.0) - gammaln(np.where(possible, rest, k) - k + 1.0)
    whole = gammaln(np.where(possible, n, k) + 1.0) - gammaln(np.where(possible, n, k) - k + 1.0)
    return np.asarray(np.where(possible, np.exp(ratio - whole), 0.0))
