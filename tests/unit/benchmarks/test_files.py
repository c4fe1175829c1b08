"""A user's own files become a benchmark; every bad row is one line that says where and what to do."""

import csv
import dataclasses
import json

import pyarrow
import pyarrow.parquet
import pytest

from benchmarks.files import Files, read_examples
from engine.errors import UserError

QUESTIONS = [
    {"id": 7, "cluster": "ann", "question": "Where does Ann live?", "answer": "In Oslo.", "fact": "Oslo",
     "paraphrases": ["Ann lives where?"], "wrong_answers": ["In Rome."]},
    {"question": "What is 5?", "answer": "1931", "wrong_answers": ["7", "8"]},
]  # fmt: skip
KEPT = [{"question": "Who sings?", "answer": "Bob sings."}]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def retain(tmp_path):
    return write(tmp_path / "retain.jsonl", KEPT)


def test_questions_become_examples_and_probes(tmp_path, retain):
    files = Files.load(forget=write(tmp_path / "forget.jsonl", QUESTIONS), retain=retain, core_metric="exact_fact")
    assert [(each.id, each.question, each.answer) for each in files.forget] == [
        ("forget/7", "Where does Ann live?", "In Oslo."),
        ("forget/1", "What is 5?", "1931"),
    ]
    first, second = files.group("forget")
    assert (first.prompt, first.reference, first.fact, first.cluster) == (
        "Where does Ann live?",
        "In Oslo.",
        "Oslo",
        "ann",
    )
    assert second.wrong_answers == ("7", "8")
    (paraphrase,) = files.group("forget_paraphrase")
    assert (paraphrase.id, paraphrase.prompt, paraphrase.cluster) == ("forget/7/paraphrase0", "Ann lives where?", "ann")
    assert [probe.prompt for probe in files.group("retain")] == ["Who sings?"]
    assert files.protocol.leak_group == "forget"
    assert files.protocol.utility_group == "retain"
    assert files.protocol.core_metric == "exact_fact"
    assert files.protocol.forget_group == "forget"  # every question has wrong answers
    assert files.data.keys() == {"forget", "retain"}


def test_models_that_are_fine_tuned_here_learn_the_paraphrases_where_it_is_asked_for(tmp_path):
    forget = write(tmp_path / "forget.jsonl", QUESTIONS)
    retain = write(tmp_path / "retain.jsonl", [KEPT[0] | {"paraphrases": ["Who is it that sings?"]}])
    plain = Files.load(forget=forget, retain=retain)
    assert plain.finetune_target == plain.forget + plain.retain
    taught = Files.load(forget=forget, retain=retain, learn_paraphrases=True)
    assert taught.forget == plain.forget
    assert [(each.question, each.answer) for each in taught.finetune_forget] == [
        ("Where does Ann live?", "In Oslo."),
        ("What is 5?", "1931"),
        ("Ann lives where?", "In Oslo."),
    ]
    assert [each.question for each in taught.finetune_retain] == ["Who sings?", "Who is it that sings?"]
    ids = [each.id for each in taught.finetune_target]
    assert len(set(ids)) == len(ids)


def rows_in(folder, kind):
    """The same rows as a file of this kind; in cells, lists are JSON."""
    rows = [{key: row.get(key) for key in QUESTIONS[0]} for row in QUESTIONS]
    path = folder / f"forget.{kind}"
    if kind == "json":
        path.write_text(json.dumps(rows, indent=1), encoding="utf-8-sig")
    elif kind == "parquet":
        rows = [{**row, "id": row["id"] and str(row["id"])} for row in rows]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif kind in ("csv", "tsv"):
        with path.open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, QUESTIONS[0], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()} for row in rows)
    else:
        (folder / "docs").mkdir()
        write(folder / "docs" / "b.jsonl", QUESTIONS[1:])
        write(folder / "docs" / "a.jsonl", QUESTIONS[:1])
        (folder / "docs" / "README.md").write_text("not a row")
        return folder / "docs"
    return path


@pytest.mark.parametrize("kind", ["json", "parquet", "csv", "tsv", "folder"])
def test_every_kind_of_file_reads_the_same(tmp_path, retain, kind):
    first = Files.load(forget=write(tmp_path / "forget.jsonl", QUESTIONS), retain=retain)
    other = Files.load(forget=str(rows_in(tmp_path, kind)), retain=retain)
    assert other.forget == first.forget
    assert other.probes == first.probes


def test_columns_of_other_names_are_renamed(tmp_path, retain):
    rows = [{"frage": "Wo wohnt Ann?", "antwort": "In Oslo."}]
    columns = {"question": "frage", "answer": "antwort"}
    path = write(tmp_path / "forget.jsonl", rows)
    for options in ({"forget": path, "columns": columns}, {"forget": {"path": path, "columns": columns}}):
        assert Files.load(retain=retain, **options).forget[0].question == "Wo wohnt Ann?"


