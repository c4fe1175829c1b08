"""One local Ray cluster for all integration tests, in a folder of its own."""

import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_cluster():
    import os

    from engine import cluster

    with tempfile.TemporaryDirectory(prefix="lk") as folder:  # short: socket paths have a limit
        os.environ["LEAKATK_RAY_TEMP"] = folder
        os.environ["LEAKATK_TEST_KEY"] = "sk-secret-0123456789"  # workers inherit what was there when Ray started
        cluster.connect(distributed_training=True)
        yield
        import ray

        ray.shutdown()
        del os.environ["LEAKATK_RAY_TEMP"]
