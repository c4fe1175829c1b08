"""What is killed loses the units in flight and nothing else, and is not even noticed where Ray can retry."""

import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet
import pytest
import ray

from engine.cluster.fan_out import fan_out
from engine.cluster.ray_cluster import connect
from engine.cluster.reporter import Silent
from engine.cluster.units import unit_path
from engine.errors import UserError
from engine.stages.score import ScoreJob, group_scores


@dataclasses.dataclass(frozen=True)
class Logged:
    """Units that take `seconds` and write down who computes them; those in `deadly` kill their worker, `times` each."""

    log: str
    seconds: float = 0.0
    deadly: tuple[int, ...] = ()
    times: int = 1

    def compute(self, unit):
        with Path(self.log).open("a") as log:
            log.write(f"{unit} {os.getpid()}\n")
        if unit in self.deadly and computed(self.log)[unit] <= self.times:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(self.seconds)
        return pyarrow.table({"unit": [unit], "value": [unit * unit]}), ""


@dataclasses.dataclass(frozen=True)
class Waits:
    """A unit that tells how threads of its process wait for each other."""

    def compute(self, unit):
        return pyarrow.table({"policy": [os.environ.get("OMP_WAIT_POLICY")]}), ""


def test_threads_of_a_worker_do_not_spin_while_they_wait(tmp_path):
    fan_out(Waits(), 1, tmp_path / "units", Silent(), cpus=2)
    assert pyarrow.parquet.read_table(unit_path(tmp_path / "units", 0))["policy"].to_pylist() == ["PASSIVE"]


def test_workers_stay_warm_between_stages():
    """More than there are cores: by default Ray ends those after one idle second."""
    connect()

    @ray.remote(num_cpus=0.25)
    def born():
        time.sleep(1.5)  # so that all run side by side
        return psutil.Process().create_time()

    ray.get([born.remote() for _ in range(6)])
    time.sleep(4.0)
    began = time.time()
    assert max(ray.get([born.remote() for _ in range(6)])) < began


def computed(log):
    """How often each unit was begun."""
    return Counter(int(line.split()[0]) for line in Path(log).read_text().splitlines())


def values(folder):
    return {path.stem: pyarrow.parquet.read_table(path).to_pylist() for path in folder.glob("*.parquet")}


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test module


def test_a_killed_task_is_retried_by_ray_and_no_other_unit_is_computed_again(tmp_path):
    fan_out(Logged(str(tmp_path / "log"), deadly=(1,)), 4, tmp_path / "units", Silent())
    assert computed(tmp_path / "log") == {0: 1, 1: 2, 2: 1, 3: 1}
    assert values(tmp_path / "units") == {f"00000{unit}": [{"unit": unit, "value": unit**2}] for unit in range(4)}


def test_a_unit_may_take_longer_than_ray_data_waits_by_default(tmp_path, monkeypatch):
    connect()
    monkeypatch.setattr(ray.data.DataContext.get_current(), "execution_no_progress_timeout_s", 1.0)
    fan_out(Logged(str(tmp_path / "log"), seconds=6.0), 1, tmp_path / "units", Silent())
    assert computed(tmp_path / "log") == {0: 1}


