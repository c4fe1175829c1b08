"""Generations files of others are read row by row; what cannot be read is named, never dropped in silence."""

import json
import os
import threading

import pytest

from engine import jsonl
from engine.cli import main
from engine.errors import UserError
from engine.jsonl import Reading, atomic_file
from engine.reporting.generations import Generations, read_generations, write_generations


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
    assert rows[0].prompt_id != rows[1].prompt_id
    assert rows[0].responses == ["x", "y"]
    assert rows[0].reference == "Ann"


GOOD = {"prompt_id": "a", "prompt": "q", "reference": "r", "responses": ["x"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{broken", "not JSON"),
        (b'{"reference": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "not JSON"),
        ("x", "expected an object, found str"),
        (["x"], "no reference"),
        ({**GOOD, "reference": None}, "no reference"),
        ({**GOOD, "reference": "?!"}, "must hold a word"),
        ({**GOOD, "fact": ""}, "must hold a word"),
        ({**GOOD, "responses": []}, "at least one"),
        ({**GOOD, "responses": [{"note": "x"}]}, "without the key 'response', found note"),
        ({**GOOD, "prompt": 3}, "must be text"),
        ({**GOOD, "cluster": 0.5}, "cluster must be text, found float"),
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
    monkeypatch.setattr(jsonl, "LONGEST_LINE", 200)
    exact = json.dumps({**GOOD, "prompt_id": "exact"}).encode()
    exact += b" " * (199 - len(exact))
    rows, reading = read(tmp_path / "g", [GOOD, b"x" * 1000, exact, b"y" * 201])
    assert [row.prompt_id for row in rows] == ["a", "exact"]
    assert [number for number, _ in reading.examples] == [2, 4]
    assert "expected one row a line" in reading.examples[0][1]


def test_texts_are_read_one_prompt_at_a_time(tmp_path):
    (tmp_path / "g").write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "prompt_id": "b"}) + "\n")
    reading = Reading()
    next(read_generations(tmp_path / "g", reading))
    assert reading.bytes_read == len(json.dumps(GOOD)) + 1


def test_rows_of_one_prompt_are_joined_wherever_they_stand(tmp_path):
    """One row a sample, sample by sample, as a loop over seeds writes them."""
    rows, reading = read(
        tmp_path / "g",
        [{**GOOD, "prompt_id": each, "responses": [f"{each}{seed}"]} for seed in range(3) for each in "ab"],
    )
    assert [(row.prompt_id, row.responses) for row in rows] == [("a", ["a0", "a1", "a2"]), ("b", ["b0", "b1", "b2"])]
    assert (reading.rows, reading.joined, reading.malformed) == (2, 4, 0)


def test_rows_of_one_sample_without_an_id_are_joined_by_prompt_and_reference(tmp_path):
    row = {"prompt": "q", "reference": "r", "response": "x"}
    rows, _ = read(tmp_path / "g", [row, {**row, "reference": "other"}, {**row, "response": "y"}])
    assert [(each.reference, each.responses) for each in rows] == [("r", ["x", "y"]), ("other", ["x"])]


@pytest.mark.parametrize("key", ["prompt", "reference", "fact", "cluster"])
def test_two_prompts_under_one_id_are_refused(tmp_path, key):
    with pytest.raises(UserError, match=f"g:2: 'a' stands on line 1 too, where the {key} is another"):
        read(tmp_path / "g", [GOOD, {**GOOD, key: "z"}])


def test_a_response_that_is_no_text_loses_that_sample_alone(tmp_path):
    line = b'{"prompt_id": "a", "reference": "r", "responses": ["x", NaN, 3, {"response": "y"}, {"note": 1}, null]}'
    (row,), reading = read(tmp_path / "g", [line])
    assert row.responses == ["x", None, None, "y", None, None]
    assert reading.odd == {
        "a response is NaN": 1,
        "a response is no text but int": 1,
        "a response is an object without its text": 1,
    }


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_every_encoding_reads_the_same(tmp_path, encoding):
    rows = [{**GOOD, "prompt_id": each, "responses": ["Ünï 東京", "\U0001f600"]} for each in "ab"]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    (tmp_path / "g").write_bytes(text.encode(encoding))
    found = list(read_generations(tmp_path / "g", reading := Reading()))
    assert [(row.prompt_id, row.responses) for row in found] == [
        ("a", rows[0]["responses"]),
        ("b", rows[1]["responses"]),
    ]
    assert reading.malformed == 0


def test_a_pipe_is_read_like_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=[json.dumps(GOOD)])
    writer.start()
    assert [row.prompt_id for row in read_generations(tmp_path / "pipe", Reading())] == ["a"]
    writer.join()


