"""An audit holds as it was made, and whatever is changed afterwards is named: a text, a score, a digest, a number."""

import json
import math
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from scipy.stats import beta

from engine.cli import main
from engine.fingerprint import fingerprint
from engine.leak import leak_at_k
from engine.store.manifest import digest_of, text_of

pytestmark = pytest.mark.usefixtures("undrawn")

FACTS = ["silent harbor", "crooked medal", "amber road", "pale winter"]
SAID = [["a silent harbor", "no", "no", "no"], ["no"] * 4, ["amber road", "no", "the amber road", "no"], ["no"] * 4]


def samples(path, said):
    """A file as lm-evaluation-harness writes it: four samples of each of four questions, two about one person."""
    path.parent.mkdir()
    rows = [
        {
            "doc_id": index,
            "doc": {"question": f"Question {index}?", "cluster": f"person {index // 2}"},
            "target": fact,
            "arguments": [[f"Question {index}?", {"do_sample": True, "temperature": 1.0}]],
            "resps": [texts],
            "filter": "none",
            "metrics": [],
        }
        for index, (fact, texts) in enumerate(zip(FACTS, said, strict=True))
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with the run of a model that leaks and of a retain model that does not."""
    folder = tmp_path_factory.mktemp("audit")
    npo, retain = (
        samples(folder / "npo" / "samples.jsonl", SAID),
        samples(folder / "r" / "samples.jsonl", [["no"] * 4] * 4),
    )
    store = folder / "store"
    arguments = ["import", npo, "--retain", retain, "--metric", "exact_fact", "--store", str(store)]
    assert main(arguments) == 0
    (run,) = (store / "runs").iterdir()
    assert main(["audit", str(run)]) == 0
    return store


@pytest.fixture
def audited(made, tmp_path):
    """Path of an audit in a store of its own, to be changed."""
    store = shutil.copytree(made, tmp_path / "store")
    return next((store / "runs").iterdir()) / "audit.json"


def verified(capsys, audit, *arguments):
    code = main(["verify", str(audit), *arguments])
    said = capsys.readouterr()
    return code, said.out.splitlines()


def changed(audit, change, sealed=True):
    """Change the audit's values in place, with its own digest over what it then says."""
    values = json.loads(audit.read_text())
    values.pop("sha256")
    change(values)
    audit.write_text(json.dumps(values | {"sha256": fingerprint(values) if sealed else "0" * 64}))


def folder_of(audit, stage, model=0):
    values = json.loads(audit.read_text())
    return audit.parents[2] / values["models"][model]["stages"][stage]["folder"]


def rewrite(folder, column, row, value):
    """Change one cell of a stage's table, its manifest made to fit: only the audit's digest can tell."""
    (path,) = (folder / "units").glob("*.parquet")
    table = pyarrow.parquet.read_table(path)
    cells = table[column].to_pylist()
    cells[row] = value
    index = table.column_names.index(column)
    pyarrow.parquet.write_table(
        table.set_column(index, column, pyarrow.array(cells, table.schema.field(column).type)), path
    )
    return path


def reseal(folder):
    from engine.store.files import file_facts

    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: file_facts(folder / name) for name in manifest["files"]}
    manifest["sha256"] = digest_of(manifest)
    (folder / "manifest.json").write_text(text_of(manifest))


def test_an_audit_holds_as_it_was_made_and_says_so_in_one_line(audited, capsys):
    code, lines = verified(capsys, audited)
    assert code == 0
    assert len(lines) == 1
    assert "32 generations scored again" in lines[0]
    assert verified(capsys, audited, "--json")[1][0].startswith('{"holds": true')


def test_the_numbers_are_those_of_the_samples(audited):
    values = json.loads(audited.read_text())
    npo = values["models"][0]
    (finding,) = npo["findings"]
    scores = [[1, 0, 0, 0], [0] * 4, [1, 0, 1, 0], [0] * 4]
    assert finding["k"] == [1, 2, 4]
    assert finding["leak"] == pytest.approx(leak_at_k(scores, [1, 2, 4]).tolist())
    assert finding["excess"] == pytest.approx(finding["leak"])
    one = beta.ppf(0.95 ** (1 / 4), 3, 2)  # Clopper and Pearson's, of 2 in 4, so that all four prompts' hold together
    assert finding["any_prompt"][0] == pytest.approx(one)
    assert [(each["prompt_id"], each["leak"]) for each in npo["leaked"]] == [("2", 1.0), ("0", 1.0)]
    assert (values["level"], values["forgotten"]["prompts"], values["forgotten"]["clusters"]) == (1, 4, 2)
    up = math.ceil(1000 * finding["bound"][2]) / 1000
    assert f"leak@4 of npo on these 4 prompts is at most {up:.3f}" in values["follows"][0]


