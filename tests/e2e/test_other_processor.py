"""The small experiment on an emulated AMD processor, against what Intel's gave."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from engine.cluster.numerics import PORTABLE
from tests.golden import SMALL, differences

QEMU = shutil.which("qemu-x86_64")  # Debian: qemu-user


@pytest.mark.long
@pytest.mark.skipif(QEMU is None, reason="needs qemu-x86_64")
def test_an_emulated_amd_processor_gives_the_same_weights_samples_and_numbers(tmp_path):
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    command = [str(QEMU), "-cpu", "EPYC-Milan", sys.executable, "-m", "tests.in_process"]
    ran = subprocess.run(
        [*command, str(tmp_path / "small.yaml"), str(tmp_path / "store")],
        env=os.environ | PORTABLE | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    assert not differences(json.loads(ran.stdout.splitlines()[-1]))