REFERENCES = [
    {"prompt_id": "p1", "prompt": "q1", "reference": "r1", "cluster": "c"},
    {"prompt_id": "p2", "prompt": "q2", "reference": "r2", "fact": "f2"},
]
BODY = {"choices": [{"message": {"role": "assistant", "content": "x"}}, {"message": {"content": "y"}}]}
VLLM = {
    "request_id": "0",
    "prompt": "q1",
    "prompt_token_ids": [1],
    "outputs": [{"index": 0, "text": "x"}, {"text": "y"}],
}


@pytest.mark.parametrize(
    "line",
    [
        ["x", "y"],
        {"prompt": "q1", "completions": ["x", "y"]},
        {"prompt": "q1", "generated_text": ["x", "y"]},
        {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q1"}], "responses": ["x", "y"]},
        VLLM,
        {"id": "batch_1", "custom_id": "p1", "response": {"status_code": 200, "body": BODY}, "error": None},
        {"id": "vllm-1", "custom_id": "p1", "response": {"status_code": 200, "request_id": "r", "body": BODY}},
    ],
)
def test_rows_of_others_take_their_references_from_a_file(tmp_path, line):
    (tmp_path / "references").write_text("\n".join(map(json.dumps, REFERENCES)))
    (tmp_path / "g").write_text(json.dumps(line))
    (row,) = read_generations(tmp_path / "g", Reading(), tmp_path / "references")
    assert row == Generations("p1", "q1", "r1", ["x", "y"], None, "c")


def test_a_request_of_a_batch_that_failed_is_a_failed_sample(tmp_path):
    (tmp_path / "references").write_text("\n".join(map(json.dumps, REFERENCES)))
    lines = [
        {"custom_id": "p1", "response": {"status_code": 500, "body": {"error": "x"}}, "error": None},
        {"custom_id": "p2", "response": None, "error": {"code": "expired"}},
        {"custom_id": "p3", "response": {"status_code": 200, "body": BODY}},
    ]
    (tmp_path / "g").write_text("\n".join(map(json.dumps, lines)))
    rows = list(read_generations(tmp_path / "g", reading := Reading(), tmp_path / "references"))
    assert [(row.prompt_id, row.responses) for row in rows] == [("p1", [None]), ("p2", [None])]
    assert reading.examples == [(3, "no reference for it in references")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps([GOOD], indent=1), "is one JSON array"),
        (json.dumps([GOOD]), "a JSON array of rows"),
        (json.dumps({"rows": [GOOD]}, indent=1), r"is one JSON value over many lines \(rows\)"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        ('{"question": "q", "reference": "r", "replies": []}', "found question, reference, replies"),
        ("", "it is empty"),
    ],
)
def test_a_file_of_another_kind_is_answered_by_what_is_read(tmp_path, content, says):
    (tmp_path / "g").write_text(content)
    with pytest.raises(UserError, match=says) as caught:
        list(read_generations(tmp_path / "g", Reading()))
    assert "\n" not in str(caught.value)


def test_what_is_written_reads_back_the_same(tmp_path):
    rows = [Generations("a", "q", "r \ud800 é\n", ["x", None]), Generations("b", "", "r", ["\u2028"], "f", "c")]
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
