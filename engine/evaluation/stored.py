"""An evaluation of scores that are at hand, as far as curves of leak@k are made of it.

Scores by group, metric and decoding come in, whoever sampled and scored; an Evaluation without samplings comes out, for
engine.evaluation.curves. Knows nothing of where the scores stand.
"""

from __future__ import annotations

from collections.abc import Mapping

from engine.config.experiment import Experiment
from engine.evaluation.evaluate import Evaluation, Key, prompt_leaks
from engine.stages.score import GroupScores


def evaluation_of_scores(
    experiment: Experiment,
    scores: Mapping[Key, GroupScores],
    clusters: Mapping[str, str],
    failures: Mapping[str, int] | None = None,
) -> Evaluation:
    """What `experiment` reports of these scores; the prompts of one group are the same under all its keys.

    clusters: what a prompt shares with others, by its id. failures: samples without a score, by reason.
    """
    return Evaluation(
        samplings=[],
        leaks={key: prompt_leaks(experiment, of_key.scores) for key, of_key in scores.items()},
        greedy={},
        prompt_ids={group: of_key.prompt_ids for (group, _, _), of_key in scores.items()},
        known={},
        tokens=0,
        seconds=0.0,
        stages={},
        failures=dict(failures or {}),
        notes=[],
        clusters=dict(clusters),
    )
