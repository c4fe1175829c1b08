"""Ray outlives the thread that asked for it: figures, reports and recordings that take minutes come after the threads
that waited for stages have ended."""

import subprocess
import sys

import pytest

DRIVER = """
import time
from concurrent.futures import ThreadPoolExecutor
import ray
from engine.cluster import ray_cluster

with ThreadPoolExecutor(1) as pool:
    pool.submit(ray_cluster.connect).result()
time.sleep(float({seconds}))  # a recording
print(ray.get(ray.remote(lambda: "alive").remote(), timeout=60))
"""


def recorded(seconds):
    command = [sys.executable, "-c", DRIVER.format(seconds=seconds)]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds + 240, check=False)


def test_ray_is_alive_after_the_thread_that_asked_for_it_has_ended():
    done = recorded(3)  # the kernel ends the children of a thread at once; Ray's client only notices after a minute
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]


@pytest.mark.long
def test_a_recording_of_ninety_seconds_ends_well():
    done = recorded(90)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr[-2000:]
