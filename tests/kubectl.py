"""The commands of kubectl that docs/kubernetes.md uses, on one machine: `apply` starts the containers' commands as plain processes.

Services are names in /etc/hosts, so they keep their names and ports; tests/test_cluster_chain.py makes a network for that. Substitutes:
Debian's PostgreSQL for its image, moto for SeaweedFS (it checks no signatures), `ray start` with the same parameters for KubeRay.
"""

import base64
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import yaml

STATE = Path(os.environ["PODS"])
BUILT, TOKEN = STATE / "built.yaml", STATE / "token"
START_S = 180


# What the image sets; and gRPC, whose own resolver wants a name server, reads /etc/hosts.
IMAGE = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}
IMAGE |= {"RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true", "GRPC_DNS_RESOLVER": "native"}


class Objects:
    """The manifests as kustomize builds them, by kind (in lower case) and name."""

    def __init__(self, manifests: list[dict[str, Any]]) -> None:
        self.all = {f"{manifest['kind'].lower()}/{manifest['metadata']['name']}": manifest for manifest in manifests}

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [manifest for name, manifest in self.all.items() if name.startswith(f"{kind}/")]

    def data(self, kind: str, name: str) -> dict[str, str]:
        """What a ConfigMap or Secret holds."""
        data = self.all[f"{kind}/{name}"]["data"]
        return {key: base64.b64decode(value).decode() if kind == "secret" else value for key, value in data.items()}

    def environment(self, container: dict[str, Any]) -> dict[str, str]:
        found = {}
        for source in container.get("envFrom", []):
            kind, key = ("secret", "secretRef") if "secretRef" in source else ("configmap", "configMapRef")
            found |= self.data(kind, source[key]["name"])
        for variable in container.get("env", []):
            if "valueFrom" in variable:
                reference = variable["valueFrom"]["secretKeyRef"]
                found[variable["name"]] = self.data("secret", reference["name"])[reference["key"]]
            else:
                found[variable["name"]] = variable["value"]
        return found


class Pod:
    """The processes of one pod's containers, and a folder for its volumes."""

    def __init__(self, objects: Objects, name: str, spec: dict[str, Any]) -> None:
        self.objects, self.name, self.spec = objects, name, spec
        self.folder = STATE / name
        for volume in spec.get("volumes", []):
            place = self.folder / volume["name"]
            place.mkdir(parents=True)
            if "configMap" in volume:
                for file, text in objects.data("configmap", volume["configMap"]["name"]).items():
                    (place / file).write_text(text)

    def run(self, container: dict[str, Any], command: list[str], extra: dict[str, str] | None = None, user: str | None = None) -> Any:
        """Start `command` with the container's environment; paths of its volumes become those of this pod's folder."""
        places = {
            mount["mountPath"]: str(self.folder / mount["name"])
            for mount in container.get("volumeMounts", [])
            if not mount["mountPath"].startswith("/dev/")
        }

        def here(text: str) -> str:
            for place, folder in places.items():
                text = text.replace(place, folder)
            return text

        environment = IMAGE | {key: here(value) for key, value in self.objects.environment(container).items()} | (extra or {})
        print(f"{self.name}: {' '.join(command)[:200]}", flush=True)
        with (STATE / f"{self.name}.log").open("a") as log:
            return subprocess.Popen(
                list(map(here, command)), env=environment, stdout=log, stderr=log, cwd=STATE, start_new_session=True, user=user
            )


def wait_for(pod: str, process: Any, ready: Any) -> None:
    """Return when `ready()` is true; OSError means that it is not yet."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            if ready():
                return
        time.sleep(0.5)
    sys.exit(f"{pod} did not start:\n{(STATE / f'{pod}.log').read_text()[-2000:]}")


def probe(pod: str, process: Any, container: dict[str, Any]) -> None:
    """Wait for a container's readiness probe."""
    check = container["readinessProbe"]
    if "exec" in check:
        wait_for(pod, process, lambda: subprocess.run(check["exec"]["command"], capture_output=True, env=PG).returncode == 0)
    elif "httpGet" in check:
        url = f"http://{pod}:{check['httpGet']['port']}{check['httpGet']['path']}"
        wait_for(pod, process, lambda: urlopen(url, timeout=10).status == 200)
    else:
        wait_for(pod, process, lambda: f":{check['tcpSocket']['port']} " in listening())


def listening() -> str:
    return "".join(f":{one.laddr.port} " for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN)


PG = os.environ | {"PGHOST": "postgres"}


