"""`leakatk leak` from file to exit code."""

import argparse
import json

import numpy as np
import pytest

from engine.cli import main
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


def clustered(path):
    """Six authors of four prompts; three of them leak in every sample, three never."""
    rows = [
        {"prompt_id": f"{author}/{prompt}", "scores": [float(author < 3)] * 8, "cluster": f"author{author}"}
        for author in range(6)
        for prompt in range(4)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_authors_in_the_file_are_what_counts_and_the_output_says_so(tmp_path, capsys):
    run(clustered(tmp_path / "s.jsonl"), "--k", "1", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["clusters"], result["prompts"], result["inference"]) == (6, 24, "population")
    assert result["cluster_error"][0] == pytest.approx(0.224, abs=0.001)  # of six means, three 0 and three 1
    assert result["high"][0] - result["low"][0] > 0.6
    run(tmp_path / "s.jsonl", "--k", "1", "--inference", "prompts", "--json")
    these = json.loads(capsys.readouterr().out)
    assert these["high"][0] - these["low"][0] < 0.5
    run(tmp_path / "s.jsonl", "--k", "1")
    assert "95 % intervals over 6 clusters" in capsys.readouterr().out
    run(tmp_path / "s.jsonl", "--k", "1", "--inference", "prompts")
    assert "for these very prompts" in capsys.readouterr().out


def test_a_plan_names_authors(tmp_path, capsys):
    rows = [
        {"prompt_id": f"{a}/{p}", "scores": [1.0] * (a + 1) + [0.0] * (11 - a), "cluster": f"author{a}"}
        for a in range(6)
        for p in range(4)
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(tmp_path / "s.jsonl", "--k", "1", "--plan", "0.05")
    shown = capsys.readouterr().out
    assert "over clusters like these:" in shown
    assert "over prompts like these" not in shown  # no number of prompts of these authors will do


def test_a_cluster_that_is_no_text_is_a_malformed_line(tmp_path, capsys):
    rows = ['{"prompt_id": "a", "scores": [1, 0]}', '{"prompt_id": "b", "scores": [1, 0], "cluster": []}']
    (tmp_path / "s.jsonl").write_text("\n".join(rows))
    run(tmp_path / "s.jsonl", "--k", "1")
    assert "cluster must be a string, found list" in capsys.readouterr().err


def test_table_is_for_people(scores, capsys):
    assert run(scores, "--plan", "0.1", "--k", "1") == 0
    out = capsys.readouterr().out
    assert "0.3333" in out
    assert "With 95 % confidence leak@1 <=" in out
    assert "+-0.1 at k = 1:" in out


def test_k_beyond_n_only_by_a_named_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("engine.leak.extrapolation.REFITS", 20)
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
        ([("a", [0, 1.0000100000001])], [], r"found 1\.0000100000001"),
        ([("a", [None, None])], [], "every score failed"),
        ([(1, "[]")], [], "line 1: expected an object, found list"),
        ([(1, "[1,\n 2]")], [], "is one JSON array; expected JSON lines"),
        ([(1, '{"prompt_id": "a", "responses": ["x"]}')], [], "`leakatk score` makes scores of them"),
    ],
)
def test_mistakes_are_explained(tmp_path, rows, arguments, says):
    with pytest.raises(UserError, match=says) as caught:
        run(write(tmp_path / "s.jsonl", rows), *arguments)
    assert "\n" not in str(caught.value)


def test_scores_beyond_the_range_by_rounding_are_taken_as_its_ends_and_counted(tmp_path, capsys):
    rows = [("a", [float(np.nextafter(np.float32(1), np.float32(2))), 0.5]), ("b", [-1e-9, 1.0000000002])]
    run(write(tmp_path / "s.jsonl", rows), "--k", "1,2", "--json")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert result["leak"] == [(0.75 + 0.5) / 2, 1.0]
    assert result["rounded"] == 3
    assert "3 scores beyond 0 or 1 by rounding" in captured.err


def test_a_byte_order_mark_costs_no_prompt(tmp_path, capsys):
    text = '{"prompt_id":"a","scores":[1,0]}\n{"prompt_id":"b","scores":[0,0]}\n'
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "s.jsonl").write_bytes(text.encode(encoding))
        run(tmp_path / "s.jsonl", "--k", "1", "--json")
        result = json.loads(capsys.readouterr().out)
        assert (result["leak"], result["prompts"], result["malformed"]) == ([0.25], 2, 0)


def scored(folder, name, rows):
    """The scores that `leakatk score` writes of generations with these (prompt, reference, responses)."""
    lines = [json.dumps({"prompt": p, "ground_truth": r, "responses": texts}) for p, r, texts in rows]
    (folder / f"{name}.generations").write_text("\n".join(lines))
    arguments = ["score", folder / f"{name}.generations", "--metric", "exact_fact", "--out", folder / name]
    assert main([str(each) for each in arguments]) == 0
    return folder / name


def test_rows_without_ids_are_paired_by_prompt_and_reference_in_any_order(tmp_path, capsys):
    rows = [
        (f"who wrote book {each}?", f"author{each} wrote it", [f"author{each} wrote it", "no"]) for each in range(8)
    ]
    model = scored(tmp_path, "model", rows)
    retain = scored(tmp_path, "retain", [*rows[5:], *reversed(rows[:4]), (*rows[4][:2], ["no", "no"])])
    capsys.readouterr()
    run(model, "--retain", retain, "--k", "2", "--json")
    result = json.loads(capsys.readouterr().out)
    assert result["excess"] == [1 / 8]
    (worst,) = result["worst"]
    run(model, "--retain", retain, "--k", "2", "--generations", tmp_path / "model.generations", "--json")
    assert json.loads(capsys.readouterr().out)["worst"][0]["prompt"] == "who wrote book 4?"
    assert worst["excess"] == 1


def test_rows_that_neither_ids_nor_texts_tell_apart_are_not_paired(tmp_path):
    twice = [("q", "r", ["r", "no"]), ("q", "r", ["no", "no"])]
    model, retain = scored(tmp_path, "model", twice), scored(tmp_path, "retain", twice)
    assert run(model, "--k", "1", "--json") == 0
    with pytest.raises(UserError, match="give each row of both generations files its own prompt_id"):
        run(model, "--retain", retain)


def test_missing_file_is_explained(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        run(tmp_path / "none.jsonl")


def test_other_prompts_in_retain_are_a_mistake(scores, tmp_path):
    retain = write(tmp_path / "retain.jsonl", [("a", [0]), ("c", [0])])
    with pytest.raises(UserError, match=r"1 only in the model's, 1 only in the retain's \(first: 'b'\)"):
        run(scores, "--retain", retain)
