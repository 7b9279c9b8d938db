"""What a submitted job runs first, `python -m distmeta.scale.job`: compare the cluster's libraries with the submitter's.

Imports nothing that may be missing before it has said what is.
"""

import json
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

VERSIONS = "versions.json"
COMPARED = ("torch", "ray", "numpy", "mlflow", "safetensors", "webdataset")


def missing() -> list[str]:
    """Required distributions that this Python lacks."""
    names = [re.split(r"[^A-Za-z0-9._-]", requirement)[0] for requirement in requires("distmeta") or () if "extra ==" not in requirement]
    return [name for name in names if found(name) is None]


def found(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def differences(there: dict[str, str]) -> list[str]:
    """ "torch 2.13.0 → 2.12.1" for every library whose version here differs from the submitter's."""
    return [f"{name} {submitted} → {found(name)}" for name, submitted in there.items() if found(name) != submitted]


def main() -> None:
    lacking = missing()
    if lacking:
        print(f"distmeta: this cluster's Python lacks {', '.join(lacking)}\n  install them in its image, on every node", file=sys.stderr)
        sys.exit(1)
    differing = differences(json.loads(Path(VERSIONS).read_text()))
    if differing:
        print(f"libraries differ from the submitter's: {', '.join(differing)}", file=sys.stderr)


if __name__ == "__main__":
    main()
