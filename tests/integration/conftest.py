"""One local Ray cluster for all integration tests, in a folder of its own."""

import tempfile

import pytest


@pytest.fixture(scope="session", autouse=True)
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
