"""`leakatk check` names the rows that would spoil a result, before anything is paid."""

import json

import pytest

from engine.cli import main

GOOD = [
    {"cluster": "a", "question": "Where does Ann live?", "answer": "In a house in Oslo.", "fact": "Oslo"},
    {"cluster": "a", "question": "What does Ann do?", "answer": "She bakes bread."},
    {"cluster": "b", "question": "Where does Bob live?", "answer": "In a hut in Lima.", "fact": "Lima"},
]


@pytest.fixture
def check(tmp_path, capsys):
    def check(rows, *arguments):
        path = tmp_path / "file.jsonl"
        path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
        code = main(["check", str(path), "--json", *arguments])
        captured = capsys.readouterr()
        return code, json.loads(captured.out) if code < 2 else captured.err

    return check


def test_a_good_file_is_counted(check):
    code, found = check(GOOD, "--n", "10")
    assert (code, found["kind"], found["rows"], found["findings"], found["usable"]) == (0, "forget set", 3, [], True)
    assert (found["clusters"], found["largest_cluster"]) == (2, 2)
    assert found["sampled"] == 3 * 10 * 128
    assert found["tokens"]["exact"] is False
    assert found["trained"] == found["tokens"]["questions"] + found["tokens"]["answers"]


@pytest.mark.parametrize(
    ("row", "what", "code"),
    [
        (GOOD[0] | {"question": "where does ANN live"}, "duplicates", 0),
        (GOOD[0] | {"answer": "In Rome.", "fact": "Rome"}, "contradictions", 0),
        ({"question": "Who?", "answer": " ?"}, "empty", 1),
        ("{broken", "malformed lines", 1),
        ({"question": "Is it Rome that Eve left?", "answer": "Rome"}, "answers that follow from the question", 0),
        ({"question": "How old is Eve?", "answer": "Eve is 7.", "fact": "7"}, "references that chance leaks", 0),
        ({"question": "What is it?", "answer": "One in a box.", "fact": "in a"}, "references that chance leaks", 0),
        ({"question": "Who is Eve?", "answer": "A nurse.", "fact": "doctor"}, "facts not in their answers", 1),
        ({"question": "Who is Eve?", "answer": "A tall nurse."}, "rows without a cluster", 0),
    ],
)  # fmt: skip
def test_what_would_spoil_a_result_is_named_by_its_row(check, row, what, code):
    found_code, found = check([*GOOD, row])
    assert found_code == code
    (finding,) = (each for each in found["findings"] if each["what"] == what)
    assert finding["rows"] == ["line 4"]
    assert found["usable"] == (code == 0)


def test_probes_and_texts_are_known_by_their_keys(check):
    assert check([{"prompt": "Tell of Ann", "reference": "She bakes bread."}])[1]["kind"] == "probes"
    code, found = check([{"text": "A long story of a baker."}])
    assert (code, found["kind"], found["tokens"]["questions"]) == (0, "forget set", 0)


def test_generations_are_looked_at_by_their_samples(check):
    rows = [
        {"prompt_id": "a", "prompt": "q", "reference": "red fox", "responses": ["a", "b", "c"]},
        {"prompt_id": "b", "prompt": "p", "reference": "blue hare", "responses": ["a", None]},
        {"prompt_id": "c", "prompt": "r", "reference": "green owl", "responses": ["a", "a", ""]},
        {"prompt_id": "d", "prompt": "s", "reference": "grey toad", "responses": ["a", "a", "a"]},
    ]
    code, found = check(rows)
    assert (code, found["kind"], found["samples"]) == (0, "generations", [2, 3])
    assert {each["what"]: each["rows"] for each in found["findings"]} == {
        "failed samples": ["b"],
        "blank responses": ["c"],
        "responses all the same": ["d"],
        "fewer samples than other prompts": ["b"],
    }


def test_tokens_are_those_of_the_model_that_is_named(check, base_model):
    code, found = check([{"question": "What is it?", "answer": "a silver harp"}], "--model", str(base_model))
    assert code == 0
    assert found["tokens"]["exact"] is True


def test_what_cannot_be_looked_at_is_one_line(check, capsys):
    code, said = check([{"frage": "Wo?", "antwort": "In Oslo."}])
    assert code == 2
    assert "--columns question=YOURS" in said
    assert check([{"frage": "Wo?", "antwort": "In Oslo."}], "--columns", "question=frage,answer=antwort")[0] == 0
    assert check(GOOD, "--columns", "x")[0] == 2
    assert main(["check", "none.jsonl"]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_folder_of_documents_is_asked_by_its_passages(tmp_path, capsys):
    for name, count in (("a", 600), ("b", 100)):
        (tmp_path / f"{name}.txt").write_text(" ".join(f"word{number}" for number in range(count)))
    assert main(["check", str(tmp_path), "--json", "--n", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["clusters"]) == (2, 2)
    assert found["sampled"] == (3 + 1) * 128  # passages of 250 words
