"""Alternate answers: refusals and samples of the target model, paired with the forget set and kept in step by RULE."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from pyarrow import array, parquet

from benchmarks.base import Example
from engine.cluster.reporter import Silent
from engine.config.experiment import parse_experiment
from engine.config.sections import MethodSection
from engine.pipeline.alternate_answers import REFUSALS, alternate_probes, alternates_like, paired, refusals
from engine.pipeline.model_builder import ModelBuilder
from engine.pipeline.rule import Rule
from engine.stages.reference import ReferenceJob, answer_logprobs
from engine.stages.sample import SampleJob
from engine.stages.score import ScoreJob
from engine.store.store import FinishedStage
from engine.train.batches import Batches
from engine.train.launch import Training, train_alone
from methods import METHODS

QUESTIONS = [Example(f"q{index}", f"Question {index}?", f"Answer {index}.") for index in range(60)]


def test_refusals_are_varied_and_each_depends_on_its_example_alone():
    made = refusals(QUESTIONS)
    assert [each.question for each in made] == [each.question for each in QUESTIONS]
    assert {each.answer for each in made} <= set(REFUSALS)
    assert len({each.answer for each in made}) > 10
    assert refusals(QUESTIONS[30:]) == made[30:]
    assert len(set(REFUSALS)) == len(REFUSALS)


def test_probes_ask_the_target_model_by_the_prompt():
    (probe,) = alternate_probes([Example("a", "Who is {x}?", "Me.")], "Q: {question} Not: {answer}")
    assert probe.prompt == "Q: Who is {x}? Not: Me."


def test_each_example_is_paired_with_each_of_its_samples():
    forget, alternate = paired(QUESTIONS[:2], [["a ", "b"], ["c", "d"]])
    assert [each.id for each in forget] == ["q0", "q0", "q1", "q1"]
    assert [(each.question, each.answer) for each in alternate] == [
        ("Question 0?", "a"),
        ("Question 0?", "b"),
        ("Question 1?", "c"),
        ("Question 1?", "d"),
    ]


def test_further_answers_take_their_questions_alternates_in_turn():
    _, alternate = paired(QUESTIONS[:2], [["a", "b"], ["c", "d"]])
    leaks = [QUESTIONS[1], QUESTIONS[0], QUESTIONS[1], QUESTIONS[1]]
    assert [alternate[index].answer for index in alternates_like(leaks, alternate)] == ["c", "a", "d", "c"]


@pytest.mark.parametrize("prompt", ["{question} {topic}", "{answer}", "{question", "{}"])
def test_altpo_refuses_a_prompt_that_it_cannot_fill(prompt):
    with pytest.raises(ValueError, match="prompt"):
        METHODS["altpo"](prompt=prompt)


class InProcess:
    """The engine's runner of stages without a store and without Ray: every stage is computed here."""

    def __init__(self, folder):
        self.folder, self.count, self.trained = folder, 0, []

    def run(self, label, stage):
        self.count += 1
        work = self.folder / str(self.count)
        work.mkdir()
        fill = {Training: self._train, ReferenceJob: reference, SampleJob: sample, ScoreJob: score_everything_1}
        facts = fill[type(stage)](stage, work)
        return FinishedStage(work, {"fingerprint": str(work), "facts": facts, "files": {}}, reused=False)

    def _train(self, stage, work):
        self.trained.append(stage.job)
        return train_alone(stage.job, str(work), Silent())


def reference(job, work):
    (work / "logprobs.json").write_text(json.dumps(answer_logprobs(job, False)))
    return {}


def sample(job, work):
    (work / "units").mkdir()
    tables = [job.compute(unit)[0] for unit in range(job.units)]
    for unit, table in enumerate(tables):
        parquet.write_table(table, work / "units" / f"{unit:06d}.parquet")
    return {"tokens": sum(sum(table["tokens"].to_pylist()) for table in tables), "seconds": 0.0}


