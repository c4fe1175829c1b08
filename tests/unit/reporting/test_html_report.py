"""The HTML report: its verdict, what it shows of the texts, and that it shows them only."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from engine.cli import main
from engine.reporting.html_report import heats, write_report
from engine.reporting.leaked_passages import leaked_pieces, worst_prompts
from engine.reporting.records import BeyondEstimate
from engine.reporting.results import read_results
from engine.reporting.table import table_k
from engine.reporting.verdict import OrderChanges, caution, order_changes, verdict
from tests.made import make_run

FACTS = ["silent harbor of ash", "crooked medal of bells", "hollow hill of thorns"]
HOSTILE = "<script>alert(1)</script> silent harbor of ash <img src=x onerror=alert(2)>"


def model(*leaks, samples=8):
    """Responses [prompts][samples]: leaks[i] samples of prompt i tell its fact, the last ones."""
    return [
        ["nothing"] * (samples - count) + [f"It is {fact}."] * count for count, fact in zip(leaks, FACTS, strict=True)
    ]


MODELS = {
    ("target", "target"): model(8, 8, 8),
    ("retain", "retain"): model(0, 0, 0),
    ("npo", "unlearned"): [["nothing"] * 7 + [HOSTILE], *model(0, 2, 0)[1:]],
    ("rule-npo", "unlearned"): model(0, 0, 0),
    ("npo-control", "control"): model(0, 1, 0),
}


class Page(HTMLParser):
    """The tags of a page and the texts of its marks."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.marks, self.open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = tag == "mark"

    def handle_data(self, data):
        if self.open:
            self.marks.append(data)
            self.open = False


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("store"), "small", MODELS, FACTS, k=(1, 4, 8))


@pytest.fixture
def undrawn(monkeypatch):
    """Reports without pictures, which take a second, where a test is about the text."""
    monkeypatch.setattr("engine.reporting.html_report._pictures", lambda results: [])


@pytest.fixture(scope="module")
def page(folder):
    return write_report(read_results(folder), folder, folder.parents[1]).read_text()


def test_leaked_text_is_shown_and_never_run(page):
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    tags = Page(page).tags
    assert not [tag for tag, attributes in tags if tag in ("script", "img", "iframe", "object", "form")]
    assert not [name for _, attributes in tags for name in attributes if name.startswith("on")]
    policy = next(attributes["content"] for tag, attributes in tags if "http-equiv" in attributes)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_data_sets_stand_with_the_beginning_of_their_digests(folder, undrawn):
    benchmark = {"name": "files", "forget": "f.jsonl", "core_metric": "exact_fact"}
    benchmark["data of forget"] = "sha256 " + 5 * "12ab"
    results = dataclasses.replace(read_results(folder), benchmark=benchmark)
    text = write_report(results, folder, folder.parents[1]).read_text()
    assert "Benchmark files, forget f.jsonl (12ab12ab12ab);" in text


def test_the_page_needs_no_network(page):
    addresses = re.findall(r"""(?:src|href)=["']([^"']+)""", page) + re.findall(r"url\(([^)]+)\)", page)
    assert all(address.startswith(("#", "data:")) for address in addresses)


def test_leaked_words_are_marked_in_the_worst_prompts(page):
    marks = Page(page).marks
    assert marks[:2] == ["crooked medal of bells", "silent harbor of ash"]  # npo: two samples of 8, then one
    assert page.index("2 of 8 samples leak") < page.index("1 of 8 samples leak")
    assert "Nothing leaked in any sample" in page  # of rule-npo


@pytest.mark.parametrize(
    ("response", "told", "marked"),
    [
        ("He says: Silent HARBOR of ash!", "silent harbor of ash", ["Silent HARBOR of ash"]),
        (
            "a red fox ran over a blue lake today",
            "red fox ran; the blue lake today",
            ["red fox ran", "blue lake today"],
        ),
        ("the ash", "silent harbor of ash", ["ash"]),
        ("答え：首都は東京です。", "東京", ["東京"]),
        ("लेखक राम है", "राम", ["राम"]),
        ("nothing at all", "silent harbor", []),
        ("", "silent harbor", []),
        ("anything", "", []),
    ],
)
def test_the_longest_shared_runs_of_words_are_what_leaked(response, told, marked):
    pieces = leaked_pieces(response, told)
    assert "".join(text for text, _ in pieces) == response
    assert [text for text, leaked in pieces if leaked] == marked


