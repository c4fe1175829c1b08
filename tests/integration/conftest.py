"""One local Ray cluster for all integration tests, in a folder of its own; runs that nobody records."""

import tempfile

import pytest


@pytest.fixture(scope="package", autouse=True)  # it ends before the unit tests begin: it is never idle
def ray_cluster():
    import os

    from engine.cluster import ray_cluster

    # short, for socket paths have a limit; a worker that is ending may still write there
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as folder:
        os.environ["LEAKATK_RAY_TEMP"] = folder
        os.environ["LEAKATK_TEST_KEY"] = "sk-secret-0123456789"  # workers inherit what was there when Ray started
        ray_cluster.connect(distributed_training=True)
        yield
        import ray

        ray.shutdown()
        del os.environ["LEAKATK_RAY_TEMP"]


@pytest.fixture(scope="module")
def unrecorded():
    """Runs go to no MLflow, which takes seconds each: the server is down."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        yield