def start_postgres(pod: Pod, container: dict[str, Any]) -> Any:
    """As the entry point of PostgreSQL's image: a new database with the user, password and name of the environment."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
    data, password = pod.folder / "pgdata", pod.folder / "password"
    data.mkdir(parents=True)
    settings = pod.objects.environment(container)
    password.write_text(settings["POSTGRES_PASSWORD"])
    for path in (pod.folder, data, password):
        shutil.chown(path, "postgres")
    make = [programs / "initdb", "-D", data, "-U", settings["POSTGRES_USER"], f"--pwfile={password}", "--auth=scram-sha-256", "--no-sync"]
    subprocess.run(make, user="postgres", cwd=STATE, check=True, stdout=subprocess.DEVNULL)
    (data / "pg_hba.conf").write_text("host all all all scram-sha-256\n")
    serve = [str(programs / "postgres"), "-D", str(data), "-h", "0.0.0.0", "-k", "", "-c", "fsync=off"]
    process = pod.run(container, serve, user="postgres")
    probe("postgres", process, container)
    create = ["createdb", "--host=postgres", f"--username={settings['POSTGRES_USER']}", settings["POSTGRES_DB"]]
    subprocess.run(create, check=True, env=PG | {"PGPASSWORD": settings["POSTGRES_PASSWORD"]})
    return process


def start_server(objects: Objects, manifest: dict[str, Any]) -> None:
    """A Deployment or StatefulSet of one pod."""
    name = manifest["metadata"]["name"]
    pod = Pod(objects, name, manifest["spec"]["template"]["spec"])
    (container,) = pod.spec["containers"]
    if "postgres" in container["image"]:
        start_postgres(pod, container)
        return
    command = ["moto_server", "-H", "0.0.0.0", "-p", "8333"] if "seaweedfs" in container["image"] else container["command"]
    probe(name, pod.run(container, command), container)


def run_job(objects: Objects, manifest: dict[str, Any]) -> None:
    pod = Pod(objects, manifest["metadata"]["name"], manifest["spec"]["template"]["spec"])
    for container in [*pod.spec["initContainers"], *pod.spec["containers"]]:
        if pod.run(container, container["command"]).wait(START_S):
            sys.exit(f"{pod.name} failed:\n{(STATE / f'{pod.name}.log').read_text()[-2000:]}")


def start_ray(objects: Objects, manifest: dict[str, Any]) -> None:
    """As KubeRay: a head and each group's replicas, with a token of the cluster's own."""
    cluster = manifest["metadata"]["name"]
    assert manifest["spec"]["authOptions"] == {"mode": "token"}
    TOKEN.write_text(secrets.token_hex(32))
    start_node(objects, f"{cluster}-head", manifest["spec"]["headGroupSpec"], ["--head", "--dashboard-host=0.0.0.0"], 0)
    number = 0
    for group in manifest["spec"]["workerGroupSpecs"]:
        for _ in range(group["replicas"]):
            number += 1
            start_node(objects, f"{cluster}-{group['groupName']}-{number}", group, [f"--address={cluster}-head-svc:6379"], number)


def start_node(objects: Objects, name: str, group: dict[str, Any], arguments: list[str], number: int) -> None:
    """A pod of its own address. Ports and folders that pods do not share are set here, because these nodes share a machine.

    A pod that ends is started again, as Kubernetes does: on busy cores Ray gives its processes too little time to start.
    """
    address, agent = f"10.77.0.{10 + number}", 52365 + number
    probes = [f"http://{address}:{agent}/api/local_raylet_healthz", *([] if number else [f"http://{address}:8265/api/gcs_healthz"])]
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN.read_text()}
    for attempt in range(1, 4):
        pod = Pod(objects, f"{name}-{attempt}", group["template"]["spec"])
        (container,) = pod.spec["containers"]
        params = {"num-cpus": container["resources"]["limits"]["cpu"]} | group["rayStartParams"]
        own = [f"--node-ip-address={address}", f"--temp-dir={pod.folder}", "--object-store-memory=100000000"]
        own.append(f"--dashboard-agent-listen-port={agent}")
        command = ["ray", "start", "--block", *arguments, *(f"--{key}={value}" for key, value in params.items()), *own]
        process = pod.run(container, command, token)
        if healthy(process, probes):
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    sys.exit(f"{name} did not start:\n{(STATE / f'{pod.name}.log').read_text()[-2000:]}")


def healthy(process: Any, probes: list[str]) -> bool:
    """Whether all probes answer before the process ends or the time is up."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(OSError):
            if all(urlopen(probe, timeout=10).status == 200 for probe in probes):
                return True
        time.sleep(0.5)
    return False


def apply(folder: str) -> None:
    built = subprocess.run([os.environ["KUBECTL"], "kustomize", folder], capture_output=True, text=True, check=True).stdout
    BUILT.write_text(built)
    objects = Objects(list(yaml.safe_load_all(built)))
    servers = [*objects.of("statefulset"), *objects.of("deployment")]
    for manifest in servers:
        start_server(objects, manifest)
    for manifest in objects.of("job"):
        run_job(objects, manifest)
    for manifest in objects.of("raycluster"):
        start_ray(objects, manifest)


def main(arguments: list[str]) -> None:
    if arguments[:2] == ["apply", "-k"]:
        apply(arguments[2])
        return
    if arguments[:2] == ["config", "set-context"]:
        return
    objects = Objects(list(yaml.safe_load_all(BUILT.read_text())))
    services = objects.all.keys() | {f"service/{manifest['metadata']['name']}-head-svc" for manifest in objects.of("raycluster")}
    if arguments[0] == "wait":  # `apply` has waited
        assert arguments[-1] in objects.all, arguments
    elif arguments[0] == "port-forward":  # servers listen on loopback, too
        assert arguments[1] in services, arguments
        assert f":{arguments[2]} " in listening(), arguments
    elif arguments[:2] == ["get", "secret"]:
        assert f"raycluster/{arguments[2]}" in objects.all, arguments
        print(base64.b64encode(TOKEN.read_bytes()).decode(), end="")
    else:
        sys.exit(f"docs/kubernetes.md needs more than tests/kubectl.py does: {arguments}")


if __name__ == "__main__":
    main(sys.argv[1:])