def test_nothing_private_stands_in_it_unless_asked_for(audited, capsys):
    page = audited.with_name("audit.html").read_text()
    for text in (audited.read_text(), page):
        assert not [word for word in ("silent harbor", "amber road", "person", "Question") if word in text]
    assert main(["audit", str(audited.parent), "--with-texts"]) == 0
    capsys.readouterr()
    assert "the amber road" in audited.with_name("audit.html").read_text() or "amber road" in audited.read_text()
    assert verified(capsys, audited)[0] == 0
    changed(audited, lambda values: values["models"][0]["leaked"][0]["texts"].update(answer="no"))
    assert verified(capsys, audited) == (1, ["npo: the texts of prompt 2 are not those in the store"])


def test_a_changed_score_is_named(audited, capsys):
    folder = folder_of(audited, "scores T1-p1 exact_fact")
    rewrite(folder, "score", 5, 1.0)
    code, lines = verified(capsys, audited)
    assert code == 1
    assert any("000000.parquet is not the file" in line for line in lines)
    assert "npo T1-p1: stored score of prompt 1, sample 1, is 1; its text scores 0" in lines
    assert len(lines) == 2  # the numbers are those of the texts, which stand as they were


def test_a_changed_text_is_named_by_its_score_and_by_the_numbers_that_move(audited, capsys):
    folder = folder_of(audited, "generations T1-p1")
    rewrite(folder, "response", 5, "a crooked medal")
    reseal(folder)
    code, lines = verified(capsys, audited)
    assert code == 1
    assert any(line.startswith("npo: generations T1-p1: digest of import/") for line in lines)
    assert "npo T1-p1: stored score of prompt 1, sample 1, is 0; its text scores 1" in lines
    assert any("leak at k = 1 is 0.1875, the generations give 0.25" in line for line in lines)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda values: values["models"][0]["findings"][0]["leak"].__setitem__(1, 0.1), "leak at k = 2 is 0.1"),
        (lambda values: values["models"][0]["findings"][0]["bound"].__setitem__(2, 0.1), "bound at k = 4 is 0.1"),
        (lambda values: values["models"][0]["findings"][0].update(failed=3), "failed is 3, the generations give 0"),
        (lambda values: values["models"][0]["leaked"][0].update(prompt_id="3"), "the prompts that leak most"),
        (lambda values: values["asked"].update(confidence=0.9), "low at k = 1"),
        (lambda values: values.update(level=3), "level is 3"),
        (lambda values: values["forgotten"].update(clusters=4), "prompts and clusters are 4 and 2"),
        (lambda values: values["follows"].__setitem__(0, "Nothing leaks."), "follows"),
        (lambda values: values["clusters"].update({"1": 7}), "clusters is 2, the generations give 3"),
        (lambda values: values["forgotten"]["data"].update(prompts="0" * 64), "digest of the prompts"),
        (lambda values: values["models"][0].update(identity="m"), "digest of the model"),
        (
            lambda values: values["models"][1]["stages"]["scores T1-p1 exact_fact"].update(sha256="f" * 64),
            "retain: scores T1-p1 exact_fact: digest",
        ),
        (
            lambda values: values["models"][1]["stages"]["scores T1-p1 exact_fact"].update(fingerprint="f" * 64),
            "was made of other inputs",
        ),
    ],
)
def test_whatever_is_changed_in_an_audit_is_named(audited, capsys, change, named):
    changed(audited, change)
    code, lines = verified(capsys, audited)
    assert code == 1
    assert any(named in line for line in lines), lines


def test_an_audit_that_was_not_sealed_again_is_named(audited, capsys):
    changed(audited, lambda values: values.update(run="another"), sealed=False)
    code, lines = verified(capsys, audited)
    assert code == 1
    assert lines == ["audit.json was changed after it was written: its own digest differs"]


