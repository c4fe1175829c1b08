"""Connecting to Ray: the cluster of the job or of RAY_ADDRESS where there is one, else one on this machine.

Checks that the asked workers fit before any work starts. Knows nothing of experiments.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import UserError

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIGACTION_BYTES = 512  # more than the C library's struct sigaction takes
ANYWHERE = "DEFAULT"  # scheduling: not in the placement group of the trial that asks, which holds next to nothing
_connecting = threading.Lock()


def connect(distributed_training: bool = False) -> None:
    """Join the cluster at RAY_ADDRESS, or start one of this machine's cores; again connected is no error.

    distributed_training: Ray Train needs the dashboard's process on a local cluster; without it start-up is faster.
    Raises UserError where no cluster answers at RAY_ADDRESS.
    """
    import ray

    with _connecting:
        if not ray.is_initialized():
            with _own_signals():
                _in_lasting_thread(lambda: _start(distributed_training))
    data_context()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's handlers of SIGTERM and SIGINT while Ray connects.

    Ray's client puts a handler of its own in their place, which aborts the process after ours has begun to save. Python
    can take it back in the main thread alone, and a run may connect in any: the C library's sigaction works in all.
    """
    libc = ctypes.CDLL(None)
    kept = {number: ctypes.create_string_buffer(SIGACTION_BYTES) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, action in kept.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        for number, action in kept.items():
            libc.sigaction(number, action, None)


def _in_lasting_thread(work: Callable[[], None]) -> None:
    """Do `work` in a thread that lasts as long as this process, and wait for it; raises what it raises.

    The kernel ends Ray's processes with the thread that started them (PR_SET_PDEATHSIG goes by threads): started in a
    thread of a pool they would be gone with the pool, and a minute later Ray's client would end this process.
    """
    failed: list[BaseException] = []
    done = threading.Event()

    def last() -> None:
        try:
            work()
        except BaseException as error:  # handed on to who waits
            failed.append(error)
        done.set()
        threading.Event().wait()

    threading.Thread(target=last, name="ray", daemon=True).start()
    done.wait()
    if failed:
        raise failed[0]


def _start(distributed_training: bool) -> None:
    import ray

    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Threads that wait for each other must sleep: where cores are shared, if only with the driver, those that spin keep
    # the one that they wait for from running.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # A worker that has read torch is worth keeping until the next stage: by default Ray ends it after one idle second.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", "30000")
    if os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(**quiet)
        except ConnectionError as error:
            address = os.environ["RAY_ADDRESS"]
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there; start it or unset it") from error
    else:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=distributed_training,
            dashboard_host="127.0.0.1",
            _temp_dir=os.environ.get("LEAKATK_RAY_TEMP"),
            **quiet,
        )


def connected() -> bool:
    """Whether this process has joined a cluster; does not import Ray to find out, which another thread may do."""
    is_initialized = getattr(sys.modules.get("ray"), "is_initialized", None)
    return is_initialized is not None and bool(is_initialized())


def here() -> NodeAffinitySchedulingStrategy:
    """Scheduling: on the driver's own node, whose end is the run's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def has_gpus() -> bool:
    """Whether the cluster has GPUs; this machine is asked without starting a cluster on it."""
    if connected() or os.environ.get("RAY_ADDRESS"):
        connect()
        return resources()[1] >= 1
    return any(Path("/dev").glob("nvidia[0-9]*"))


def data_context() -> None:
    """Quiet Ray Data, for the engine shows progress itself; patient, for a stage may wait for hours for its turn on the
    cluster; and without memory budgets: a unit's output is on disk before its task ends, and with budgets Ray Data
    starts one task alone until it has read the cluster's limits again, a second later in every stage."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # by default it fails what saw no unit end for half an hour
    context.op_resource_reservation_enabled = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def resources() -> tuple[float, float]:
    """(CPUs, GPUs) of the cluster: what it has now, or what its autoscaler may start, if that is more."""
    import ray

    now = ray.cluster_resources()
    return (
        max(float(now.get("CPU", 0)), _may_have("LEAKATK_MAX_CPUS")),
        max(float(now.get("GPU", 0)), _may_have("LEAKATK_MAX_GPUS")),
    )


def memory_to_ask(need: float) -> dict[str, float]:
    """The option by which a Ray task asks for `need` bytes of main memory, so that no more start than fit together. At
    most nine tenths of what the largest node has for tasks: what needs more may still fit where it runs alone."""
    import ray

    most = max((node["Resources"].get("memory", 0.0) for node in ray.nodes() if node["Alive"]), default=0.0)
    asked = int(min(need, 0.9 * most))
    return {"memory": asked} if asked > 0 else {}


def _may_have(variable: str) -> float:
    """What an autoscaled cluster may grow to, which Ray tells no driver: cluster.yaml sets it. 0 where it is not set.

    A cluster whose GPU nodes are yet to be started has no GPU: without this an experiment would settle on CPUs.
    """
    given = os.environ.get(variable, "")
    if given and not given.isdecimal():
        raise UserError(f"{variable}={given}: expected a whole number, the most that the autoscaler may start")
    return float(given or 0)


def cores_of_a_node() -> int:
    """CPUs of the largest node that is there."""
    import ray

    found = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    return max([1, *found])


def take_threads() -> None:
    """Let torch run as many threads as Ray has given this worker CPUs; one outside a worker, where nobody was asked.

    To be called before the first matrix product: on AMD's processors MKL takes another kernel for small ones where
    there are more threads, unless told to give the same bits.
    """
    import torch

    os.environ.setdefault("MKL_CBWR", "AUTO")
    given = 1.0
    if connected():
        import ray

        with contextlib.suppress(AssertionError):  # of a driver, which is given nothing
            given = ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0)
    torch.set_num_threads(max(1, int(given)))


def check_fits(workers: int, gpus_per_worker: float, what: str) -> None:
    """UserError unless `workers` of one CPU and `gpus_per_worker` each fit on the cluster at once."""
    cpus, gpus = resources()
    if workers > cpus:
        raise UserError(
            f"{what}: {workers} workers need {workers} CPUs, the cluster has {cpus:.0f}; ask for fewer workers"
        )
    if workers * gpus_per_worker > gpus:
        raise UserError(
            f"{what}: {workers} workers of {gpus_per_worker:g} GPUs need {workers * gpus_per_worker:g}, "
            f"the cluster has {gpus:g}; ask for fewer or set gpus: 0"
        )