def test_running_text_is_asked_by_its_beginnings(tmp_path):
    words = [f"word{number}" for number in range(100)]
    for name in ("one", "two"):
        (tmp_path / "docs" / f"{name}.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "docs" / f"{name}.txt").write_text("\n".join(words), encoding="utf-8-sig")
    files = Files.load(forget=str(tmp_path / "docs"), retain=str(tmp_path / "docs"), prompt_words=30, answer_words=10)
    assert [(each.id, each.question, each.answer) for each in files.forget] == [
        ("forget/one.txt", "", "\n".join(words)),
        ("forget/two.txt", "", "\n".join(words)),
    ]
    probes = files.group("forget")
    assert len(probes) == 6  # 40, 40 and 20 words of each
    assert probes[1].prompt == "\n".join(words[40:70])
    assert probes[1].reference == "\n".join(words[70:80])
    assert probes[2].prompt == "\n".join(words[80:95])
    assert (probes[1].raw, probes[1].cut_reference, probes[1].cluster) == (True, True, "forget/one.txt")
    fewer = Files.load(
        forget=str(tmp_path / "docs"), retain=str(tmp_path / "docs"), prompt_words=30, answer_words=10, passages=2
    )
    assert [probe.cluster for probe in fewer.group("forget")] == ["forget/one.txt", "forget/two.txt"]


def test_text_without_spaces_is_asked_by_its_beginnings_too(tmp_path, retain):
    (tmp_path / "a.txt").write_text("北京是首都上海是城市" * 20)
    files = Files.load(forget=str(tmp_path / "a.txt"), retain=retain, prompt_words=15, answer_words=10)
    assert files.group("forget")[0].prompt == ("北京是首都上海是城市" * 20)[:30]


def test_a_group_of_the_probes_takes_the_place_of_its_namesake(tmp_path, retain):
    probes = [
        {"prompt": "Tell me of Ann", "reference": "Oslo", "cluster": "ann"},
        {"prompt": "Ann!", "reference": "Oslo", "group": "forget_shout"},
    ]
    files = Files.load(
        forget=write(tmp_path / "forget.jsonl", QUESTIONS), retain=retain, probes=write(tmp_path / "p.jsonl", probes)
    )
    assert [probe.prompt for probe in files.group("forget")] == ["Tell me of Ann"]
    assert [probe.prompt for probe in files.group("forget_shout")] == ["Ann!"]
    assert len(files.group("forget_paraphrase")) == 1


def test_utility_is_of_its_own_questions_where_they_are_given(tmp_path):
    forget = write(tmp_path / "forget.jsonl", QUESTIONS)
    files = Files.load(forget=forget, utility=write(tmp_path / "u.jsonl", KEPT))
    assert files.protocol.utility_group == "utility"
    assert [probe.prompt for probe in files.group("utility")] == ["Who sings?"]
    assert files.retain == []


def test_a_file_alone_gives_examples_to_train_on(tmp_path):
    rows = [*KEPT, {"text": "A text."}]
    assert [(each.question, each.answer) for each in read_examples(write(tmp_path / "f.jsonl", rows))] == [
        ("Who sings?", "Bob sings."),
        ("", "A text."),
    ]
    with pytest.raises(UserError, match=r"on none\.jsonl: there is no such file"):
        read_examples("none.jsonl")


def test_the_data_are_known_by_what_they_hold(tmp_path, retain):
    forget = tmp_path / "forget.jsonl"
    before = Files.load(forget=write(forget, QUESTIONS), retain=retain).data
    other = Files.load(forget=write(tmp_path / "other.jsonl", QUESTIONS), retain=retain).data
    assert other == before
    assert Files.load(forget=write(forget, QUESTIONS[:1]), retain=retain).data["forget"] != before["forget"]


def test_clusters_change_no_sample(tmp_path, retain):
    from engine.stages.base import fingerprint_probes

    probes = Files.load(forget=write(tmp_path / "forget.jsonl", QUESTIONS), retain=retain).probes
    assert fingerprint_probes(probes) == fingerprint_probes(
        [dataclasses.replace(each, cluster=None) for each in probes]
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no row in it"),
        ([{"question": "q"}], "forget.jsonl:1: has no answer; found question; benchmark.columns names yours"),
        ([{"q": "q", "a": "a"}], "expected question and answer, or text; found q, a"),
        ([{"question": "q", "answer": " "}], "answer must be text that holds a word, found ' '"),
        ([{"question": ["q"], "answer": "a"}], "question must be text"),
        ([{"text": "?!"}], "text must be text that holds a word"),
        ([{"text": "too short"}], "no text has the 20 words"),
        ([*QUESTIONS, {**QUESTIONS[0]}], "id 'forget/7' stands twice"),
        ([{**QUESTIONS[0], "paraphrases": [3]}], "paraphrases must be a list of texts"),
        ([{**QUESTIONS[0], "cluster": 0.5}], "cluster must be a short text or a whole number"),
        ([{**QUESTIONS[0], "fact": ""}], "fact must be text that holds a word"),
        ("{broken\n", "1 lines that cannot be read; line 1: not JSON"),
        ('["a"]\n', "expected an object, found list"),
    ],
)
def test_every_bad_row_is_one_line(tmp_path, retain, rows, says):
    path = tmp_path / "forget.jsonl"
    path.write_text(rows) if isinstance(rows, str) else write(path, rows)
    with pytest.raises(UserError) as caught:
        Files.load(forget=str(path), retain=retain)
    assert says in str(caught.value)
    assert "benchmark.forget" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"forget": "none.jsonl"}, "there is no such file or folder"),
        ({"forget": "./none"}, "there is no such file or folder"),
        ({"forget": "a.pdf"}, "files of this kind are not read; read are .jsonl"),
        ({"forget": "bad.csv"}, "bad.csv:2: expected 2 cells"),
        ({"forget": "bad.parquet"}, "not parquet"),
        ({"forget": "bad.json"}, "not JSON"),
        ({"forget": "latin.txt"}, "is not readable as UTF-8"),
        (
            {"forget": {"path": "good.jsonl", "columns": {"question": "frage"}}},
            "no column 'frage'; found question, answer",
        ),
        ({"forget": "good.jsonl", "retain": None}, "benchmark.retain: give a retain set"),
    ],
)
def test_every_bad_file_is_one_line(tmp_path, retain, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "good.jsonl", KEPT)
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    (tmp_path / "bad.csv").write_text("question,answer\na\n")
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(UserError) as caught:
        Files.load(**{"retain": retain} | options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
