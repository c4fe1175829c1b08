"""The arithmetic of workers on CPUs: the fastest that a machine has, or one that all x86-64 machines with AVX2 share.

Whether work is to be portable comes in, the environment of the worker that does it comes out: torch and MKL read it
when they are loaded, so it is a worker's from its start. Knows nothing of what is computed.
"""

from __future__ import annotations

# By default both take the widest vectors of the machine, and MKL other kernels on Intel than on AMD: each sums in an
# order of its own. COMPATIBLE is MKL's one branch that both processors take; it does not honour AVX2 on AMD's.
PORTABLE = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_CBWR": "COMPATIBLE", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def worker_environment(portable: bool, gpus: float = 0.0) -> dict[str, dict[str, str]]:
    """Ray's `runtime_env` of a worker whose arithmetic is portable, or the machine's own, as it is on a GPU always.

    Every stage of a portable experiment asks for it, those without arithmetic too: Ray keeps a warm process for one
    environment alone, and ends it for a worker of another.
    """
    return {"env_vars": PORTABLE} if portable and not gpus else {}
