"""What a submitted job runs, `python -m distmeta.scale.job VERB …`: it checks the cluster, then becomes `distmeta VERB …`.

It reports missing packages before it imports them.
"""

import json
import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

FACTS = "job.json"  # what the submitter ships: `versions`, whether the job `needs_tracking` from the environment, and its `source`
COMPARED = ("torch", "ray", "numpy", "mlflow", "safetensors", "webdataset")


def missing() -> list[str]:
    """Required distributions that this Python lacks."""
    names = [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requires("distmeta") or () if "extra ==" not in requirement]
    return [name for name in names if installed(name) is None]


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def differences(there: dict[str, str]) -> list[str]:
    """ "torch 2.13.0 → 2.12.1" for every library whose version here differs from the submitter's."""
    return [f"{name} {submitted} → {installed(name)}" for name, submitted in there.items() if installed(name) != submitted]


def own_address() -> str | None:
    """The address of the cluster whose node started this process. It can differ from RAY_ADDRESS: if several clusters share a machine and a
    temporary folder, Ray gives a job the address of the cluster that was started last.
    """
    import psutil

    try:
        raylet = psutil.Process(int(os.environ["RAY_RAYLET_PID"])).cmdline()
    except (KeyError, ValueError, psutil.Error):
        return None
    return next((flag.partition("=")[2] for flag in raylet if re.match("--gcs[-_]address=", flag)), None)


def tracking_fault() -> str | None:
    """The fault of the nodes' MLFLOW_TRACKING_URI for a job without tracking.uri, or None."""
    from distmeta.config import is_relative

    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return "the job has no MLflow: tracking.uri is absent, and MLFLOW_TRACKING_URI is not set on the cluster's nodes"
    if is_relative(uri):
        return f"MLFLOW_TRACKING_URI={uri} on the cluster's nodes is relative: it would be in a folder that is removed with the job"
    return None


def main(arguments: list[str]) -> None:
    lacking = missing()
    if lacking:
        _refuse(f"this cluster's Python lacks {', '.join(lacking)}", "install them in its image, on every node")
    facts = json.loads(Path(FACTS).read_text())
    differing = differences(facts["versions"])
    if differing:
        print(f"libraries differ from the submitter's: {', '.join(differing)}", file=sys.stderr)
    fault = tracking_fault() if facts["needs_tracking"] else None
    if fault is not None:
        _refuse(fault, "give tracking.uri (--tracking-uri for evaluate), an absolute location that all nodes reach")
    os.environ["MLFLOW_RUN_CONTEXT"] = json.dumps(facts["source"] | {"mlflow.source.type": "JOB"})
    os.environ["RAY_ADDRESS"] = own_address() or os.environ["RAY_ADDRESS"]
    os.execv(sys.executable, [sys.executable, "-m", "distmeta", *arguments])


def _refuse(message: str, remedy: str) -> None:
    print(f"distmeta: {message}\n  {remedy}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
