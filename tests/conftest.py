"""What the tests share: tiny models made on the spot, and one Ray cluster a session."""

import os
import uuid
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
    from engine.models.tokenization import load_tokenizer

    return load_tokenizer(str(base_model))


@pytest.fixture(scope="module")
def undrawn():
    """Pictures are empty, in a module that is about something else: a run's take a second to draw."""

    def save(figure, target, **_):
        target.write("<svg></svg>") if hasattr(target, "write") else Path(target).touch()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", save)
        yield


@pytest.fixture(scope="session")
def s3_server():
    """Address of a local S3 server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def s3(s3_server, monkeypatch):
    """URL of an empty bucket on the local S3 server, with credentials for it in the environment."""
    from pyarrow import fs

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIALEAKATKTEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret-key-0123456789")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    bucket = f"b{uuid.uuid4().hex[:12]}"
    fs.S3FileSystem(endpoint_override=s3_server, allow_bucket_creation=True).create_dir(bucket)
    return f"s3://{bucket}"