def score_everything_1(job, work):
    (work / "units").mkdir()
    for path in (Path(job.generations) / "units").glob("*.parquet"):
        table = parquet.read_table(path).select(["prompt_id", "group", "sample"])
        parquet.write_table(table.append_column("score", array([1.0] * table.num_rows)), work / "units" / path.name)
    return {"seconds": 0.0}


@pytest.fixture
def made_job(base_model, fictional, tmp_path):
    """The training of a method as the pipeline makes it, with the stages and the experiment that it was made in."""

    def make(section):
        document = {
            "benchmark": {"name": "fictional"},
            "model": {"path": str(base_model)},
            "methods": [section],
            "train": {"steps": 2, "batch_size": 4, "retain_batch_size": 4, "lr": 1e-3},
            "sampling": {"max_new_tokens": 6, "gpus": 0},
        }
        experiment = parse_experiment(document, "e.yaml").with_protocol(fictional.protocol)
        small = SimpleNamespace(
            forget=fictional.forget[:3],
            retain=fictional.retain[:8],
            probes=[],
            protocol=fictional.protocol,
            group=lambda name: fictional.group(name)[:2],
        )
        stages = InProcess(tmp_path)
        chosen = MethodSection.model_validate(section)
        method = METHODS[chosen.name](**chosen.hyperparameters)
        base = method.base_method() if chosen.name == "rule" else method
        hyperparameters = method.base if chosen.name == "rule" else {"name": chosen.name, **chosen.hyperparameters}
        builder = ModelBuilder(experiment, small, stages)
        job = builder._job("it", chosen, base, hyperparameters, builder.base, tuple(small.forget))
        return SimpleNamespace(job=job, stages=stages, experiment=experiment, benchmark=small, method=method)

    return make


@pytest.mark.parametrize("name", ["dpo", "idk_dpo", "idk_nll", "flat"])
def test_a_method_gets_a_refusal_beside_each_forget_example(made_job, name):
    job = made_job({"name": name}).job
    assert job.alternate == refusals(job.forget)
    assert (job.alternate_reference is None) == (name in ("idk_nll", "flat"))


def test_altpo_gets_samples_of_the_target_model_and_their_log_probabilities(made_job, tokenizer):
    made = made_job({"name": "altpo", "samples": 4, "prompt": "{question}"})
    assert [each.id for each in made.job.forget] == [each.id for each in made.benchmark.forget for _ in range(4)]
    assert len({each.answer for each in made.job.alternate}) > 6  # an untrained model says something else each time
    assert len(made.job.alternate_reference) == len(made.job.forget_reference) == 12
    assert made.job.steps == 2
    batches = Batches(made.job, made.method.needs, tokenizer, 0).at(1)[0]
    assert batches.alternate.reference_logprob.shape == batches.forget.reference_logprob.shape == (4,)


@pytest.mark.parametrize("moving", [False, True])
@pytest.mark.parametrize("base", [{"name": "idk_dpo"}, {"name": "altpo", "samples": 2, "prompt": "{question}"}])
def test_rule_pairs_what_leaked_with_its_questions_alternates(made_job, base, moving):
    made = made_job({"name": "rule", "base": base, "rounds": 1, "samples": 3, "moving_reference": moving})
    ruled = Rule(made.stages, made.experiment, made.benchmark, "rule", made.job, made.method, None)
    assert [probe.id for probe in ruled.probes] == [each.id for each in made.benchmark.forget]
    result = ruled.run()
    first, second = made.stages.trained
    leaked = len(second.forget) - len(first.forget)
    assert leaked == result.rounds[0].pool > 3
    for name in ("alternate", "forget_reference", "alternate_reference"):
        assert len(getattr(second, name)) == len(second.forget)
    assert [each.question for each in second.alternate] == [each.question for each in second.forget]
    kept = second.alternate_reference[: len(first.forget)] == first.alternate_reference
    assert kept != moving
