"""Every method's steps, samples and likelihoods against the bits that they have on every other processor."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from engine.cluster.numerics import PORTABLE
from tests.golden import differences

QEMU = shutil.which("qemu-x86_64")  # Debian: qemu-user


def parts(folder, *processor):
    ran = subprocess.run(
        [*processor, sys.executable, "-m", "tests.parts", str(folder)],
        env=os.environ | PORTABLE,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.slow
def test_this_processor_gives_the_bits_of_all_others(tmp_path):
    assert not differences("parts", parts(tmp_path))


@pytest.mark.long
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64")
def test_an_emulated_amd_processor_gives_them_too(tmp_path):
    assert not differences("parts", parts(tmp_path, QEMU, "-cpu", "EPYC-Milan"))
