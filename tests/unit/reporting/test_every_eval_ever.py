"""The form of Every Eval Ever: what its schema 0.2.2 asks of a file, and the run's numbers in it.

The rules below are those of eval.schema.json and instance_level_eval.schema.json that a file of ours can break.
"""

import hashlib
import json
from pathlib import Path

import jsonschema
import pytest

from engine.cli import main
from engine.reporting.results import read_results
from tests.made import make_run

TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}


def shape(required, **properties):
    return {"type": "object", "required": required.split(), "properties": properties}


UNCERTAINTY = shape(
    "",
    standard_error=shape("value", value={"type": "number"}, method={"type": "string"}),
    confidence_interval=shape(
        "lower upper", lower={"type": "number"}, upper={"type": "number"}, confidence_level={"maximum": 1, "minimum": 0}
    ),
    num_samples={"type": "integer"},
)
ARGUMENTS = shape("", temperature={"type": "number"}, top_p={"type": "number"}, max_tokens={"type": "integer"})
ARGUMENTS |= {"additionalProperties": False}
ARGUMENTS["properties"]["top_k"] = {"type": ["null", "number"]}
RESULT = shape(
    "evaluation_name source_data metric_config score_details",
    evaluation_result_id={"type": "string"},
    source_data=shape("dataset_name source_type", source_type={"const": "other"}, additional_details=TEXTS),
    metric_config=shape(
        "lower_is_better min_score max_score",
        lower_is_better={"type": "boolean"},
        score_type={"const": "continuous"},
        metric_parameters={"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}},
    ),
    score_details=shape("score", score={"type": "number"}, details=TEXTS, uncertainty=UNCERTAINTY),
    generation_config=shape("", generation_args=ARGUMENTS, additional_details=TEXTS),
)
EVALUATION = shape(
    "schema_version evaluation_id retrieved_timestamp source_metadata model_info eval_library evaluation_results",
    schema_version={"const": "0.2.2"},
    evaluation_id={"type": "string"},
    evaluation_timestamp={"type": "string"},
    retrieved_timestamp={"type": "string", "pattern": r"^\d+$"},
    source_metadata=shape(
        "source_type source_organization_name evaluator_relationship",
        source_type={"enum": ["documentation", "evaluation_run"]},
        evaluator_relationship={"enum": ["first_party", "third_party", "collaborative", "other"]},
    ),
    eval_library=shape("name version", version={"type": "string"}, additional_details=TEXTS),
    model_info=shape("name id", name={"type": "string"}, id={"type": "string"}, additional_details=TEXTS),
    evaluation_results={"type": "array", "items": RESULT},
    detailed_evaluation_results=shape("", format={"enum": ["jsonl", "json"]}, total_rows={"type": "integer"}),
) | {"additionalProperties": False}
ATTRIBUTION = shape(
    "turn_idx source extracted_value extraction_method is_terminal",
    turn_idx={"type": "integer"},
    is_terminal={"type": "boolean"},
)
SAMPLE = shape(
    "schema_version evaluation_id model_id evaluation_name sample_id interaction_type input output answer_attribution "
    "evaluation",
    schema_version={"type": "string"},
    evaluation_id={"type": "string"},
    model_id={"type": "string"},
    evaluation_name={"type": "string"},
    evaluation_result_id={"type": "string"},
    sample_id={"type": "string"},
    sample_hash={"type": "string"},
    interaction_type={"const": "single_turn"},
    input=shape("raw reference", raw={"type": "string"}, reference={"type": "array", "items": {"type": "string"}}),
    output=shape("raw", raw={"type": "array", "items": {"type": "string"}}),
    answer_attribution={"type": "array", "items": ATTRIBUTION},
    evaluation=shape("score is_correct", score={"type": "number"}, is_correct={"type": "boolean"}),
    metadata=TEXTS,
) | {"additionalProperties": False}
FACTS = ["silent harbor", "crooked medal"]
MODELS = {
    ("retain", "retain"): [["no"] * 4] * 2,
    ("npo", "unlearned"): [["no", "silent harbor", "no", "no"], ["no"] * 4],
}


@pytest.fixture
def run(tmp_path):
    benchmark = {"name": "made", "forget": "/home/ann/secret/people.jsonl"}
    return make_run(tmp_path / "store", "mine", MODELS, FACTS, benchmark=benchmark)


def exported(capsys, run, out, *arguments):
    command = ["export", str(run), "--format", "every-eval-ever", "--out", str(out), "--json", *arguments]
    assert main(command) == 0
    paths = [Path(path) for path in json.loads(capsys.readouterr().out)["files"]]
    return {path.name.partition("_")[2] or json.loads(path.read_text())["model_info"]["name"]: path
            for path in paths if "retain" not in str(path)}  # fmt: skip


def test_a_file_keeps_the_rules_and_holds_every_number_with_its_uncertainty(run, tmp_path, capsys):
    (path,) = exported(capsys, run, tmp_path / "out", "--organization", "us").values()
    record = json.loads(path.read_text())
    jsonschema.Draft7Validator(EVALUATION).validate(record)
    assert path.parent == tmp_path / "out" / "made" / "leakatk" / "mine-npo"
    curve = read_results(run).models["npo"].curves[0]
    found = {each["evaluation_result_id"]: each for each in record["evaluation_results"]}
    assert len(found) == len(record["evaluation_results"]) == 2 * len(curve.k) + 1
    for place, k in enumerate(curve.k):
        leak = found[f"leakatk.leak_at_k.forget.exact_fact.T1-p1.k{k}"]["score_details"]
        assert leak["score"] == curve.leak[place]
        interval = leak["uncertainty"]["confidence_interval"]
        assert (interval["lower"], interval["upper"]) == (curve.low[place], curve.high[place])
        assert interval["confidence_level"] == 0.95
        assert leak["uncertainty"]["num_samples"] == 2
        excess = found[f"leakatk.excess_leak_at_k.forget.exact_fact.T1-p1.k{k}"]
        assert excess["score_details"]["score"] == curve.excess[place]
        assert excess["metric_config"]["metric_parameters"] == {"k": k, "n": 4, "score": "exact_fact"}
    assert found["leakatk.utility"]["metric_config"]["lower_is_better"] is False
    assert record["source_metadata"]["source_organization_name"] == "us"
    assert not [word for word in ("silent harbor", "ann") if word in path.read_text()]
    assert "people.jsonl" in path.read_text()


def test_samples_stand_beside_it_where_texts_are_asked_for(run, tmp_path, capsys):
    paths = exported(capsys, run, tmp_path / "out", "--with-texts")
    record = json.loads(paths["npo"].read_text())
    jsonschema.Draft7Validator(EVALUATION).validate(record)
    detailed = record["detailed_evaluation_results"]
    samples = paths["samples.jsonl"]
    assert detailed["checksum"] == hashlib.sha256(samples.read_bytes()).hexdigest()
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert (len(rows), detailed["total_rows"], detailed["file_path"]) == (2, 2, samples.name)
    for row in rows:
        jsonschema.Draft7Validator(SAMPLE).validate(row)
        assert row["evaluation_id"] == record["evaluation_id"]
        assert row["evaluation_result_id"] in [each["evaluation_result_id"] for each in record["evaluation_results"]]
    assert [row["output"]["raw"] for row in rows] == [MODELS["npo", "unlearned"][0], ["no"] * 4]
    assert [row["evaluation"] for row in rows] == [
        {"score": 1.0, "is_correct": True},
        {"score": 0.0, "is_correct": False},
    ]
    assert rows[0]["answer_attribution"][0]["extracted_value"] == "silent harbor"


def test_options_of_another_format_are_refused(run, capsys):
    assert main(["export", str(run), "--with-texts"]) == 2
    assert "every-eval-ever" in capsys.readouterr().err
