"""A look at a model while it is trained: the greedy score, a cheap leak@n and the utility.

The model as it stands and a TrainJob come in; a few numbers come out, the same on every worker. What is cheap about it:
few samples, a fixed subset of the prompts. The real figures are those of the evaluation afterwards.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from benchmarks.base import Decoding, Probe
from engine.config.sections import TrainSection
from engine.errors import DivergedError
from engine.models.causal_lm import CausalLM
from engine.train.job import TrainJob

if TYPE_CHECKING:
    from engine.models.tokenization import Tokenizer


def watch(model: CausalLM, tokenizer: Tokenizer, job: TrainJob, step: int) -> dict[str, float]:
    """ "greedy": mean core metric of greedy answers to the watched forget prompts; with settings.eval_samples = n also
    "leak_at_<n>": the mean over eval_prompts of them of the best of n samples at T = 1, p = 1, and "utility": as
    greedy, on as many prompts of the utility group, if it has any. A metric that failed on a sample leaves it out.
    DivergedError where the model's logits are no longer finite."""
    try:
        return _measured(model, tokenizer, job)
    except DivergedError as error:
        raise DivergedError(f"{error}, observed after step {step}") from error


def _measured(model: CausalLM, tokenizer: Tokenizer, job: TrainJob) -> dict[str, float]:
    from methods.base import innermost

    settings, inner = job.settings, innermost(model)
    inner.eval()
    measured = {"greedy": float(np.nanmean(_scores(inner, tokenizer, job, job.watch, 1, Decoding(temperature=0.0))))}
    n = settings.eval_samples
    if n is not None:
        few = _spread(job.watch, settings.eval_prompts)
        scores = _scores(inner, tokenizer, job, few, n, Decoding())
        measured[f"leak_at_{n}"] = float(np.nanmean(np.nanmax(scores, axis=1)))
    if n is not None and job.watch_utility:
        kept = _spread(job.watch_utility, settings.eval_prompts)
        measured["utility"] = float(np.nanmean(_scores(inner, tokenizer, job, kept, 1, Decoding(temperature=0.0))))
    inner.train()
    return measured


def enough(measured: dict[str, float], settings: TrainSection) -> bool:
    """Whether what was measured is at or below every limit that the settings give."""
    every = {"greedy": settings.stop_at_greedy, f"leak_at_{settings.eval_samples}": settings.stop_at_leak}
    limits = {name: limit for name, limit in every.items() if limit is not None}
    return bool(limits) and all(name in measured and measured[name] <= limit for name, limit in limits.items())


def _spread(probes: tuple[Probe, ...], count: int) -> tuple[Probe, ...]:
    """At most `count` of the probes, evenly spread over them: always the same ones."""
    chosen = np.unique(np.linspace(0, len(probes) - 1, min(count, len(probes))).astype(int))
    return tuple(probes[index] for index in chosen)


def _scores(
    model: CausalLM, tokenizer: Tokenizer, job: TrainJob, probes: tuple[Probe, ...], n: int, decoding: Decoding
) -> np.ndarray:
    """Scores [probes, n] of n samples of each, NaN where the metric failed."""
    from engine.metrics import METRICS, score
    from engine.stages.answer_texts import texts, thoughts_of
    from engine.stages.prompting import reference_of
    from engine.stages.sample import SampleJob, sample_probes

    sampling = SampleJob(
        job.model,
        probes,
        decoding,
        n,
        job.watch_tokens,
        seed=job.seed,
        template=job.template,
        system=job.system,
        template_options=job.template_options,
    )
    samples = [sample for of_probe in sample_probes(model, tokenizer, probes, sampling) for sample in of_probe]
    of_samples = [probe for probe in probes for _ in range(n)]
    metric = METRICS[job.watch_metric]
    references = [metric.truth(reference_of(probe, tokenizer, job.watch_tokens), probe.fact) for probe in of_samples]
    prompts, stops = [probe.prompt for probe in of_samples], [probe.stop for probe in of_samples]
    values = score(
        job.watch_metric,
        texts(samples, tokenizer, stops, thoughts_of(tokenizer, sampling)),
        references,
        prompts=prompts,
        **job.watch_options,
    )
    return np.array([np.nan if value is None else value for value in values], dtype=float).reshape(len(probes), n)