@dataclasses.dataclass(frozen=True)
class Late:
    """A unit that is written, and whose worker is killed before Ray hears of it."""

    log: str
    folder: str

    def compute(self, unit):
        table, note = Logged(self.log).compute(unit)
        if computed(self.log)[unit] == 1:
            pyarrow.parquet.write_table(table, unit_path(Path(self.folder), unit), write_page_checksum=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return table, note


def test_a_unit_that_stands_when_its_worker_is_killed_is_not_computed_again(tmp_path):
    fan_out(Late(str(tmp_path / "log"), str(tmp_path / "units")), 2, tmp_path / "units", Silent())
    assert computed(tmp_path / "log") == {0: 1, 1: 1}
    assert values(tmp_path / "units") == {f"00000{unit}": [{"unit": unit, "value": unit**2}] for unit in (0, 1)}
    assert sorted(path.name for path in (tmp_path / "units").iterdir()) == ["000000.parquet", "000001.parquet"]


@dataclasses.dataclass(frozen=True)
class Threads:
    """A unit that says how many threads its worker takes."""

    def compute(self, unit):
        import torch

        from engine.cluster.ray_cluster import take_threads

        take_threads()
        return pyarrow.table({"threads": [torch.get_num_threads()]}), ""


@pytest.mark.parametrize(
    ("units", "options", "expected"),
    [(1, {}, 2), (1, {"portable": True}, 1), (3, {}, 1), (3, {"workers": 1}, 2), (3, {"cpus": 2}, 2)],
)
def test_a_worker_takes_the_threads_that_the_stages_workers_leave(tmp_path, units, options, expected):
    assert ray.cluster_resources()["CPU"] == 2
    fan_out(Threads(), units, tmp_path / "units", Silent(), **options)
    assert {row["threads"] for rows in values(tmp_path / "units").values() for row in rows} == {expected}


def test_a_unit_that_kills_every_worker_ends_in_one_line_and_keeps_the_others(tmp_path):
    with pytest.raises(UserError, match="were killed 5 times"):
        fan_out(Logged(str(tmp_path / "log"), deadly=(2,), times=5), 4, tmp_path / "units", Silent())
    assert computed(tmp_path / "log")[2] == 5
    assert set(values(tmp_path / "units")) == {"000000", "000001", "000003"}


DRIVER = """
import sys
from pathlib import Path
import ray
from engine.cluster.fan_out import fan_out
from engine.cluster.ray_cluster import connect
from engine.cluster.reporter import Silent
from tests.integration.test_fanout import Logged
ray.init(num_cpus=2, num_gpus=2, include_dashboard=False, _temp_dir=sys.argv[2])  # no GPU is touched
folder = Path(sys.argv[1])
fan_out(Logged(str(folder / "log"), 0.2, deadly=(1,)), 60, folder / "units", Silent(), gpus=1.0)
"""


def test_a_killed_actor_is_replaced_and_a_killed_driver_loses_the_units_in_flight(tmp_path):
    folder, log = tmp_path / "units", tmp_path / "log"
    with tempfile.TemporaryDirectory(prefix="lk", ignore_cleanup_errors=True) as temporary:
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        environment["PYTHONPATH"] = f"{Path.cwd()}:{environment.get('PYTHONPATH', '')}"
        driver = subprocess.Popen(
            [sys.executable, "-c", DRIVER, str(tmp_path), temporary], stderr=subprocess.DEVNULL, env=environment
        )
        while not (folder / "000001.parquet").exists():
            assert driver.poll() is None, "the driver ended before it could be killed"
            time.sleep(0.02)
        driver.kill()
        driver.wait()
        size = -1
        while size != (size := log.stat().st_size):  # its workers go down with it
            time.sleep(1)
    begun, kept = computed(log), values(folder)
    assert begun[1] == 2  # the actor that unit 1 killed was replaced
    assert len(kept) < 60
    assert len(begun) - len(kept) <= 2  # two actors
    fan_out(Logged(str(log)), 60, folder, Silent())
    again = computed(log) - begun
    assert again == {unit: 1 for unit in range(60) if f"{unit:06d}" not in kept}
    assert values(folder) == {f"{unit:06d}": [{"unit": unit, "value": unit * unit}] for unit in range(60)}


@dataclasses.dataclass(frozen=True)
class Dying(ScoreJob):
    """A scoring whose worker is killed in the middle of unit 1, once."""

    marker: str = ""

    def compute(self, unit):
        result = ScoreJob.compute(self, unit)
        if unit == 1 and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def _quick(self):
        return False  # else the driver scores them


def write_generations(folder):
    """Two units of generations: three prompts each, four responses a prompt, of more and more words of the fact."""
    (folder / "units").mkdir(parents=True)
    for unit in range(2):
        rows = [(f"p{unit}{prompt}", sample) for prompt in range(3) for sample in range(4)]
        facts = [f"red fox of {prompt}" for prompt, _ in rows]
        generations = {
            "prompt_id": [prompt for prompt, _ in rows],
            "group": ["forget"] * len(rows),
            "prompt": [f"Who is {prompt}?" for prompt, _ in rows],
            "reference": facts,
            "fact": facts,
            "sample": [sample for _, sample in rows],
            "response": [" ".join(fact.split()[: sample + 1]) for fact, (_, sample) in zip(facts, rows, strict=True)],
        }
        pyarrow.parquet.write_table(pyarrow.table(generations), unit_path(folder / "units", unit))


def test_a_killed_scoring_worker_changes_no_score(tmp_path):
    write_generations(tmp_path / "generations")
    texts = (str(tmp_path / "generations"), 2, "rouge_l_recall")
    for name, each in (("killed", Dying(*texts, marker=str(tmp_path / "marker"))), ("undisturbed", ScoreJob(*texts))):
        (tmp_path / name).mkdir()
        assert each.run(tmp_path / name, Silent())["failures"] == {}
    assert (tmp_path / "marker").exists()
    killed, undisturbed = group_scores(tmp_path / "killed"), group_scores(tmp_path / "undisturbed")
    assert (killed["forget"].scores == undisturbed["forget"].scores).all()
    assert killed["forget"].scores.tolist() == [[0.25, 0.5, 0.75, 1.0]] * 6
