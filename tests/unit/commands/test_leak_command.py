"""`leakatk leak` from file to exit code."""

import argparse
import json

import pytest

from engine.commands import leak
from engine.errors import UserError

MODEL = {"a": [1, 0, 1, 0], "b": [0, 0, 0.5, None]}


def write(path, rows):
    lines = [json.dumps({"prompt_id": key, "scores": row}) if isinstance(key, str) else row for key, row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def run(*argv):
    parser = argparse.ArgumentParser()
    leak.add_arguments(parser)
    return leak.run(parser.parse_args([str(argument) for argument in argv]))


@pytest.fixture
def scores(tmp_path):
    return write(tmp_path / "scores.jsonl", MODEL.items())


def test_json_holds_the_curve(scores, capsys):
    assert run(scores, "--k", "1,2", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["k"] == [1, 2]
    assert result["leak"] == pytest.approx([(1 / 2 + 1 / 6) / 2, (5 / 6 + 1 / 3) / 2])
    assert result["mean"] == pytest.approx((1 / 2 + 1 / 6) / 2)
    assert (result["prompts"], result["samples"], result["failed"], result["malformed"]) == (2, 4, 1, 0)
    assert result["low"][0] < result["leak"][0] < result["high"][0]
    assert result["bound"][0] > result["leak"][0]
    assert "excess" not in result


def test_retain_is_matched_by_prompt_id_in_any_order(scores, tmp_path, capsys):
    retain = write(tmp_path / "retain.jsonl", reversed(MODEL.items()))
    run(scores, "--retain", retain, "--k", "1,2", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["excess"] == [0, 0]
    assert result["excess_low"][0] <= 0 <= result["excess_high"][0]
    assert result["worst"] == []


def test_worst_prompts_are_named(scores, tmp_path, capsys):
    retain = write(tmp_path / "retain.jsonl", [("a", [0, 0, 0, 0]), ("b", [1, 1, 1, 1])])
    run(scores, "--retain", retain, "--k", "1", "--json")
    worst = json.loads(capsys.readouterr().out)["worst"]
    assert worst == [{"prompt_id": "a", "excess": 0.5, "leak": 0.5, "sample": 0}]


def test_the_worst_samples_texts_come_from_the_generations(scores, tmp_path, capsys):
    retain = write(tmp_path / "retain.jsonl", [("a", [0, 0, 0, 0]), ("b", [1, 1, 1, 1])])
    row = {"prompt_id": "a", "prompt": "Who?", "reference": "Ada", "responses": ["It was [red]Ada[/red].", "", "", ""]}
    (tmp_path / "g.jsonl").write_text(json.dumps(row) + "\n")
    run(scores, "--retain", retain, "--k", "1", "--generations", tmp_path / "g.jsonl", "--json")
    worst = json.loads(capsys.readouterr().out)["worst"]
    assert [(each["prompt"], each["response"]) for each in worst] == [("Who?", "It was [red]Ada[/red].")]
    run(scores, "--retain", retain, "--k", "1", "--generations", tmp_path / "g.jsonl")
    assert "response: It was [red]Ada[/red]." in capsys.readouterr().out


def test_bounds_of_every_prompt_are_written_alone_and_together(tmp_path):
    file = write(tmp_path / "s.jsonl", [("a", [0] * 20), ("b", [1] + [0] * 19), ("c", [None] * 20)])
    assert run(file, "--k", "1,4", "--prompts", tmp_path / "out.jsonl", "--json") == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["leak"] for row in rows] == [[0, 0], pytest.approx([0.05, 0.2]), None]
    assert rows[0]["bound"][0] == pytest.approx(1 - 0.05 ** (1 / 20))  # no leak in 20 samples
    assert rows[0]["bound_all"][0] == pytest.approx(1 - (1 - 0.95 ** (1 / 3)) ** (1 / 20))
    assert rows[2]["bound"] == [1, 1]


def test_table_is_for_people(scores, capsys):
    assert run(scores, "--plan", "0.1", "--k", "1") == 0
    out = capsys.readouterr().out
    assert "0.3333" in out
    assert "With 95 % confidence leak@1 <=" in out
    assert "+-0.1 at k = 1:" in out


def test_k_beyond_n_only_by_a_named_model(tmp_path, capsys):
    file = write(tmp_path / "s.jsonl", [(f"p{i}", [float(j < i % 4) for j in range(8)]) for i in range(24)])
    with pytest.raises(UserError, match="no unbiased estimate"):
        run(file, "--k", "4,64")
    run(file, "--k", "4,64", "--beyond", "beta-binomial", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["k"] == [4]
    assert result["leak"][0] < result["beyond"]["leak"][0] <= 1
    assert result["beyond"]["k"] == [64]


def test_threshold_makes_scores_binary(tmp_path, capsys):
    run(write(tmp_path / "s.jsonl", [("a", [0.2, 0.5, 0.9, None])]), "--threshold", "0.5", "--k", "1", "--json")
    assert json.loads(capsys.readouterr().out)["leak"] == pytest.approx([2 / 3])


def test_unknown_error_at_k_equal_n_is_null_in_json(tmp_path, capsys):
    run(write(tmp_path / "s.jsonl", [("a", [0, 1])]), "--k", "2", "--json")
    assert json.loads(capsys.readouterr().out)["sampling_error"] == [None]


def test_malformed_lines_are_named_and_counted(tmp_path, capsys):
    rows = [("a", [0, 1]), (1, "{not json"), (1, '{"prompt_id": "b"}'), (1, '{"prompt_id": "c", "scores": ["x"]}')]
    run(write(tmp_path / "s.jsonl", rows), "--json")
    captured = capsys.readouterr()
    assert json.loads(captured.out)["malformed"] == 3
    assert "s.jsonl:2: line left out: not JSON" in captured.err
    assert "s.jsonl:3: line left out: no scores; found prompt_id" in captured.err
    assert "s.jsonl:4: line left out: scores must be numbers or null, found 'x'" in captured.err


@pytest.mark.parametrize(
    ("rows", "arguments", "says"),
    [
        ([("a", [0, 1])], ["--k", "3"], r"k must be in 1\.\.2"),
        ([("a", [0, 1])], ["--k", "one"], "--k must be integers"),
        ([("a", [0, 1])], ["--confidence", "95"], "--confidence must be between 0 and 1"),
        ([("a", [0, 1])], ["--plan", "0"], "half-width must be positive"),
        ([("a", [0, 1]), ("a", [0, 0])], [], ":2: prompt_id 'a' stands on line 1 too"),
        ([("a", [0, 1.5])], [], r":1: scores must lie in \[0, 1\], found 1.5"),
        ([("a", [None, None])], [], "every score failed"),
        ([(1, "[]")], [], "line 1: expected an object, found list"),
    ],
)
def test_mistakes_are_explained(tmp_path, rows, arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        run(write(tmp_path / "s.jsonl", rows), *arguments)
    assert "\n" not in str(caught.value)


def test_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        run(tmp_path / "none.jsonl")


def test_other_prompts_in_retain_are_a_mistake(scores, tmp_path):
    retain = write(tmp_path / "retain.jsonl", [("a", [0]), ("c", [0])])
    with pytest.raises(UserError, match=r"1 only in the model's, 1 only in the retain's \(first: 'b'\)"):
        run(scores, "--retain", retain)
