"""What the tests share: tiny models made on the spot, and one Ray cluster a session."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a hub

TOFU = Path(__file__).parents[2] / "shared" / "data" / "tofu"


@pytest.fixture(scope="session")
def fictional():
    """The embedded benchmark."""
    from benchmarks import BENCHMARKS

    return BENCHMARKS["fictional"].load()


@pytest.fixture(scope="session")
def base_model(fictional, tmp_path_factory):
    """Folder of the embedded benchmark's untrained model with its tokenizer."""
    folder = tmp_path_factory.mktemp("base") / "model"
    fictional.base_model(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def tokenizer(base_model):
    from engine.data import load_tokenizer

    return load_tokenizer(str(base_model))
