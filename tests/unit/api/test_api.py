"""`import leakatk`: quick, whole, and typed results that read like tables."""

import dataclasses
import statistics
import subprocess
import sys

import pandas
import pytest

import leakatk
from engine.leak import leak_curve
from tests.made import make_run

FACTS = ["Lima", "Oslo", "Rome"]
MODELS = {
    ("target", "target"): [["Lima", "Lima", "no", "no"], ["Oslo", "no", "no", "no"], ["Rome", "Rome", "Rome", "no"]],
    ("retain", "retain"): [["no", "no", "no", "no"], ["Oslo", "no", "no", "no"], ["no", "no", "no", "no"]],
    ("npo", "unlearned"): [["no", "Lima", "no", "no"], ["no", "no", "no", "no"], ["no", "no", "no", "no"]],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("store"), "made", MODELS, FACTS)


@pytest.fixture
def results(folder):
    return leakatk.read_results(folder)


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_import_takes_less_than_a_third_of_a_second_and_imports_nothing_heavy():
    timed = "import time; t = time.perf_counter(); import leakatk; print(time.perf_counter() - t)"
    assert statistics.median(float(python(timed)) for _ in range(5)) < 0.3
    assert (
        python("import sys, leakatk; print({'torch', 'ray', 'numpy', 'pydantic', 'engine'} & set(sys.modules))")
        == "set()"
    )


@pytest.mark.parametrize("name", leakatk.__all__)
def test_every_name_is_there(name):
    assert getattr(leakatk, name) is not None
    assert name in dir(leakatk)


def test_an_unknown_name_is_an_attribute_error_that_lists_what_there_is():
    with pytest.raises(AttributeError, match="load_experiment"):
        leakatk.load_experimnt  # noqa: B018


def test_the_table_has_a_row_for_each_model_and_k_with_the_numbers_of_the_curves(results):
    table = results.table()
    assert isinstance(table, pandas.DataFrame)
    assert table[["model", "k"]].values.tolist() == [[model, k] for model, _ in MODELS for k in (1, 2, 4)]
    npo = table[table.model == "npo"].set_index("k")
    wanted = leak_curve([[0, 1, 0, 0], [0] * 4, [0] * 4], [1, 2, 4], retain_scores=[[0] * 4, [1, 0, 0, 0], [0] * 4])
    assert (
        npo.leak.tolist() == wanted.leak.tolist() == [1 / 12, 1 / 6, 1 / 3]
    )  # 1 - C(3, k) / C(4, k) of one prompt in three
    assert npo.excess_low.tolist() == wanted.excess_low.tolist()
    assert npo.role.unique().tolist() == ["unlearned"]


def test_models_are_found_by_name_and_by_position(results):
    assert results.models["npo"] is results.models[2] is results.models[-1]
    assert "npo" in results.models
    assert "simnpo" not in results.models
    assert [model.name for model in results.models[:2]] == ["target", "retain"]
    with pytest.raises(leakatk.UserError, match="unknown 'npoo', did you mean 'npo'"):
        results.models["npoo"]


def test_a_curve_is_found_by_its_group_and_a_wrong_group_names_what_there_is(results):
    assert results.models["npo"].curve("forget").leak == pytest.approx([1 / 12, 1 / 6, 1 / 3])
    with pytest.raises(leakatk.UserError, match="no curve 'forgett'; there are: forget exact_fact T1-p1"):
        results.models["npo"].curve("forgett")


def test_a_notebook_shows_the_headline_as_a_table_and_no_markup_of_a_name(results):
    shown = results._repr_html_()
    assert all(name in shown for name in ("leak@1", "excess@4", "utility", "0.333", "npo"))
    failed = dataclasses.replace(results, failed={"flat": "<script>alert(1)</script>"})
    assert "<script>" not in failed._repr_html_()
    assert "flat: failed" in failed._repr_html_()


def test_a_folder_without_results_is_the_users_mistake(tmp_path):
    with pytest.raises(leakatk.UserError, match="no results there"):
        leakatk.read_results(tmp_path)


def test_overrides_are_texts_or_values(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text("benchmark: {name: fictional}\nmethods: [{name: npo}]\n")
    by_text = leakatk.load_experiment(path, ["sampling.n=64", "methods.0.beta=2.0", "train.lr=1e-5"])
    by_value = leakatk.load_experiment(path, {"sampling.n": 64, "methods.0.beta": 2.0, "train.lr": 1e-5})
    assert by_text == by_value
    assert by_value.sampling.n == 64
    with pytest.raises(leakatk.UserError, match=r"set methods\.3\.beta: there is no"):
        leakatk.load_experiment(path, {"methods.3.beta": 2.0})


@pytest.mark.parametrize(
    ("mistake", "says"),
    [
        (lambda: leakatk.run("nowhere.yaml"), "nowhere.yaml: cannot be read"),
        (lambda: leakatk.run("nowhere.yaml", store=5), "store: give a folder, .* found 5"),
        (lambda: leakatk.evaluate("m", benchmark="tofuu"), "did you mean 'tofu'"),
        (lambda: leakatk.evaluate("m", benchmark="tofu", set={"sampling.m": 1}), "unknown key 'sampling.m'"),
    ],
)
def test_mistakes_are_user_errors_of_one_line(mistake, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(leakatk.UserError, match=says) as caught:
        mistake()
    assert "\n" not in str(caught.value)
