"""Comparing runs: the order, which differences are told from chance, and the files that are written."""

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import shutil
import struct
import termios
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engine.cli import main
from engine.reporting.compare import Difference, _from_intervals, compare
from engine.reporting.results import read_results
from engine.reporting.table import print_table
from tests.made import make_run

FACTS = [f"fact{index}" for index in range(40)]


def said(leaking, samples=4):
    """Responses [prompts][samples] of a model that tells the fact of every prompt in `leaking`, in all samples."""
    return [[fact if index in leaking else "nothing"] * samples for index, fact in enumerate(FACTS)]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """first: npo leaks 20 of 40 prompts, rule 12 of the same; second: simnpo leaks 13, rule's 12 among them."""
    store = tmp_path_factory.mktemp("store")
    shared = {("target", "target"): said(range(40)), ("retain", "retain"): said([])}
    first = {("npo", "unlearned"): said(range(20)), ("rule", "unlearned"): said(range(12))}
    second = {("simnpo", "unlearned"): said(range(13))}
    return [
        make_run(store, "first", shared | first, FACTS),
        make_run(store, "second", shared | second, FACTS),
    ]


@pytest.fixture
def undrawn(monkeypatch):
    """No pictures, which take a second, where a test is about the text."""
    monkeypatch.setattr("engine.reporting.figures.save", lambda figure, path: path)


def test_models_stand_in_the_order_of_their_excess(two_runs):
    found = compare(two_runs)
    assert [row.label.split(" ")[0] for row in found.rows if row.model.role == "unlearned"] == ["rule", "simnpo", "npo"]
    assert (found.k, found.ranked_by, found.best) == (4, "excess", "rule")
    npo = found.rows[[row.label for row in found.rows].index("npo")]
    assert npo.excess[0] == 20 / 40
    assert npo.difference.estimate == pytest.approx((20 - 12) / 40)


def test_pairs_of_prompts_tell_differences_that_overlapping_intervals_do_not(two_runs, tmp_path):
    by_name = {row.label: row for row in compare(two_runs).rows}
    npo, rule = by_name["npo"], by_name["rule"]
    assert npo.excess[1] < rule.excess[2]  # the intervals overlap
    assert npo.difference.paired
    assert npo.difference.significant
    assert by_name["simnpo"].difference.paired
    assert not by_name["simnpo"].difference.significant  # one prompt of 40
    away = [shutil.copytree(run, tmp_path / "runs" / run.name) for run in two_runs]
    for run in away:
        shutil.rmtree(run / "scores")
    found = compare(away)
    npo = {row.label: row for row in found.rows}["npo"]
    assert not npo.difference.paired
    assert not npo.difference.significant
    assert "npo" in next(note for note in found.notes if "from the intervals" in note)


def test_the_same_names_of_prompts_in_another_split_are_not_pairs(tmp_path):
    runs = [
        make_run(tmp_path, f"r{split}", {("npo", "unlearned"): said(range(split))}, FACTS,
                 benchmark={"name": "made", "split": f"forget{split}"})
        for split in (10, 20)
    ]  # fmt: skip
    found = compare(runs)
    assert found.ranked_by == "leak"  # without a retain model there is no excess
    assert [row.label for row in found.rows] == ["npo (r10)", "npo (r20)"]
    assert not found.rows[1].difference.paired


def test_independent_estimates_follow_the_square_and_add_rule():
    found = _from_intervals((0.6, 0.5, 0.7), (0.2, 0.1, 0.4))
    assert found.estimate == pytest.approx(0.4)
    assert found.low == pytest.approx(0.4 - (0.1**2 + 0.2**2) ** 0.5)
    assert found.high == pytest.approx(0.4 + (0.1**2 + 0.1**2) ** 0.5)


def test_a_difference_is_significant_where_its_interval_leaves_zero_out():
    assert Difference(0.1, 0.01, 0.2, True).significant
    assert not Difference(0.1, -0.01, 0.2, True).significant


