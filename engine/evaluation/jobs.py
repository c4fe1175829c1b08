"""What an experiment asks of a stage: the jobs that sample a model, score its answers and read their likelihoods.

An experiment, its benchmark and a model come in, a job comes out. Knows nothing of what is made of the results.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from benchmarks.base import Benchmark, Decoding, Example, Probe, is_leak_group
from engine.config.experiment import Experiment
from engine.errors import UserError
from engine.evaluation.benchmark_metrics import likelihood_examples
from engine.metrics import METRICS
from engine.models.size import parameters_of
from engine.models.source import ModelSource
from engine.stages.base import Stages
from engine.stages.likelihood import LikelihoodJob
from engine.stages.sample import SampleJob, unit_prompts
from engine.stages.sample_endpoint import Endpoint, EndpointJob
from engine.stages.sample_vllm import VllmJob
from engine.stages.score import score_job
from engine.store.store import FinishedStage

RUN_MODELS = ("entailment", "cosine", "fluency")  # metrics that run a model of their own, on a GPU where there is one
MAX_LENGTH = 4096  # longest answer whose probability is computed, prompt included


def sample_job(
    experiment: Experiment, benchmark: Benchmark, model: ModelSource, decoding: Decoding, n: int | None = None
) -> SampleJob:
    """What an evaluation samples at one decoding: leak groups n times (None: as the experiment says), or every group
    once where it is greedy."""
    probes, n = probes_at(benchmark, decoding), n or samples_at(experiment, decoding)
    job = job_for(experiment, model, probes, decoding, n, experiment.seed)
    return dataclasses.replace(job, retokenise=experiment.sampling.compat == "leak-k")


def endpoint_job(
    experiment: Experiment, benchmark: Benchmark, model: Endpoint, decoding: Decoding, n: int | None = None
) -> EndpointJob:
    """`sample_job` for a model behind a server: through its chat endpoint unless the template is plain."""
    probes = probes_at(benchmark, decoding)
    if any(probe.raw or probe.cut_reference for probe in probes):
        raise UserError(
            f"--endpoint: benchmark {benchmark.name} continues raw text, cut by tokens, which a server cannot be asked "
            "for; evaluate the model from its weights"
        )
    return EndpointJob(
        model,
        tuple(probes),
        decoding,
        n or samples_at(experiment, decoding),
        max_new_tokens=experiment.sampling.max_new_tokens or 1,
        seed=experiment.seed,
        chat=experiment.model.template != "plain",
        system=experiment.model.system,
        template_options=experiment.model.template_options or None,
    )


def job_for(
    experiment: Experiment, model: ModelSource, probes: Sequence[Probe], decoding: Decoding, n: int, seed: int
) -> SampleJob:
    """A SampleJob with the experiment's template, length and devices."""
    sampling = experiment.sampling
    by_vllm = sampling.engine == "vllm"
    gpus = sampling.gpus or 0.0
    return (VllmJob if by_vllm else SampleJob)(
        model=model,
        probes=tuple(probes),
        decoding=decoding,
        n=n,
        max_new_tokens=sampling.max_new_tokens or 1,
        seed=seed,
        template=experiment.model.template,
        system=experiment.model.system,
        template_options=experiment.model.template_options or None,
        max_rows=sampling.max_rows,
        gpus=float(sampling.tensor_parallel) if by_vllm and gpus and sampling.tensor_parallel > 1 else gpus,
        cpus=sampling.cpus,
        bf16=sampling.precision == "bf16",
        portable=experiment.portable,
        workers=sampling.workers,
        prompts_a_unit=unit_prompts(n, sampling.max_new_tokens or 1, parameters_of(model), gpus > 0),
    )


def on_exact_path(experiment: Experiment) -> Experiment:
    """The experiment for what needs exact probabilities, which vLLM does not give."""
    return experiment.model_copy(update={"sampling": experiment.sampling.model_copy(update={"engine": "exact"})})


def probes_at(benchmark: Benchmark, decoding: Decoding) -> list[Probe]:
    """The probes that are sampled at a decoding: of the leak groups, where it is greedy of every group."""
    return [probe for probe in benchmark.probes if decoding.temperature == 0 or is_leak_group(probe.group)]


def samples_at(experiment: Experiment, decoding: Decoding) -> int:
    """Samples of each prompt at a decoding, of the first round where they are drawn in rounds."""
    adaptive = experiment.sampling.adaptive
    if decoding.temperature == 0:
        return 1
    if adaptive is None:
        return experiment.sampling.n or 1
    # The sampling error at k is not known before there are more than k samples.
    return min(max(adaptive.pilot, max(experiment.leak.k or (1,)) + 1), adaptive.max_samples)


def round_seed(seed: int, number: int) -> int:
    """The seed of a round of drawing samples: the experiment's own in round 1, another in each further one."""
    if number == 1:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/round {number}".encode()).digest()[:7], "little")


def likelihood_job(experiment: Experiment, benchmark: Benchmark, model: ModelSource) -> LikelihoodJob:
    """Every likelihood under one model that the benchmark's own metrics read."""
    examples, gradients = likelihood_examples(benchmark)
    return LikelihoodJob(
        model=model,
        examples=examples,
        gradients=gradients,
        template=experiment.model.template,
        system=experiment.model.system,
        template_options=experiment.model.template_options or None,
        max_length=MAX_LENGTH,
        gpus=experiment.sampling.gpus or 0.0,
        cpus=experiment.sampling.cpus,
        bf16=experiment.sampling.precision == "bf16",
        portable=experiment.portable,
        workers=experiment.sampling.workers,
    )


def choices_job(experiment: Experiment, model: ModelSource, examples: Sequence[Example]) -> LikelihoodJob:
    """The likelihoods of options after running text, without template."""
    return LikelihoodJob(
        model=model,
        examples=tuple(examples),
        template="raw",
        max_length=MAX_LENGTH,
        gpus=experiment.sampling.gpus or 0.0,
        cpus=experiment.sampling.cpus,
        bf16=experiment.sampling.precision == "bf16",
        portable=experiment.portable,
        workers=experiment.sampling.workers,
    )


def score(stages: Stages, experiment: Experiment, label: str, generations: FinishedStage, metric: str) -> FinishedStage:
    """The scores of a sampling under one metric, with the experiment's options and devices."""
    gpus = experiment.sampling.gpus or 0.0 if METRICS[metric].module in RUN_MODELS else 0.0
    job = score_job(generations, metric, experiment.metric_options.get(metric, {}), gpus, experiment.portable)
    return stages.run(f"{label} by {metric}", job)