def test_samples_that_are_gone_are_named(audited, capsys):
    shutil.rmtree(folder_of(audited, "generations T1-p1"))
    code, lines = verified(capsys, audited)
    assert code == 1
    assert any("is not in the store" in line for line in lines)
    assert lines[-1].startswith("the numbers were not computed again")


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1, "sha256": ""}', '{"version": 2, "sha256": ""}'])
def test_what_is_no_audit_is_one_line(audited, tmp_path, capsys, text):
    (tmp_path / "x.json").write_text(text)
    assert main(["verify", str(tmp_path / "x.json"), "--store", str(audited.parents[2])]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_store_without_the_samples_is_one_line(audited, tmp_path, capsys):
    for store in (tmp_path / "nowhere", tmp_path):
        assert main(["verify", str(audited), "--store", str(store)]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert main(["audit", str(audited.parent), "--store", str(tmp_path)]) == 2
    assert "give the store that has the samples" in capsys.readouterr().err


def test_an_audit_of_greedy_answers_says_what_it_cannot_say(tmp_path, capsys):
    said = [[texts[0]] for texts in SAID]
    log = Path(samples(tmp_path / "npo" / "samples.jsonl", said))
    log.write_text(log.read_text().replace('"do_sample": true, "temperature": 1.0', '"do_sample": false'))
    assert main(["import", str(log), "--metric", "exact_fact", "--store", str(tmp_path / "store")]) == 0
    (run,) = (tmp_path / "store" / "runs").iterdir()
    capsys.readouterr()
    assert main(["audit", str(run)]) == 0
    out = capsys.readouterr().out
    assert "level 0 of 3" in out
    assert "Nothing was sampled" in out
    assert "There was no retain model" in out
    assert "at most" not in out
    assert main(["verify", str(run / "audit.json")]) == 0


def places(value, at=()):
    """Every place in nested values, each below its parent."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield (*at, key)
        yield from places(child, (*at, key))


def test_a_broken_audit_is_told_and_never_a_traceback(made, tmp_path, capsys):
    """Whatever stands at whatever place: a line says what differs, or that this is no audit."""
    audit = next((made / "runs").iterdir()) / "audit.json"
    values = json.loads(audit.read_text())
    del values["sha256"]
    everywhere = [place for place in places(values) if place[0] not in ("samples_made_by", "audited_by")]
    for number, place in enumerate(everywhere):
        broken = json.loads(json.dumps(values))
        inner = broken
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = (None, [], {}, "../x", -1.5, [{}])[number % 6]
        unlike = inner[place[-1]] != values_at(values, place)
        (tmp_path / "audit.json").write_text(json.dumps(broken | {"sha256": fingerprint(broken)}))
        code = main(["verify", str(tmp_path / "audit.json"), "--store", str(made)])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, (place, inner[place[-1]], said.err)
        if unlike and place[0] in ("models", "asked", "clusters", "level", "follows", "does_not_follow"):
            assert code in (1, 2) or place[-1] in CLAIMS_ALONE or place[1:2] == ("decodings",), (place, said.out)


CLAIMS_ALONE = (  # what a log's answers cannot tell: what was done to a model, and how it was asked
    *("name", "role", "method", "n", "max_new_tokens", "template", "system", "compat", "seed", "attacks", "adaptive"),
    *("top_p", "top_k", "temperature"),
)


def values_at(values, place):
    for key in place:
        values = values[key]
    return values


def test_an_audit_is_checked_against_a_store_at_a_url_from_another_machine(s3, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LEAKATK_CACHE", str(tmp_path / "one"))
    npo = samples(tmp_path / "npo" / "samples.jsonl", SAID)
    assert main(["import", npo, "--metric", "exact_fact", "--store", f"{s3}/store", "--json"]) == 0
    run = json.loads(capsys.readouterr().out)["run"]
    assert main(["audit", f"{s3}/store/runs/{Path(run).name}", "--out", str(tmp_path / "out")]) == 0
    monkeypatch.setenv("LEAKATK_CACHE", str(tmp_path / "other"))
    capsys.readouterr()
    assert verified(capsys, tmp_path / "out" / "audit.json", "--store", f"{s3}/store")[0] == 0
