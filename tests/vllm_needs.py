"""What a wheel of vLLM for CPUs needs beside torch, which stands already: python tests/vllm_needs.py WHEEL"""

import sys
from email.parser import Parser
from zipfile import ZipFile

from packaging.requirements import Requirement

LEFT_OUT = ("torch", "intel-openmp")  # torch and what is built for one torch; another OpenMP beside torch's own

with ZipFile(sys.argv[1]) as wheel:
    (name,) = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
    text = wheel.read(name).decode()
for line in Parser().parsestr(text).get_all("Requires-Dist", []):
    need = Requirement(line)
    if not need.name.startswith(LEFT_OUT) and (need.marker is None or need.marker.evaluate({"extra": ""})):
        extras = f"[{','.join(need.extras)}]" if need.extras else ""
        print(f"{need.name}{extras}{need.specifier}")
