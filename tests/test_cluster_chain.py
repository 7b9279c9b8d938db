"""docs/kubernetes.md, followed from its first command to its last on one machine: `make cluster-test`.

The commands of the page run as they are written, in a copy of cluster/ and configs/, in namespaces of their own: services have their real
names and ports there, and nothing outlives the test. tests/kubectl.py is the cluster.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
SECTIONS = ("Deploying", "Working from your machine")
LIMIT_S = 15 * 60
NETWORK = """
set -euo pipefail
ip link set lo up
for host in $(seq 1 19); do ip address add 10.77.0.$host/32 dev lo; done
ip route add default dev lo src 10.77.0.1
mount --bind "$PODS/hosts" /etc/hosts
"""
HOSTS = """127.0.0.1 localhost
10.77.0.1 {hostname}
10.77.0.2 postgres
10.77.0.3 s3
10.77.0.4 mlflow
10.77.0.10 distmeta-head-svc
"""
# What else must hold, asked after the last step: Host headers, passwords, and where things lie.
CHECKS = """
code() { curl --silent --output /dev/null --write-out '%{http_code}\\n' "$@"; }
search=http://mlflow:5000/api/2.0/mlflow/registered-models/search
echo "host $(code --user "$MLFLOW_TRACKING_USERNAME:$MLFLOW_TRACKING_PASSWORD" $search)"
echo "other-host $(code --header 'Host: example.org' $search)"
echo "no-password $(code $search)"
echo "no-token $(code http://localhost:8265/api/jobs/)"
echo "jobs $(distmeta jobs list --json)"
echo "models $(distmeta models --json)"
python - <<'PY'
import s3fs
store = s3fs.S3FileSystem()
print("stored", *(name for name in ("distmeta/runs/first/config.yaml", "distmeta/runs/sweep", "mlflow") if store.find(name)))
PY
"""


def steps() -> str:
    """The commands of the page's sections."""
    page = (ROOT / "docs/kubernetes.md").read_text()
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")}
    blocks = [re.findall(r"^```\n(.*?)^```$", sections[name], re.DOTALL | re.MULTILINE) for name in SECTIONS]
    return "".join(command for section in blocks for command in section)


def test_the_steps_of_the_kubernetes_page_lead_from_nothing_to_predictions(tmp_path: Path, short_folder: Path) -> None:
    kubectl = shutil.which("kubectl")
    lacking = [name for name in ("unshare", "ip", "openssl", "curl", "createdb") if shutil.which(name) is None]
    if os.geteuid() or kubectl is None or lacking:
        pytest.skip(f"needs root, kubectl, PostgreSQL, curl, openssl and iproute2 (missing: {', '.join(lacking) or 'root or kubectl'})")
    for name in ("cluster", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.env"))
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/kubectl.py"} "$@"\n')
    program.chmod(0o755)
    (short_folder / "hosts").write_text(HOSTS.format(hostname=os.uname().nodename))
    script = tmp_path / "steps.sh"
    script.write_text(f"{NETWORK}set -x\n{steps()}set +x\necho CHECKS\n{CHECKS}")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AWS_", "MLFLOW_", "RAY_"))}
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment |= {"PODS": str(short_folder), "KUBECTL": kubectl, "PATH": path}
    alone = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    log = tmp_path / "log.txt"
    with log.open("w") as out:
        done = subprocess.run([*alone, "bash", str(script)], cwd=tmp_path, env=environment, stdout=out, stderr=out, timeout=LIMIT_S)
    said = log.read_text()
    assert done.returncode == 0, said[-4000:]
    checks = dict(line.split(" ", 1) for line in said.partition("\nCHECKS\n")[2].splitlines())
    assert {name: checks[name] for name in ("host", "other-host", "no-password", "no-token")} == {
        "host": "200",
        "other-host": "403",
        "no-password": "401",
        "no-token": "401",
    }
    assert checks["stored"].split() == ["distmeta/runs/first/config.yaml", "distmeta/runs/sweep", "mlflow"]
    jobs = json.loads(checks["jobs"])
    assert [(job["verb"], job["status"], job["run_folder"]) for job in reversed(jobs)] == [
        ("train", "SUCCEEDED", "s3://distmeta/runs/first"),
        ("sweep", "SUCCEEDED", "s3://distmeta/runs/sweep"),
    ]
    first = next(model for model in json.loads(checks["models"]) if model["uri"].endswith("/1"))
    assert "production" in first["aliases"]
    assert first["accuracy"] > 0.3  # five classes