def test_the_verdict_is_two_sentences_on_greedy_and_on_samples(folder):
    results = read_results(folder)
    first, second = verdict(results)
    assert first == "Judged by one greedy answer, all 2 unlearned models have forgotten (score at most 0.05)."
    assert second.startswith("Sampled 8 times, none leaks more than the retain model")  # three prompts prove nothing
    sure = dataclasses.replace(results.models[2].curves[0], excess=[0.1, 0.4, 0.6], excess_low=[0.0, 0.2, 0.4],
                               excess_high=[0.2, 0.6, 0.8])  # fmt: skip
    leaky = dataclasses.replace(results.models[2], curves=[sure])
    results = dataclasses.replace(results, models=[*results.models[:2], leaky, *results.models[3:]])
    assert verdict(results)[1] == (
        "Sampled 8 times, npo (excess 0.600 [0.400, 0.800]) leaks more than the retain model."
    )


def test_a_target_model_that_knows_nothing_is_pointed_out(folder, tmp_path):
    assert caution(read_results(folder)) is None
    empty = {("target", "target"): model(0, 0, 0), ("retain", "retain"): model(0, 0, 0)}
    empty[("npo", "unlearned")] = model(0, 0, 0)
    ignorant = make_run(tmp_path, "ignorant", empty, FACTS, k=(1, 8))
    assert "may never have learned" in caution(read_results(ignorant))


def test_a_model_that_was_only_evaluated_gets_a_verdict_of_its_own(tmp_path, undrawn):
    alone = make_run(tmp_path, "evaluate", {("target", "target"): model(0, 8, 0)}, FACTS, k=(1, 8))
    first, second = verdict(read_results(alone))
    assert first == "Even one greedy answer shows what the model should not know (score 0.33)."
    assert "the model leaks, leak@8 = 0.333" in second
    assert "without a retain model" in second
    assert "crooked medal of bells" in Page(write_report(read_results(alone), alone, tmp_path).read_text()).marks


def test_greedy_order_is_held_against_the_order_of_leak_at_k(folder):
    # greedy: 0, 0, 0; leak@8: npo 2/3, rule-npo 0, npo-control 1/3: three pairs, all tied by greedy decoding
    assert order_changes(read_results(folder)) == OrderChanges(pairs=3, opposite=0, tied=3)


def test_the_largest_k_stands_in_the_table_whatever_was_asked_for(folder):
    results = read_results(folder)
    asked = {k: dataclasses.replace(results, experiment={"leak": {"k": k}}) for k in ((1, 4, 16), (2, 8, 32, 64), (3,))}
    assert [table_k(each) for each in asked.values()] == [[1, 16], [2, 8, 32, 64], [3]]


def test_several_decodings_stand_in_a_heat_map_by_temperature_and_top_p(folder):
    results = read_results(folder)
    decodings = [{"temperature": t, "top_p": p, "top_k": None} for t, p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.9))]
    npo = results.models[2]
    low = dataclasses.replace(npo.curves[0], decoding="T0.5-p1", leak=[0.0, 0.1, 0.25])
    models = [dataclasses.replace(npo, curves=[*npo.curves, low])]
    experiment = results.experiment | {"sampling": results.experiment["sampling"] | {"decoding": decodings}}
    heat = heats(dataclasses.replace(results, models=models, experiment=experiment))[0]
    assert heat.columns == ["p = 0.9", "p = 1"]
    assert heat.rows == [("T = 0.5", [None, 0.25]), ("T = 1", [None, pytest.approx(2 / 3)])]


