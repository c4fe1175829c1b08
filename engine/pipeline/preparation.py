"""An experiment with its gaps filled, and what can be refused before any work starts.

In: an Experiment and its loaded benchmark; out: the Experiment with the benchmark's protocol, the devices of this
cluster and the sampling engine named.
"""

from __future__ import annotations

from benchmarks.base import Benchmark
from engine.cluster import ray_cluster
from engine.cluster.hardware import fast_bf16
from engine.config.experiment import Experiment, parse_experiment
from engine.errors import UserError
from engine.metrics import METRICS
from engine.pipeline.sampling_engine import with_engine


def prepared(experiment: Experiment, benchmark: Benchmark) -> Experiment:
    """The experiment with its benchmark's protocol and this cluster's devices filled in.

    UserError where the core metric can see no reference of a group that decides, or the utility cannot be computed.
    """
    protocol = benchmark.protocol
    for group in (protocol.leak_group, protocol.utility_group):
        refuse_blind(protocol.core_metric, benchmark, group, experiment)
    by_likelihood = protocol.utility_group in {choice.group for choice in benchmark.choices}
    if by_likelihood and (experiment.model.endpoint is not None or experiment.sampling.tensor_parallel > 1):
        raise UserError(
            f"benchmark {benchmark.name}: its utility is the accuracy on multiple-choice questions, by likelihoods, "
            "which need the model on this cluster, and on one GPU at most"
        )
    gpus = experiment.sampling.gpus
    gpus = (1.0 if ray_cluster.has_gpus() else 0.0) if gpus is None else gpus
    filled = with_engine(experiment, gpus > 0).with_protocol(benchmark.protocol)
    return parse_experiment(filled.model_dump(), experiment.name).on_devices(gpus, fast_bf16())


def refuse_blind(metric: str, benchmark: Benchmark, group: str, experiment: Experiment) -> None:
    """UserError where a metric can see no reference of a group of probes: nothing could be said of any answer."""
    chosen, options = METRICS[metric], experiment.metric_options.get(metric, {})
    told = [chosen.truth(probe.reference, probe.fact) for probe in benchmark.group(group)]
    why = [chosen.blindness(each, options) for each in told]
    if why and all(why):
        raise UserError(f"benchmark {benchmark.name}: {metric} cannot score the probes of {group}: {why[0]}")
