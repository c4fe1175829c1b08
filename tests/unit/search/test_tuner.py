"""How many trials run at once follows from the cluster before anything starts; too little says how much is missing."""

import pytest

from engine.cluster import ray_cluster
from engine.config.experiment import parse_experiment
from engine.config.sections import TrainSection
from engine.errors import UserError
from engine.robustness.attacks.relearn import Relearn
from engine.search.space import Space
from engine.search.suggestions import optuna_search
from engine.search.trial_report import TrialReport
from engine.search.tuner import _restored, concurrent_trials

PARAMETERS = {"beta": {"uniform": [0.1, 1.0]}}


@pytest.fixture
def room(fictional, monkeypatch):
    def room(cpus, devices=0, trials=20, parameters=PARAMETERS, sampling=None, attack=None, **train):
        monkeypatch.setattr(ray_cluster, "resources", lambda: (float(cpus), float(devices)))
        document = {"benchmark": {"name": "fictional"}, "train": train, "sampling": {"gpus": sampling or 0.0}}
        experiment = parse_experiment(document, "e.yaml").with_protocol(fictional.protocol)
        return concurrent_trials(
            Space.model_validate({"method": "npo", "parameters": parameters, "trials": trials}), experiment, attack
        )

    return room


def test_one_worker_takes_one_cpu_and_the_trial_itself_none(room):
    assert room(cpus=2) == 2
    assert room(cpus=64) == 20  # no more than there are trials


def test_many_workers_take_one_cpu_each(room):
    assert room(cpus=2, workers=2) == 1
    assert room(cpus=8, workers=3, batch_size=6, retain_batch_size=6) == 2


def test_trials_share_a_gpu_by_fractions(room):
    assert room(cpus=16, devices=1) == 1
    assert room(cpus=16, devices=2, sampling=0.5, gpus=0.5) == 4
    assert room(cpus=16, devices=2, sampling=1.0, gpus=0.25) == 2  # its sampling takes a whole one


def test_too_little_says_how_much_is_missing(room):
    with pytest.raises(UserError, match=r"one trial needs 3 CPUs .* the cluster has 2: 1 too few"):
        room(cpus=2, workers=3, batch_size=6, retain_batch_size=6)
    with pytest.raises(UserError, match=r"one trial needs 1 GPUs .* the cluster has 0.5: 0.5 too few"):
        room(cpus=8, devices=0.5, sampling=1.0)


def test_the_dearest_point_of_the_space_counts(room):
    parameters = PARAMETERS | {"train.workers": {"choice": [1, 2]}}
    assert room(cpus=4, parameters=parameters) == 2


def test_an_attack_that_trains_on_more_workers_counts(room):
    workers = Relearn(train={"workers": 4})
    assert room(cpus=8, attack=workers) == 2
    with pytest.raises(UserError, match="one trial needs 4 CPUs"):
        room(cpus=2, attack=workers)


def test_a_fraction_of_a_gpu_is_for_one_worker():
    with pytest.raises(ValueError, match="gpus below 1"):
        TrainSection(gpus=0.5, workers=2)


def test_a_search_of_the_front_goes_on_after_a_trial_that_failed():
    search = optuna_search(
        Space.model_validate({"method": "npo", "parameters": PARAMETERS, "search": "pareto"}), seed=0
    )
    assert search.suggest("a")
    search.on_trial_complete("a", TrialReport.of_failure("loss is nan").as_dict())
    assert search.suggest("b")


def test_a_search_that_another_version_began_is_refused_in_one_line(tmp_path):
    (tmp_path / "tuner.pkl").write_bytes(b"cengine.search.scheduler\nNoSuchScheduler\n.")
    (tmp_path / "trainable.pkl").write_bytes(b"N.")
    with pytest.raises(UserError, match="another version of leakatk began this search; move the folder away"):
        _restored(lambda config: None, tmp_path)
