"""The wheel: built from this tree, installed elsewhere and used from a folder that knows nothing of it."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PACKAGES = ("leakatk", "engine", "methods", "benchmarks")
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "examples", "tune_spaces", *PACKAGES)


def python(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    built = python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", out, ".", cwd=source)
    assert built.returncode == 0, built.stderr
    (path,) = out.glob("leakatk-*.whl")
    return path


@pytest.fixture(scope="module")
def leakatk(wheel, tmp_path_factory):
    """Runs the installed command line in a folder."""
    target = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:  # a wheel of Python alone is installed by unpacking it
        archive.extractall(target)

    def run(*arguments, cwd):
        return python("-m", "engine", *arguments, cwd=cwd, PYTHONPATH=str(target))

    return run


def test_the_wheel_holds_every_module_and_every_file_that_ships(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")}
    files = {
        f"engine/config/{path.relative_to(ROOT)}"
        for name in ("examples", "tune_spaces")
        for path in ROOT.glob(f"{name}/**/*")
        if path.is_file()
    }
    assert len(modules) > 100
    assert len(files) > 20
    assert modules | files <= held
    assert {name.split("/")[0] for name in held if ".dist-info/" not in name} == set(PACKAGES)


def test_init_writes_an_experiment_with_its_comments_and_its_space_and_never_overwrites(leakatk, tmp_path):
    ran = leakatk("init", cwd=tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    experiment, space = tmp_path / "fictional.yaml", tmp_path / "fictional-npo.yaml"
    assert yaml.safe_load(experiment.read_text()) == yaml.safe_load((ROOT / "examples" / "fictional.yaml").read_text())
    assert "# samples a prompt" in experiment.read_text()
    assert "leakatk run fictional.yaml" in experiment.read_text()
    assert space.read_text() == (ROOT / "tune_spaces" / "fictional-npo.yaml").read_text()

    space.write_text("mine")
    experiment.unlink()
    again = leakatk("init", "fictional", cwd=tmp_path)
    assert again.returncode == 2
    assert "fictional-npo.yaml: is there already" in again.stderr
    assert space.read_text() == "mine"
    assert not experiment.exists()


def test_tune_finds_a_space_that_ships_by_its_name(leakatk, tmp_path):
    leakatk("init", "tofu-small", cwd=tmp_path)
    (tmp_path / "e.yaml").write_text("benchmark: {name: fictional}\nsampling: {n: 8}\n")
    ran = leakatk("tune", "npo", "e.yaml", cwd=tmp_path)
    assert ran.returncode == 2
    assert "npo: objective.k: 64 is more than sampling.n = 8" in ran.stderr  # the space was read
