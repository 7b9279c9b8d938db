"""The wheel and the source distribution on Debian 13, with its Python 3.13: built, installed in empty environments, and trained with."""

import subprocess
from pathlib import Path

import pytest
from roots import Root, missing, plain_debian

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def debian(short_folder: Path) -> Root:
    """The files that git tracks, in /src of a Debian 13, and both distributions in /src/dist."""
    if lacking := missing():
        pytest.skip(lacking)
    made = Root(plain_debian("trixie", short_folder / "root"))
    made.step("RUN", "apt-get update && apt-get install --yes --no-install-recommends ca-certificates g++ python3 python3-venv", {})
    made.step("WORKDIR", "/src", {})
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    subprocess.run(["cp", "--parents", "-t", made.folder / "src", *filter(None, tracked.decode().split("\0"))], cwd=ROOT, check=True)
    made.step("RUN", "python3 -m venv /opt/build && /opt/build/bin/pip install --quiet build && /opt/build/bin/python -m build", {})
    return made


@pytest.mark.parametrize("distribution", ["*.whl", "*.tar.gz"])
def test_a_distribution_trains_in_an_empty_environment(debian: Root, distribution: str) -> None:
    assert debian.run("python3", "--version").stdout.startswith("Python 3.13.")
    done = debian.run("/bin/sh", "-c", f".ci/wheel dist/{distribution}")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
