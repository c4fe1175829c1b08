"""Generations files of others are read row by row; what cannot be read is named, never dropped in silence."""

import json

import pytest

from engine.cli import main
from engine.errors import UserError
from engine.reporting import generations
from engine.reporting.generations import Generations, Reading, atomic_file, read_generations, write_generations


def read(path, lines):
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))
    reading = Reading()
    return list(read_generations(path, reading)), reading


def test_our_layout(tmp_path):
    row = {"prompt_id": "a", "prompt": "who?", "reference": "Ann Lee", "fact": "Lee", "responses": ["Ann", None, ""]}
    rows, reading = read(tmp_path / "g", [row])
    assert rows == [Generations("a", "who?", "Ann Lee", ["Ann", None, ""], "Lee")]
    assert (reading.rows, reading.malformed) == (1, 0)


def test_the_papers_layout_where_the_same_prompt_stands_twice(tmp_path):
    row = {"prompt": "who?", "ground_truth": "Ann", "responses": [{"response": "x"}, {"response": "y"}]}
    rows, _ = read(tmp_path / "g", [row, row])
    assert [each.prompt_id for each in rows] == ["line-1", "line-2"]
    assert rows[0].responses == ["x", "y"]
    assert rows[0].reference == "Ann"


GOOD = {"prompt_id": "a", "prompt": "q", "reference": "r", "responses": ["x"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b'{"reference": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        (["x"], "expected an object, found list"),
        ({**GOOD, "reference": None}, "no reference"),
        ({**GOOD, "reference": "?!"}, "must hold a word"),
        ({**GOOD, "fact": ""}, "must hold a word"),
        ({**GOOD, "responses": []}, "at least one"),
        ({**GOOD, "responses": [1]}, "found int"),
        ({**GOOD, "responses": [{"text": "x"}]}, "without the key 'response', found text"),
        ({**GOOD, "prompt": 3}, "must be text"),
        (GOOD, "stands on line 1 too"),
    ],
)
def test_a_malformed_line_is_named_and_the_rest_is_read(tmp_path, line, reason):
    rows, reading = read(tmp_path / "g", [GOOD, b"", line, {**GOOD, "prompt_id": "b"}])
    assert [row.prompt_id for row in rows] == ["a", "b"]
    assert reading.malformed == 1
    (found,) = reading.examples
    assert found[0] == 3
    assert reason in found[1]


def test_a_line_too_long_to_hold_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(generations, "LONGEST_LINE", 200)
    exact = json.dumps({**GOOD, "prompt_id": "exact"}).encode()
    exact += b" " * (199 - len(exact))
    rows, reading = read(tmp_path / "g", [GOOD, b"x" * 1000, exact, b"y" * 201])
    assert [row.prompt_id for row in rows] == ["a", "exact"]
    assert [number for number, _ in reading.examples] == [2, 4]
    assert "expected one row a line" in reading.examples[0][1]
    assert reading.bytes_read == (tmp_path / "g").stat().st_size


def test_reading_is_lazy(tmp_path):
    (tmp_path / "g").write_text(json.dumps(GOOD) + "\n{broken\n")
    reading = Reading()
    next(read_generations(tmp_path / "g", reading))
    assert reading.malformed == 0


def test_what_is_written_reads_back_the_same(tmp_path):
    rows = [Generations("a", "q", "r \ud800 é\n", ["x", None]), Generations("b", "", "r", ["\u2028"], "f")]
    write_generations(tmp_path / "g", rows)
    assert list(read_generations(tmp_path / "g", Reading())) == rows


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "out"
    path.write_text("old")

    def fail():
        with atomic_file(path) as stream:
            stream.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "reason"), [("folder", "not a plain file"), ("absent/out", "cannot be written")])
def test_a_path_that_cannot_be_written_is_the_users_mistake(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=reason), atomic_file(tmp_path / name):
        pass


def score(tmp_path, rows, metric, *more):
    write_generations(tmp_path / "g.jsonl", rows)
    out = tmp_path / "s.jsonl"
    code = main(["score", str(tmp_path / "g.jsonl"), "--metric", metric, "--out", str(out), "--json", *more])
    return code, [json.loads(line)["scores"] for line in out.read_text().splitlines()] if out.exists() else None


def test_missing_samples_score_null_with_their_reason(tmp_path, capsys):
    code, scores = score(tmp_path, [Generations("a", "q", "red fox", ["a red fox", None, "no"])], "rouge_l_recall")
    assert (code, scores) == (0, [[1.0, None, 0.0]])
    captured = capsys.readouterr()
    assert json.loads(captured.out)["failures"] == {"no response": 1}
    assert "1 samples failed: no response" in captured.err


def test_only_exact_fact_looks_for_the_fact(tmp_path):
    rows = [Generations("a", "q", "the red fox", ["a red hare"], "red")]
    assert score(tmp_path, rows, "exact_fact")[1] == [[1.0]]
    assert score(tmp_path, rows, "rouge_l_recall")[1] == [[1 / 3]]


def test_rows_scored_together_or_apart_score_the_same(tmp_path, monkeypatch):
    rows = [Generations(str(i), "q", f"word{i} red", [f"word{j}" for j in range(i + 1)]) for i in range(7)]
    together = score(tmp_path, rows, "rouge_l_f1")[1]
    monkeypatch.setattr("engine.commands.score.SAMPLES_AT_ONCE", 3)
    assert score(tmp_path, rows, "rouge_l_f1")[1] == together
    assert [len(scores) for scores in together] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["rouge_recall"], "did you mean 'rouge_l_recall'"),
        (["rouge_l_f1", "--option", "stemer=1"], "unknown 'stemer'"),
        (["rouge_l_f1", "--option", "x"], "expected KEY=VALUE"),
    ],
)
def test_a_mistake_in_the_arguments_is_one_line(tmp_path, capsys, arguments, expected):
    code, scores = score(tmp_path, [Generations("a", "q", "r", ["x"])], *arguments)
    assert (code, scores) == (2, None)
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1
