"""Which engine samples an experiment's models: the one it names or, with `auto`, the one that suits them, and why.

Knows nothing of how either samples.
"""

from __future__ import annotations

from engine.config.experiment import Experiment
from engine.models.size import parameters_of
from engine.models.source import model_source
from engine.stages import sample_vllm

# Above it vLLM's kernels outweigh what computing shared prefixes once saves: assumed, for nothing of the kind was
# measured on a GPU yet (perf/engines.py measures it).
LARGE = 3e9


def engine_of(experiment: Experiment, on_gpus: bool) -> tuple[str, str]:
    """The engine, and in one line why. UserError where vLLM is asked for and not installed."""
    asked, path = experiment.sampling.engine, experiment.model.path
    if asked == "vllm":
        sample_vllm.installed_version()
    if asked != "auto":
        return asked, "as asked"
    if not sample_vllm.installed():
        return "exact", "vLLM is not installed"
    if not on_gpus:
        return "exact", "there is no GPU"
    weights = 0 if path is None else parameters_of(model_source(path, experiment.model.revision, identified=False))
    size = f"the model has {weights / 1e9:.1f} billion weights" if weights else "the model's size is not known here"
    return ("vllm", size) if weights >= LARGE else ("exact", f"{size}, vLLM is taken from {LARGE / 1e9:g} billion on")


def with_engine(experiment: Experiment, on_gpus: bool) -> Experiment:
    """The experiment with the engine that samples it."""
    engine, _ = engine_of(experiment, on_gpus)
    return experiment.model_copy(update={"sampling": experiment.sampling.model_copy(update={"engine": engine})})