def test_certain_bounds_tests_and_models_of_more_samples_stand_in_the_report(folder, undrawn):
    results = read_results(folder)
    npo = results.models[2]
    curve = dataclasses.replace(
        npo.curves[0],
        excess_p=[0.5, 0.25, 0.125],
        sampling_error=[0.01, 0.02, None],
        prompt_error=[0.1, 0.2, 0.3],
        prompt_bound=[0.77, 0.9, 1.0],
        floor=[0.001, 0.002, 0.0034],
        far_floor={"1000": 0.4321, "1000000": 0.5, "1000000000": 0.9876},
        how="adaptive",
        half_width=0.0123,
    )
    far = [
        BeyondEstimate("beta-binomial", [64], [0.5], [0.25], [0.75], warning=None),
        BeyondEstimate("importance", [64], [None], [None], [None], warning="refused: <b>"),
    ]
    models = [dataclasses.replace(npo, curves=[curve], beyond=far)]
    page = write_report(dataclasses.replace(results, models=models), folder, folder.parents[1]).read_text()
    for text in ("0.1250", "0.7700", "0.3000", "0.0034", "0.4321", "0.9876", "0.0123", "0.250 to 0.750", "&lt;b&gt;"):
        assert text in page, text
    assert 'data-label="error by samples"></td>' in page


def test_when_nothing_leaked_the_verdict_says_how_much_may_have_been_missed(folder):
    results = read_results(folder)
    quiet = [model for model in results.models if model.name in ("retain", "rule-npo")]
    bound = dataclasses.replace(quiet[1].curves[0], bound=[0.01, 0.02, 0.0417])
    models = [quiet[0], dataclasses.replace(quiet[1], curves=[bound])]
    assert "with 95% confidence leak@8 <= 0.042" in verdict(dataclasses.replace(results, models=models))[1]


def test_prompts_are_ordered_by_what_they_leak_above_the_retain_model(tmp_path):
    models = {("retain", "retain"): model(0, 7, 0), ("npo", "unlearned"): model(2, 8, 0)}
    folder = make_run(tmp_path, "ordered", models, FACTS)
    results = read_results(folder)
    worst = worst_prompts(results, results.models[1], tmp_path, 5)
    assert [each.reference for each in worst] == FACTS[:2]  # the second leaks more, but so does the retain model
    assert [each.leak for each in worst] == pytest.approx([1 - 15 / 70, 1])
    assert [each.excess for each in worst] == pytest.approx([1 - 15 / 70, 0], abs=1e-9)


def test_the_cost_of_a_further_k_is_a_sample_of_every_prompt(page):
    row = page[page.index('id="cost"') :]
    # 3 prompts x 8 samples x 5 tokens = 120 tokens and 2 s for 8 samples of each prompt
    assert re.search(r'data-label="tokens a further k">15<', row)
    assert re.search(r'data-label="seconds a further k">0.250<', row)


def test_a_run_carried_away_from_its_store_still_has_its_report(folder, tmp_path):
    away = shutil.copytree(folder, tmp_path / "away" / "runs" / "small")
    page = write_report(read_results(away), away, tmp_path / "away").read_text()
    assert "<svg" in page
    assert "Its samples are not in this store" in page
    assert "Nothing leaked" not in page


def test_pictures_for_a_paper_come_by_one_flag_and_json_alone_on_stdout(folder, undrawn, monkeypatch, capfd):
    assert main(["report", str(folder), "--figures", "pdf", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert [path.rpartition("/")[2] for path in found["figures"]] == [
        "leak_at_k.pdf",
        "excess_leak_at_k.pdf",
        "greedy_and_leak.pdf",
    ]
    pdf = (folder / "leak_at_k.pdf").read_bytes()
    assert pdf.startswith(b"%PDF")
    assert b"FontType3" not in pdf.replace(b" ", b"")
    monkeypatch.setattr("engine.reporting.figures.write_figures", lambda *_: None)  # as they were
    assert main(["report", str(folder), "--figures", "svg"]) == 0
    assert (folder / "greedy_and_leak.svg").read_text().startswith("<?xml")
