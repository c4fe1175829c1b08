"""A trial's estimates after an attack: families of prompts count together, and what is certain stays certain."""

import numpy as np
import pytest

from engine.config.experiment import parse_experiment
from engine.leak.estimator import prompt_leak
from engine.robustness.attacks.prompts import Prompts
from engine.robustness.joint import origin
from engine.search import trial_evaluation
from engine.search.space import Rung, Space
from engine.search.trial_evaluation import Setting, estimate_leak
from engine.stages.score import GroupScores

SPACE = {"method": "npo", "parameters": {"beta": {"uniform": [0.1, 1.0]}}, "objective": {"k": 8, "attack": "prompts"}}
FAMILIES = Prompts(families=("paraphrase", "prefix"), prefix=(1,))


@pytest.fixture
def estimate(fictional, monkeypatch):
    """The estimate at a rung, and the scores [prompts, all samples of both families in full] that it is taken from."""
    experiment = parse_experiment({"benchmark": {"name": "fictional"}, "sampling": {"n": 16}}, "e.yaml")
    experiment = experiment.with_protocol(fictional.protocol)
    setting = Setting(experiment, Space.model_validate(SPACE), "store", "forget", "exact_fact", attack=FAMILIES)
    asked = [probe.id for probe in setting.deciding(fictional)]
    rng = np.random.default_rng(0)
    full = {group: (rng.random((len(asked), 16)) < 0.05).astype(float) for group in ("paraphrase", "prefix-1")}

    def scored(setting, stages, model, probes, decoding, n):
        found = {}
        for group, scores in full.items():
            ids = [probe.id for probe in probes if probe.id.endswith(f"~{group}")]
            rows = [asked.index(origin(each)) for each in ids]
            found[group] = GroupScores(ids, scores[rows, :n])
        return found, 7

    monkeypatch.setattr(trial_evaluation, "_scored", scored)
    return lambda rung: estimate_leak(setting, None, fictional, None, rung), np.concatenate(list(full.values()), axis=1)


def test_a_sample_of_each_family_is_two_samples(estimate):
    found, full = estimate
    few = found(Rung(n=2))
    assert (few.n, few.k, few.tokens) == (2, 4, 7)
    assert few.leak == pytest.approx(prompt_leak(full[:, [0, 1, 16, 17]], np.array([4])).mean())


def test_what_few_samples_of_few_prompts_leaked_bounds_what_all_will(estimate):
    found, full = estimate
    whole = found(Rung(n=16))
    assert whole.leak == pytest.approx(prompt_leak(full, np.array([8])).mean())
    bounds = [found(rung).bound for rung in (Rung(n=2, prompts=0.5), Rung(n=2), Rung(n=8), Rung(n=16))]
    assert bounds == sorted(bounds)
    assert bounds[0] < bounds[-1] == pytest.approx(whole.leak)
