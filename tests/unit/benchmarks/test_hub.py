"""Data sets of the hub and of folders: what was read is known by content, and one clear line says what is wrong."""

import os

import datasets
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError

from benchmarks import BENCHMARKS, hub
from engine.errors import UserError
from tests.hub import write_hub

ROWS = [{"question": "q", "answer": "a"}]


@pytest.fixture(autouse=True)
def no_memory():
    hub.COMMITS.clear()
    yield
    hub.COMMITS.clear()


@pytest.fixture
def fake_hub(monkeypatch):
    """A hub with one data set, at commit c1; returns the revisions that were read."""
    read = []

    class Info:
        sha = "c1"

    def load(place, config, split, revision, cache_dir):
        read.append(revision)
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(HfApi, "dataset_info", lambda self, name, revision=None, timeout=None: Info)
    monkeypatch.setattr(datasets, "get_dataset_config_names", lambda place, revision: read.append(revision) or ["all"])
    monkeypatch.setattr(datasets, "load_dataset", load)
    return read


def test_every_config_is_read_at_the_commit_that_is_recorded(fake_hub):
    assert hub.load_rows("org/data", "all", "train", ("question",)) == [{"question": "q"}]
    assert fake_hub == ["c1", "c1"]
    assert hub.data_version("org/data") == "commit c1"


def test_a_folder_is_known_by_its_files(tmp_path):
    here = write_hub(tmp_path / "here", {"all": {"train": ROWS}})
    there = write_hub(tmp_path / "there", {"all": {"train": ROWS}})
    other = write_hub(tmp_path / "other", {"all": {"train": ROWS * 2}})
    assert hub.data_version(here) == hub.data_version(there) != hub.data_version(other)


def test_what_a_folder_holds_now_is_read_whatever_was_read_under_its_name(tmp_path):
    def answer(folder, text):
        write_hub(folder, {"all": {"train": [{"question": "q", "answer": text}]}})
        return hub.load_rows(str(folder), "all", "train", ("answer",))[0]["answer"]

    assert [answer(tmp_path / "data", text) for text in ("one", "another")] == ["one", "another"]
    assert answer(tmp_path / "elsewhere" / "data", "a third") == "a third"
    (file,) = (tmp_path / "data").glob("*.jsonl")
    stat = file.stat()
    file.write_text(file.read_text().replace("another", "ANOTHER"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as images and archives have it: one time for all
    assert hub.load_rows(str(tmp_path / "data"), "all", "train", ("answer",))[0]["answer"] == "ANOTHER"


def one_line(*arguments):
    with pytest.raises(UserError) as caught:
        hub.load_rows(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_data_set_that_the_hub_does_not_give_is_one_line(monkeypatch):
    class Response:
        status_code, headers, request = 404, {}, None

    def refuse(self, name, revision=None, timeout=None):
        raise RepositoryNotFoundError("not here\nnor there", response=Response())

    monkeypatch.setattr(HfApi, "dataset_info", refuse)
    assert "org/none: the hub does not give this data set (HTTP 404)" in one_line("org/none", "all", "train", ("a",))


def test_a_gated_data_set_names_the_token_it_needs(fake_hub, monkeypatch):
    def gated(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'org/data' is a gated dataset on the Hub.\nLog in.")

    monkeypatch.setattr(datasets, "load_dataset", gated)
    line = one_line("org/data", "all", "train", ("question",))
    assert "is a gated dataset on the Hub. Log in.); gated data needs HF_TOKEN" in line


def test_without_a_network_and_a_cached_copy_the_line_says_that_it_cannot_be_loaded():
    assert "org/nowhere: cannot be loaded (" in one_line("org/nowhere", "all", "train", ("a",))  # tests run offline


@pytest.mark.parametrize("name", ["not a name", "a/b/c"])
def test_what_is_no_name_is_said_to_be_none(name):
    assert "neither a folder nor a hub name" in one_line(name, "all", "train", ("a",))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        ([], ("question",), "is empty"),
        (ROWS, ("question", "gt"), "no column gt; found question, answer"),
        ([*ROWS, {"question": "", "answer": "a"}], ("question",), "row 1 has nothing in column question"),
        ([*ROWS, {"question": "q", "answer": None}], ("answer",), "row 1 has nothing in column answer"),
    ],
)
def test_an_empty_split_or_cell_and_a_missing_column_are_named(fake_hub, monkeypatch, rows, columns, expected):
    table = datasets.Dataset.from_dict({name: [row[name] for row in rows] for name in ROWS[0]})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: table)
    assert expected in one_line("org/data", "all", "train", columns)


def test_a_missing_split_is_named(tmp_path):
    folder = write_hub(tmp_path, {"all": {"train": ROWS}})
    assert "'test'" in one_line(folder, "all", "test", ("question",))


def test_every_published_benchmark_says_what_it_read():
    from tests.conftest import TOFU

    if TOFU.is_dir():
        assert set(BENCHMARKS["tofu"].load(path=str(TOFU), limit_authors=2).data) == {"path"}
    assert BENCHMARKS["fictional"].load().data == {}


def test_what_the_hubs_client_keeps_beside_the_data_does_not_count(tmp_path):
    here = write_hub(tmp_path / "here", {"all": {"train": ROWS}})
    before = hub.data_version(here)
    kept = tmp_path / "here" / ".cache" / "huggingface" / "download" / "train.json.metadata"
    kept.parent.mkdir(parents=True)
    kept.write_text("2026-11-27T17:00:00")
    assert hub.data_version(here) == before


def test_a_pointer_to_data_that_was_not_downloaded_is_one_line(tmp_path):
    here = write_hub(tmp_path / "here", {"all": {"train": ROWS}})
    data = next(path for path in (tmp_path / "here").rglob("*.*") if path.is_file() and path.suffix != ".md")
    data.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 988097824\n")
    assert "git lfs pull" in one_line(here, "all", "train", ("question",))
