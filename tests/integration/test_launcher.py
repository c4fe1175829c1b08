"""`ray up cluster.yaml`: what Ray's launcher makes of it on an emulated AWS."""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_ray_up_finds_the_machines_on_aws_and_opens_ssh_alone(tmp_path, monkeypatch):
    """The launcher's own preparation against an emulated AWS: types, zones, roles, keys and the security group."""
    moto = pytest.importorskip("moto")
    (tmp_path / ".ssh").mkdir()
    for name, value in {"HOME": tmp_path, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x"}.items():
        monkeypatch.setenv(name, str(value))
    config = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    declared = {name: each.pop("resources") for name, each in config["available_node_types"].items()}
    for each in config["available_node_types"].values():
        each["resources"] = {}  # the launcher looks up what the type of machine has
    with moto.mock_aws(config={"iam": {"load_aws_managed_policies": True}}):
        import boto3
        from ray.autoscaler._private.aws import config as aws
        from ray.autoscaler._private.commands import _bootstrap_config

        monkeypatch.setattr(aws.time, "sleep", lambda _: None)
        made = _bootstrap_config(config, no_config_cache=True)["available_node_types"]
        (group,) = boto3.client("ec2", "us-west-2").describe_security_groups(
            GroupIds=made["head"]["node_config"]["SecurityGroupIds"]
        )["SecurityGroups"]
    assert {name: made["gpu"]["resources"][name] for name in ("CPU", "GPU")} == declared["gpu"]
    assert len(made["gpu"]["node_config"]["SubnetIds"]) == 3  # a zone each
    world = [rule for rule in group["IpPermissions"] if rule.get("IpRanges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in world] == [(22, 22)]
