"""Sequential sampling: leak@k from few samples, exact where an answer is known, and still unbiased.

In: functions that draw samples; out: leak@k of each prompt, its sampling error, the samples spent. Knows nothing of
models.

A pilot of every prompt finds answers with the top score. The sampler knows the exact probability of each; let q be
their sum. A sample is one of them or else residual, so that leak@k = 1 - (1 - q)^k (1 - R_k), with R_k the leak@k of
residual samples alone: only R_k is left to be estimated, from samples drawn after the pilot, and a prompt whose
(1 - q)^k is negligible gets none. Residual samples are drawn up to the r-th with the top score, or up to n. Stopping on
a leak favours leaks, so the sample that stopped a prompt is left out: on those before it the ordinary estimator is
unbiased (inverse binomial sampling: Haldane 1945; Girshick, Mosteller and Savage 1946), and it is 1 where these are
fewer than k, since any k samples would hold a top score. First every prompt gets as many residual samples as any
estimate needs, r = 2 and n = k; from these the final r and n are planned, those of one half of the prompts on the
*other* half, so that no prompt's own samples decide how many count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

from engine.leak.estimator import Floats, Ints, pad_rows, prompt_leak
from engine.leak.extrapolation import fit_leak_model
from engine.leak.stopping import TOP_COUNTS, Rule, larger, plan_rule, rule_cost, stop

NEGLIGIBLE = 1e-3  # chance that k samples hold no known answer, below which a prompt is taken to leak: the bias
PILOT_SHARE = 4  # up to k = pilot / 4 the pilot itself is the estimate
BATCH = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Drawn:
    """Samples of one prompt in their order. scores: float64 [n] in [0, 1]; answers: what tells outcomes apart [n];
    log_probs: float64 [n], each outcome's exact log-probability, NaN = unknown (then nothing is known beforehand)."""

    scores: Floats
    answers: Sequence[Hashable]
    log_probs: Floats

    def __add__(self, more: Drawn) -> Drawn:
        return Drawn(
            np.append(self.scores, more.scores),
            [*self.answers, *more.answers],
            np.append(self.log_probs, more.log_probs),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """Draw more samples of prompt `index` until, with the residual scores so far, `rule` stops it."""

    index: int
    known: frozenset[Hashable]
    rule: Rule
    residual: Floats


@dataclasses.dataclass(frozen=True, eq=False)
class AdaptiveLeak:
    """values: float64 [P, K], leak@k of each prompt. half_width: at the largest k, of the sampling error over these
    prompts; where no residual sample leaked, the upper bound. bias: at most, at the largest k, downwards.

    samples: int64 [P], drawn of each prompt, pilot included. mass: float64 [P], exact probability of the known answers.
    rules: those of the prompts with even and with odd index.
    """

    k: Ints
    values: Floats
    half_width: float
    bias: float
    samples: Ints
    mass: Floats
    rules: tuple[Rule, Rule]

    @property
    def leak(self) -> Floats:
        """leak@k over the prompts: float64 [K]."""
        return np.asarray(self.values.mean(axis=0))


Pilot = Callable[[int], Sequence[Drawn]]
DrawUntil = Callable[[Sequence[Request]], Sequence[Drawn]]


def adaptive_leak(
    pilot: Pilot,
    draw_until: DrawUntil,
    k: Sequence[int] | Ints,
    half_width: float,
    confidence: float = 0.95,
    pilot_samples: int = 32,
    max_samples: int = 2048,
    top: float = 1.0,
    given: Sequence[Mapping[Hashable, float]] | None = None,
) -> AdaptiveLeak:
    """Sample until leak@k of these prompts is known to +- half_width at the largest k, or max_samples are reached.

    pilot(n) returns n samples of every prompt; draw_until(requests) new samples for each request, as it says. k: 1 to
    max_samples. top: scores from it on stop a prompt; unbiased where no score exceeds it. given: log-probabilities of
    further answers with the top score to each prompt.
    Raises ValueError for fewer than two prompts, for k above max_samples and for a score that is no number.
    """
    k_K = np.sort(np.atleast_1d(np.asarray(k)))
    if k_K[0] < 1 or k_K[-1] > max_samples:
        raise ValueError(f"k must be in 1..{max_samples} (the most samples of a prompt), found {k_K[[0, -1]].tolist()}")
    pilots = list(pilot(pilot_samples))
    if len(pilots) < 2:
        raise ValueError("adaptive sampling plans each prompt on the others and needs two prompts or more")
    _check_scores(pilots)
    found = [_known(each, top, more) for each, more in zip(pilots, given or [{}] * len(pilots), strict=True)]
    known = [answers for answers, _ in found]
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    plan = _Plan(np.array([mass for _, mass in found]), k_K, half_width, z, max_samples, pilot_samples, top)
    rules = plan.first_rules
    rows: list[Floats] = [np.empty(0) for _ in pilots]
    samples = np.full(len(pilots), pilot_samples)
    for again in (True, False):
        requests = [
            Request(index, known[index], rule, rows[index])
            for index, rule in enumerate(plan.of_each(rules))
            if rule.samples and stop(rows[index], rule, top) is None
        ]
        drawn = draw_until(requests) if requests else []
        _check_scores(drawn)
        for request, more in zip(requests, drawn, strict=True):
            samples[request.index] += len(more.scores)
            rows[request.index] = np.append(rows[request.index], residual(more, request.known))
        if again:
            rules = plan.rules(rows)
    counted = [row[: stop(row, rule, top)] for row, rule in zip(rows, plan.of_each(rules), strict=True)]
    return AdaptiveLeak(
        k=k_K,
        values=_values(pilots, counted, plan),
        half_width=plan.half_width_of(rows, rules),
        bias=float(plan.weight(int(k_K[-1]))[plan.reach < k_K[-1]].sum() / len(pilots)),
        samples=samples,
        mass=plan.mass,
        rules=rules,
    )


def residual(drawn: Drawn, known: frozenset[Hashable]) -> Floats:
    """The scores of the samples that are none of the known answers: float64 [residual samples]."""
    return drawn.scores[[answer not in known for answer in drawn.answers]] if known else drawn.scores


def until(draw: Callable[[Sequence[int], int], Sequence[Drawn]], top: float = 1.0) -> DrawUntil:
    """A DrawUntil from `draw(indices, count)`, which returns `count` new samples of each prompt."""

    def draw_until(requests: Sequence[Request]) -> list[Drawn]:
        found = [Drawn(np.empty(0), [], np.empty(0)) for _ in requests]
        while any(counts := [wanted(request, drawn, top) for request, drawn in zip(requests, found, strict=True)]):
            for count in set(counts) - {0}:
                chosen = [place for place, each in enumerate(counts) if each == count]
                more = draw([requests[place].index for place in chosen], count)
                for place, drawn in zip(chosen, more, strict=True):
                    found[place] += drawn
        return found

    return draw_until


def wanted(request: Request, drawn: Drawn, top: float = 1.0) -> int:
    """How many samples to draw next for a request that has got `drawn`: 0 where its rule is met, few where one more
    top score may meet it."""
    row = np.append(request.residual, residual(drawn, request.known))
    if stop(row, request.rule, top) is not None:
        return 0
    missing = request.rule.samples - len(row)
    return min(missing, BATCH) if (row >= top).any() else missing


@dataclasses.dataclass(frozen=True, eq=False)
class _Plan:
    """What the pilot fixes. mass: float64 [P] of the known answers; z: of the confidence; pilot: samples of it."""

    mass: Floats
    k: Ints
    half_width: float
    z: float
    max_samples: int
    pilot: int
    top: float

    @property
    def from_pilot(self) -> int:
        """The number of k, the smallest, at which the pilot is the estimate."""
        return int((self.k <= self.pilot // PILOT_SHARE).sum())

    def weight(self, k: int) -> Floats:
        """The chance that k samples hold no known answer: float64 [P]."""
        return np.asarray((1 - self.mass) ** k)

    @property
    def reach(self) -> Ints:
        """The largest k of each prompt that residual samples matter for, 0 where there is none: int64 [P]."""
        found = np.zeros(len(self.mass), dtype=np.int64)
        for k in self.k[self.from_pilot :]:
            found[self.weight(int(k)) > NEGLIGIBLE] = k
        return found

    def of_each(self, rules: tuple[Rule, Rule]) -> list[Rule]:
        """The rule of each prompt: its half's, with as many samples as its reach is a part of the largest k."""
        each = []
        for index, reach in enumerate(self.reach.tolist()):
            rule = rules[index % 2]
            each.append(Rule(rule.top_scores, max(reach, -(-rule.samples * reach // int(self.k[-1])))))
        return each

    @property
    def first_rules(self) -> tuple[Rule, Rule]:
        """The same for every prompt: as many residual samples as any estimate needs, fewer where two leak before."""
        least = Rule(TOP_COUNTS[0], int(self.k[-1]))
        return least, least

    def rules(self, rows: Sequence[Floats]) -> tuple[Rule, Rule]:
        """The rule of the even and of the odd prompts, each planned on the rows of the others."""
        first = self.first_rules[0]
        even, odd = (larger(first, self._rule(half, self._reaching(rows, 1 - half))) for half in (0, 1))
        return even, odd

    def half_width_of(self, rows: Sequence[Floats], rules: tuple[Rule, Rule]) -> float:
        """The half-width of the sampling error at the largest k that these rows and rules give."""
        both = [*self._reaching(rows, 0), *self._reaching(rows, 1)]
        largest = int(self.k[-1])
        if not any(map(self._share, (0, 1))):
            return 0.0
        if not self._leaks(both):
            return self._unseen_bound(min(rule.samples for rule in rules) / largest)
        chances = self._chances(both)
        variance = np.mean([self._share(half) * rule_cost(chances, largest, rules[half])[1] for half in (0, 1)])
        return self.z * float(np.sqrt(variance / len(self.mass)))

    def _reaching(self, rows: Sequence[Floats], half: int) -> list[Floats]:
        """The rows of one half's prompts that have not surely leaked."""
        return [row for row, reach in list(zip(rows, self.reach, strict=True))[half::2] if reach and len(row)]

    def _share(self, half: int) -> float:
        """The mean over one half's prompts of their squared weight at the largest k: their part of the variance."""
        largest = int(self.k[-1])
        return float(((self.weight(largest) * (self.reach == largest))[half::2] ** 2).mean())

    def _rule(self, half: int, rows: list[Floats]) -> Rule:
        largest, share = int(self.k[-1]), self._share(half)
        if share > 0 and self._leaks(rows):
            target = (self.half_width / self.z) ** 2 * len(self.mass) / share
            try:
                return plan_rule(self._chances(rows), largest, target, self.max_samples)
            except ValueError:  # out of reach: the most that may be spent
                return Rule(self.max_samples + 1, self.max_samples)
        samples = largest
        while samples < self.max_samples and self._unseen_bound(samples / largest) > self.half_width:
            samples = min(samples + -(-largest // 8), self.max_samples)
        return Rule(TOP_COUNTS[0], samples)  # nothing seen to stop on

    def _leaks(self, rows: list[Floats]) -> bool:
        return any((row >= self.top).any() for row in rows)

    def _chances(self, rows: list[Floats]) -> Floats:
        """Probabilities of a residual top score that stand for these prompts, smoothed by the leak model."""
        leaks = np.array([(row >= self.top).sum() for row in rows])
        return fit_leak_model(leaks, np.array([len(row) for row in rows])).chances(48)

    def _unseen_bound(self, multiple: float) -> float:
        """Upper bound on leak@k over the prompts by residual samples, when `multiple` times k of each show none: the
        chance of that is at most (1 - the mean of R_k)^(multiple * prompts)."""
        prompts = int((self.reach == self.k[-1]).sum())
        alpha = 2 * NormalDist().cdf(-self.z)
        return float((1 - alpha ** (1 / max(multiple * prompts, 1e-9))) * prompts / len(self.mass))


def _known(pilot: Drawn, top: float, given: Mapping[Hashable, float]) -> tuple[frozenset[Hashable], float]:
    """The answers with the top score whose probability is known, and the sum of their probabilities."""
    found = dict(given)
    for score, answer, log_prob in zip(pilot.scores, pilot.answers, pilot.log_probs, strict=True):
        if score >= top and not np.isnan(log_prob):
            found[answer] = float(log_prob)
    return frozenset(found), min(float(np.exp(list(found.values())).sum()), 1.0)


def _check_scores(drawn: Sequence[Drawn]) -> None:
    for each in drawn:
        if not ((each.scores >= 0) & (each.scores <= 1)).all():
            raise ValueError("scores must be numbers in [0, 1]: leave failed samples out")


def _values(pilots: list[Drawn], counted: list[Floats], plan: _Plan) -> Floats:
    """leak@k of each prompt: of its pilot at small k, else 1 - (1 - q)^k (1 - R_k), R_k taken as 0 beyond its reach."""
    values_PK = np.empty((len(pilots), len(plan.k)))
    small = plan.from_pilot
    if small:
        values_PK[:, :small] = prompt_leak(pad_rows([each.scores for each in pilots])[0], plan.k[:small])
    for column in range(small, len(plan.k)):
        k = int(plan.k[column])
        residual_P = np.array(
            [_leak(row, k) if reach >= k else 0.0 for row, reach in zip(counted, plan.reach, strict=True)]
        )
        values_PK[:, column] = 1 - plan.weight(k) * (1 - residual_P)
    return values_PK


def _leak(row: Floats, k: int) -> float:
    """leak@k of one prompt; 1 where it was stopped before the k samples that any estimate needs."""
    return float(prompt_leak(row[None], np.array([k]))[0, 0]) if len(row) >= k else 1.0
