"""All families of a prompt attack as one: their samples of the same prompt, put together.

k samples of a prompt are then k that are drawn at random over the families: a budget that is spent over all of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from engine.stages.score import GroupScores


def origin(probe_id: str) -> str:
    """The id of the probe that a family's probe stands for."""
    return probe_id.rpartition("~")[0]


def pooled(families: Mapping[str, GroupScores]) -> GroupScores:
    """Scores [prompts, families x samples] of the prompts that all families have, under the ids of the probes that they
    stand for."""
    by_origin = [dict(zip(map(origin, each.prompt_ids), each.scores, strict=True)) for each in families.values()]
    ids = [each for each in by_origin[0] if all(each in of for of in by_origin)]
    width = sum(each.scores.shape[1] for each in families.values())
    rows = [np.concatenate([of[each] for of in by_origin]) for each in ids]
    return GroupScores(ids, np.array(rows).reshape(len(ids), width))
