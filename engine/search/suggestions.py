"""Which point of the space is tried next: Optuna behind Ray Tune, one sampler for each kind of search.

A Space and a seed come in, Ray Tune's search algorithm comes out. Knows nothing of what a trial does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.search.space import Space

if TYPE_CHECKING:
    import optuna
    from ray.tune.search.optuna import OptunaSearch


def optuna_search(space: Space, seed: int) -> OptunaSearch:
    """The search algorithm of a space; the same seed suggests the same points for the same reports."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    metric, mode = (["leak", "utility"], ["min", "max"]) if space.search == "pareto" else ("value", "min")
    return OptunaSearch(_Suggest(space), metric=metric, mode=mode, sampler=_sampler(space, seed))


def _sampler(space: Space, seed: int) -> optuna.samplers.BaseSampler:
    from optuna.samplers import GridSampler, RandomSampler, TPESampler

    if space.search == "grid":
        choices = {name: list(parameter.choice or ()) for name, parameter in space.parameters.items()}
        return GridSampler(choices, seed)
    if space.search == "random":
        return RandomSampler(seed=seed)
    return TPESampler(seed=seed, n_startup_trials=max(4, space.trials // 4))


class _Suggest:
    """A point of the space, suggested by an Optuna trial; parameters whose `when` does not hold are left out."""

    def __init__(self, space: Space) -> None:
        self.space = space

    def __call__(self, trial: optuna.Trial) -> None:
        values: dict[str, object] = {}
        for name, parameter in self.space.parameters.items():
            if not parameter.searched_at(values):
                continue
            if parameter.choice is not None:
                values[name] = trial.suggest_categorical(name, list(parameter.choice))
            elif parameter.int is not None:
                values[name] = trial.suggest_int(name, *parameter.int)
            elif parameter.loguniform is not None:
                values[name] = trial.suggest_float(name, *parameter.loguniform, log=True)
            elif parameter.uniform is not None:
                values[name] = trial.suggest_float(name, *parameter.uniform)
