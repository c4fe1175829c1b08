"""Scoring few texts needs no cluster: the driver does it, to the same files."""

import pyarrow
import pyarrow.parquet
import pytest

from engine.cluster.reporter import Silent
from engine.cluster.units import unit_path
from engine.stages import score
from engine.stages.score import ScoreJob, group_scores


@pytest.fixture
def generations(tmp_path):
    (tmp_path / "units").mkdir()
    for unit in range(2):
        rows = {
            "prompt_id": [f"p{unit}"] * 2,
            "group": ["forget"] * 2,
            "sample": [0, 1],
            "prompt": ["Where?"] * 2,
            "reference": ["in the old mill"] * 2,
            "fact": ["mill"] * 2,
            "response": ["at the mill", "nowhere"],
        }
        pyarrow.parquet.write_table(pyarrow.table(rows), unit_path(tmp_path / "units", unit))
    return tmp_path


def test_few_texts_are_scored_without_a_cluster(generations, tmp_path):
    import ray

    (tmp_path / "scores").mkdir()
    facts = ScoreJob(str(generations), 2, "exact_fact").run(tmp_path / "scores", Silent())
    assert not ray.is_initialized()
    assert facts["failures"] == {}
    assert group_scores(tmp_path / "scores")["forget"].scores.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_many_texts_and_metrics_that_run_a_model_go_to_workers(generations, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(score, "fan_out", lambda *_, here, **__: asked.append(here))
    monkeypatch.setattr(score, "unit_counts", lambda folder: {})
    monkeypatch.setattr(score, "unit_seconds", lambda folder: 0.0)
    for metric, few in (("rouge_l_f1", 10**6), ("rouge_l_f1", 10), ("cosine", 10**6)):
        monkeypatch.setattr(score, "FEW_TEXTS", few)
        ScoreJob(str(generations), 2, metric).run(tmp_path, Silent())
    assert asked == [True, False, False]
