"""`leakatk init`: what it writes for each example that ships."""

from pathlib import Path

import pytest
import yaml

from benchmarks.files import Files
from engine.cli import main
from engine.config.experiment import load_experiment
from engine.config.shipped import example_files, space_files, space_path
from engine.errors import UserError
from engine.search.space import Space


def test_what_ships_is_what_stands_in_the_repository():
    root = Path(__file__).parents[3]
    assert set(example_files()) == {path.stem for path in (root / "examples").glob("*.yaml")}
    assert set(space_files()) == {path.stem for path in (root / "tune_spaces").glob("*.yaml")}


@pytest.mark.parametrize("name", example_files())
def test_every_example_comes_with_the_space_of_its_first_method(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", name]) == 0
    experiment = load_experiment(f"{name}.yaml")
    (space,) = (path for path in tmp_path.glob("*.yaml") if path.stem != name)
    assert Space.model_validate(yaml.safe_load(space.read_text())).method == experiment.methods[0].name
    assert f"leakatk tune {space.name} {name}.yaml" in capsys.readouterr().out
    assert "examples/" not in Path(f"{name}.yaml").read_text()


def test_an_example_with_data_brings_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "files"]) == 0
    assert "data         files/forget.jsonl" in capsys.readouterr().out
    options = load_experiment("files.yaml").benchmark.options
    assert len(Files.load(**options).forget) == 16
    assert main(["check", options["forget"]]) == 0
    assert main(["init", "files"]) == 2


def test_an_unknown_name_names_the_nearest(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", "tofuu"]) == 2
    assert "did you mean 'tofu'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_space_is_found_by_its_name_unless_a_file_is_given(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert space_path("npo").read_text().startswith("# NPO")
    assert space_path("npo.yaml") == Path("npo.yaml")
    Path("npo").write_text("a file of that name")
    assert space_path("npo") == Path("npo")
    with pytest.raises(UserError, match="did you mean 'simnpo'"):
        space_path("simpno")
