"""cluster.yaml and the RayJob, read by Ray's own launcher and autoscaler, and in step with constraints.txt."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RAY = re.search(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)[1]
IMAGE_TAG = f"{RAY}-py311-gpu"


@pytest.fixture(scope="module")
def launcher():
    """cluster.yaml as `ray up` prepares it: defaults of the provider filled in, setup commands joined."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text()))
    validate_config(config)
    return config


@pytest.fixture(scope="module")
def rayjob():
    return yaml.safe_load((ROOT / "docs" / "kuberay.yaml").read_text())


@pytest.fixture(scope="module")
def autoscaler(rayjob):
    """What Ray's autoscaler makes of the RayJob's cluster; it validates against the launcher's schema."""
    from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

    cluster = {"metadata": {"name": "leakatk", "namespace": "default"}, "spec": rayjob["spec"]["rayClusterSpec"]}
    return _derive_autoscaling_config_from_ray_cr(cluster)


def test_a_key_that_the_launcher_does_not_know_would_be_refused():
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster.yaml").read_text()) | {"max_worker": 3}
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepare_config(config))


def test_the_head_is_kept_and_the_gpu_workers_are_spot_and_come_with_work(launcher):
    head, gpu = (launcher["available_node_types"][name] for name in ("head", "gpu"))
    assert launcher["head_node_type"] == "head"
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, launcher["max_workers"])
    assert gpu["resources"]["GPU"] > 0


def test_the_driver_is_told_what_the_autoscaler_may_start(launcher, autoscaler, rayjob):
    """Without it an experiment on a cluster whose GPU nodes are not started yet would settle on CPUs."""
    gpu = launcher["available_node_types"]["gpu"]
    told = dict(re.findall(r"LEAKATK_MAX_(CPUS|GPUS)=(\d+)", launcher["head_start_ray_commands"][-1]))
    assert told == {f"{name}S": str(gpu["max_workers"] * gpu["resources"][name]) for name in ("CPU", "GPU")}
    pods = autoscaler["available_node_types"]["gpu"]
    told = yaml.safe_load(rayjob["spec"]["runtimeEnvYAML"])["env_vars"]
    for name in ("CPU", "GPU"):
        assert int(told[f"LEAKATK_MAX_{name}S"]) == pods["max_workers"] * pods["resources"][name]


def test_both_name_the_tested_version_of_ray(launcher, rayjob):
    assert launcher["docker"]["image"] == f"rayproject/ray:{IMAGE_TAG}"
    cluster = rayjob["spec"]["rayClusterSpec"]
    assert cluster["rayVersion"] == RAY
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    images = {container["image"] for group in groups for container in group["template"]["spec"]["containers"]}
    assert images == {f"leakatk:{IMAGE_TAG}"}
    assert f"FROM rayproject/ray:{IMAGE_TAG}" in (ROOT / "docs" / "clusters.md").read_text()


def test_every_node_installs_this_package_with_the_tested_versions(launcher):
    package = "/home/ray/leakatk"
    install = f"pip install --no-cache-dir --constraint {package}/constraints.txt --editable {package}"
    assert install in launcher["head_setup_commands"]
    assert install in launcher["worker_setup_commands"]
    assert f"RUN {install}" in (ROOT / "docs" / "clusters.md").read_text()
    assert launcher["file_mounts"]["/home/ray/leakatk"] == "."


def test_the_store_stands_where_every_node_mounts_it(launcher, rayjob):
    assert "-v /shared:/shared" in launcher["docker"]["run_options"]
    assert any(" /shared" in each and "mount -t nfs4" in each for each in launcher["initialization_commands"])
    assert "LEAKATK_STORE=/shared/" in launcher["head_start_ray_commands"][-1]
    cluster = rayjob["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        mounts = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounts["shared"] == "/shared"
        assert {"name": "shared", "persistentVolumeClaim": {"claimName": "leakatk-shared"}} in spec["volumes"]


def test_nothing_listens_to_the_world_and_tokens_are_asked_for(launcher, rayjob):
    commands = " ".join(launcher["head_start_ray_commands"] + launcher["worker_start_ray_commands"])
    assert commands.count("RAY_AUTH_MODE=token") == commands.count("ray start") == 2
    assert "/home/ray/.ray/auth_token" in launcher["file_mounts"]
    assert "--dashboard-host=127.0.0.1" in commands
    assert "mlflow server --host 127.0.0.1" in commands
    assert "0.0.0.0" not in (ROOT / "cluster.yaml").read_text() + (ROOT / "docs" / "kuberay.yaml").read_text()
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"


def test_a_stopped_job_has_the_time_that_a_checkpoint_takes(launcher, rayjob):
    from engine.pipeline.interruption import PATIENCE_SECONDS, RECORD_SECONDS

    least = PATIENCE_SECONDS + RECORD_SECONDS + 15
    given = int(re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", launcher["head_start_ray_commands"][-1])[1])
    assert given >= least
    head = rayjob["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (pod,) = (int(each["value"]) for each in head["containers"][0]["env"] if each["name"] == "RAY_JOB_STOP_WAIT_TIME_S")
    assert head["terminationGracePeriodSeconds"] > pod >= least


def test_the_two_ids_that_must_be_filled_in_are_marked():
    lines = (ROOT / "cluster.yaml").read_text().splitlines()
    for number, line in enumerate(lines):
        if re.search(r"\b(ami|fs)-0+\b", line):
            assert "FILL IN" in line + lines[number - 1]


def test_the_working_directory_that_a_job_uploads_is_small_and_whole(tmp_path):
    """Packed by Ray's own code, as `ray job submit --working-dir .` does; its limit is 512 MiB."""
    import zipfile

    from ray._private.runtime_env.packaging import create_package

    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    names = zipfile.ZipFile(package).namelist()
    assert package.stat().st_size < 4 * 2**20
    wanted = {
        "engine/__main__.py",
        "methods/npo.py",
        "benchmarks/tofu.py",
        "engine/reporting/html_report.html.j2",
        "examples/tofu.yaml",
    }
    assert wanted <= set(names)
    kept_out = (".git/", ".venv/", "shared/", "tests/", "docs/", "perf/", "leakatk-store/")
    assert not [name for name in names if name.startswith(kept_out) and not name.endswith("/")]
