"""Curves of an evaluation: what they count by, and for whom."""

import dataclasses
import json

import numpy as np
import pytest

from engine.config.experiment import parse_experiment
from engine.errors import UserError
from engine.evaluation.curves import curves
from engine.evaluation.evaluate import Evaluation
from engine.leak.curve import leak_curve
from engine.leak.per_prompt import leaks_of_scores
from engine.reporting.records import Curve, Intervals
from engine.reporting.results import ModelResult, ModelResults, Results, read_results

K = [1, 4, 8]
IDS = [f"author{author}/{prompt}" for author in range(6) for prompt in range(5)]
CLUSTERS = {prompt_id: prompt_id.partition("/")[0] for prompt_id in IDS}


def scores(seed, lift=1.0):
    rng = np.random.default_rng(seed)
    chance = np.repeat(rng.random(6), 5)[:, None] * lift
    return (rng.random((30, 16)) < chance).astype(float)


def evaluation(scores, clusters):
    leaks = {("forget", "exact_fact", "T1-p1"): leaks_of_scores(scores, np.array(K))}
    return Evaluation([], leaks, {}, {"forget": IDS}, {}, 0, 0.0, {}, {}, [], clusters=clusters)


@pytest.fixture
def experiment():
    return parse_experiment({"name": "e", "benchmark": {"name": "fictional"}, "leak": {"k": K}}, "e")


def test_curve_is_the_one_by_cluster_of_the_same_scores(experiment):
    (curve,) = curves(experiment, evaluation(scores(1), CLUSTERS), evaluation(scores(1, 0.5), CLUSTERS))
    direct = leak_curve(scores(1), K, retain_scores=scores(1, 0.5), clusters=list(CLUSTERS.values()))
    assert (curve.clusters, curve.prompts, curve.scope) == (6, 30, "over 6 clusters")
    assert (curve.low, curve.high) == (direct.low.tolist(), direct.high.tolist())
    assert (curve.excess_low, curve.excess_p) == (direct.excess_low.tolist(), direct.excess_p_value.tolist())
    assert min(curve.cluster_error) > 0


def test_without_clusters_every_prompt_stands_for_itself(experiment):
    (curve,) = curves(experiment, evaluation(scores(1), {}), None)
    assert (curve.clusters, curve.scope, curve.cluster_error) == (30, "over 30 prompts", [0, 0, 0])


def test_these_very_prompts_have_intervals_of_their_own(experiment):
    (curve,) = curves(experiment, evaluation(scores(1), CLUSTERS), evaluation(scores(1, 0.5), CLUSTERS))
    these = curve.for_these()
    assert these.scope == "for these very prompts"
    assert these.leak == curve.leak
    assert these.high[0] - these.low[0] < 0.5 * (curve.high[0] - curve.low[0])
    for row in (curve, these):
        significant = [p <= 0.05 for p in row.excess_p]
        assert significant == [low > 0 or high < 0 for low, high in zip(row.excess_low, row.excess_high, strict=True)]


def test_both_inferences_and_clusters_go_to_json_and_back(experiment, tmp_path):
    (curve,) = curves(experiment, evaluation(scores(1), CLUSTERS), None)
    model = ModelResult("npo", "unlearned", {}, {"forget": 0.1}, [curve], 0.5, 1, 1.0)
    results = Results(
        "e", "f" * 64, {"name": "fictional"}, "exact_fact", "forget", 0.95, ModelResults([model]), {}, 1.0, {}, CLUSTERS
    )
    results.write(tmp_path)
    again = read_results(tmp_path)
    assert again == results
    assert isinstance(again.models[0].curves[0].these, Intervals)
    assert again.for_these().scope() == "for these very prompts"
    assert again.scope() == "over 6 clusters"


def test_results_of_an_older_version_are_read_and_say_what_they_lack(experiment, tmp_path):
    (curve,) = curves(experiment, evaluation(scores(1), {}), None)
    old = {key: value for key, value in dataclasses.asdict(curve).items() if key not in NEW}
    read = Curve(**json.loads(json.dumps(old)))
    assert read.scope == "over 30 prompts"
    with pytest.raises(UserError, match="run the experiment again"):
        read.for_these()


NEW = ("clusters", "cluster_error", "these", "inference")
