"""The user and the code version of a run, as MLflow's tags."""

import getpass
import json
import os
import subprocess
from contextlib import suppress
from pathlib import Path

CONTEXT = "MLFLOW_RUN_CONTEXT"
"""The environment variable from which MLflow reads such tags as JSON; a job receives its submitter's tags in it."""
_GIT_S = 5.0


def source_tags(folder: Path | None = None) -> dict[str, str]:
    """The user, the program, and the git commit of `folder` (default: the working folder), if it has one."""
    tags = {"mlflow.source.name": "distmeta", "mlflow.source.type": "LOCAL"}
    with suppress(OSError, KeyError):  # a container's user may have no name
        tags["mlflow.user"] = getpass.getuser()
    with suppress(OSError, subprocess.SubprocessError):  # no git, or no repository
        git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=_GIT_S, check=True)
        tags["mlflow.source.git.commit"] = git.stdout.strip()
    with suppress(ValueError):
        given = json.loads(os.environ.get(CONTEXT, "{}"))
        tags |= {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}
    return tags