def test_a_models_difference_is_the_mean_over_prompts_also_where_retain_models_differ(tmp_path):
    lucky = {("retain", "retain"): said(range(30, 34)), ("a", "unlearned"): said(range(10))}
    plain = {("retain", "retain"): said([]), ("b", "unlearned"): said(range(10))}
    runs = [make_run(tmp_path, "lucky", lucky, FACTS), make_run(tmp_path, "plain", plain, FACTS)]
    rows = {row.label: row for row in compare(runs).rows}
    leaks = np.array([1] * 10 + [0] * 30), np.array([0] * 30 + [1] * 4 + [0] * 6)
    assert rows["b"].difference.estimate == pytest.approx((leaks[0] - (leaks[0] - leaks[1])).mean())
    assert rows["b"].difference.paired


def test_runs_of_different_benchmarks_are_refused(tmp_path, capsys):
    runs = [
        make_run(tmp_path, name, {("npo", "unlearned"): said([])}, FACTS, benchmark={"name": name})
        for name in ("tofu", "muse")
    ]
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "out")]) == 2
    assert "benchmark tofu and muse" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_k_that_a_run_lacks_is_refused(two_runs, capsys):
    assert main(["compare", *map(str, two_runs), "--k", "3"]) == 2
    assert "k = 1, 2, 4" in capsys.readouterr().err


def test_a_pipe_gets_plain_text_and_whole_rows_and_the_files_are_there(two_runs, tmp_path, capfd):
    out = tmp_path / "out"
    assert main(["compare", *map(str, two_runs), "--out", str(out)]) == 0
    said = capfd.readouterr().out
    assert "\x1b" not in said
    row = next(line for line in said.splitlines() if "simnpo " in line)
    assert "0.325 [" in row
    assert "~" in row
    rows = {row["model"]: row for row in csv.DictReader((out / "compare.csv").open())}
    assert float(rows["npo"]["excess"]) == 0.5
    assert rows["simnpo"]["significant"] == "False"
    latex = (out / "compare.tex").read_text()
    assert r"\textbf{rule}" in latex
    assert r"simnpo$^\dagger$" in latex
    assert {path.name for path in out.iterdir()} == {
        *(f"{name}.{suffix}" for name in ("compare", "compare_excess") for suffix in ("png", "pdf", "svg")),
        "compare.csv",
        "compare.tex",
    }
    assert (out / "compare.pdf").read_bytes().startswith(b"%PDF")


def on_a_terminal(show, columns):
    """What `show` prints where this process's terminal has so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    kept = [os.dup(number) for number in (0, 1)]
    with ThreadPoolExecutor(1) as pool:
        printed = pool.submit(all_of, master)
        try:
            for number in (0, 1):
                os.dup2(slave, number)
            os.close(slave)
            with open(1, "w", closefd=False) as terminal, contextlib.redirect_stdout(terminal):
                show()
        finally:
            for number, file in enumerate(kept):
                os.dup2(file, number)
                os.close(file)
        text = printed.result()
    os.close(master)
    return text


def all_of(master):
    """What is printed on a terminal until nothing holds it open."""
    text = b""
    with contextlib.suppress(OSError):
        while part := os.read(master, 65536):
            text += part
    return text.decode()


def test_a_narrow_terminal_cuts_no_number_and_no_color_is_respected(two_runs, tmp_path, monkeypatch, undrawn):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    results = read_results(two_runs[0])
    npo = next(model for model in results.models if model.name == "npo")
    lower_end = f"{npo.curves[0].low[-1]:.3f}"
    for show in (
        lambda: main(["compare", str(two_runs[0]), "--out", str(tmp_path / "o")]),
        lambda: print_table(results),
    ):
        text = on_a_terminal(show, 80)
        assert "…" not in text
        assert lower_end in text
        assert "\x1b" in text  # a terminal it was
        assert not re.search(r"\x1b\[[\d;]*[34][0-7]", text)  # colours of text and of its ground


def test_json_is_alone_on_stdout(two_runs, tmp_path, capsys, undrawn):
    assert main(["compare", *map(str, two_runs), "--out", str(tmp_path / "o"), "--k", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["k"] == 2
    assert found["best"] == "rule"
    assert {row["model"]: row["excess"] for row in found["models"]}["npo"] == 0.5
