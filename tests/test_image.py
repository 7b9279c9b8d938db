"""cluster/Dockerfile's steps, carried out in plain Debian roots made by debootstrap, and a run in what they make."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from dockerfile_parse import DockerfileParser

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

ROOT = Path(__file__).parent.parent
CONTEXT_ONLY = {"ARG", "HEALTHCHECK", "CMD", "COMMENT"}
# A mount namespace of its own, in which the root has /proc, /sys, /dev and pip's local folders; it ends with all processes in it.
ENTER = """
set -euo pipefail
mount -t proc proc "$IMAGE/proc"
mount --rbind /sys "$IMAGE/sys"
mount --rbind /dev "$IMAGE/dev"
for folder in $LOCAL; do mkdir -p "$IMAGE$folder"; mount --bind "$folder" "$IMAGE$folder"; done
exec chroot --userspec="$USERSPEC" "$IMAGE" /usr/bin/env --ignore-environment --chdir="$WORKDIR" "$@"
"""


def pip_settings(folder: Path) -> tuple[dict[str, str], list[str]]:
    """This machine's settings of pip, as variables, and the local folders that they name: a build uses the same package index as we do.

    Files that they name, such as certificates, are copied into the root.
    """
    listed = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    settings = {key.split(".")[-1]: shlex.split(value)[0] for key, value in (line.split("=", 1) for line in listed.splitlines())}
    for key, value in settings.items():
        if Path(value).is_file():
            shutil.copy(value, folder / "opt")
            settings[key] = f"/opt/{Path(value).name}"
    variables = {f"PIP_{key.upper().replace('-', '_')}": value for key, value in settings.items()}
    words = {Path(urlsplit(word).path) for value in settings.values() for word in value.split()}
    # The pages of an index link to files beside it.
    places = {word.parent if word.name == "simple" else word for word in words if word.is_absolute() and word.is_dir()}
    return variables, sorted(map(str, places))


class Image:
    """One stage of a Dockerfile, as a folder that holds a root."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.user, self.place = folder, "0", "/"
        self.environment, self.local = pip_settings(folder)
        self.environment["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        settings = os.environ | {"IMAGE": str(self.folder), "USERSPEC": f"{self.user}:{self.user}", "WORKDIR": self.place}
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-c", ENTER, "enter"]
        variables = [f"{key}={value}" for key, value in self.environment.items()]
        return subprocess.run(
            [*alone, *variables, *command], env=settings | {"LOCAL": " ".join(self.local)}, capture_output=True, text=True, timeout=1200
        )

    def step(self, instruction: str, value: str, stages: dict[str, "Image"]) -> None:
        if instruction == "RUN":
            done = self.run("/bin/sh", "-c", value)
            assert done.returncode == 0, f"RUN {value}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        elif instruction == "ENV":
            for word in shlex.split(value):
                key, _, content = word.partition("=")
                self.environment[key] = re.sub(r"\$(\w+)", lambda found: self.environment.get(found[1], ""), content)
        elif instruction == "WORKDIR":
            self.place = value
            (self.folder / value.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif instruction == "USER":
            self.user = value
        elif instruction == "COPY":
            self.copy(shlex.split(value), stages)
        else:
            assert instruction in CONTEXT_ONLY, instruction

    def copy(self, words: list[str], stages: dict[str, "Image"]) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source = stages[words.pop(0).removeprefix("--from=")].folder
        *names, target = words
        for name in names:
            to = self.folder / os.path.join(self.place, target).lstrip("/")
            to = to / Path(name).name if target.endswith("/") else to
            subprocess.run(["cp", "-a", "-T", source / name.lstrip("/"), to], check=True)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """For the roots, of a short path, because Ray makes sockets in them."""
    made = Path(tempfile.mkdtemp(prefix="image-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def image(folder: Path) -> Image:
    """The Dockerfile's last stage, built."""
    if os.geteuid() or shutil.which("debootstrap") is None:
        pytest.skip("needs root and debootstrap")
    plain = folder / "plain"
    subprocess.run(["debootstrap", "--variant=minbase", "bookworm", plain], check=True, stdout=subprocess.DEVNULL)
    shutil.copy("/etc/resolv.conf", plain / "etc/resolv.conf")
    stages: dict[str, Image] = {}
    for step in DockerfileParser(str(ROOT / "cluster/Dockerfile"), cache_content=True).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            assert base == "debian:bookworm-slim"
            root = folder / (name or "image")
            subprocess.run(["cp", "-a", plain, root], check=True)
            stage = stages[root.name] = Image(root)
        elif instruction != "COMMENT":
            stage.step(instruction, value, stages)
    return stages["image"]


def test_the_doctor_finds_nothing_wrong_in_the_image(image: Image) -> None:
    """Native kernels included, which the build has compiled for both levels of CPU."""
    done = image.run("distmeta", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["what"]: finding["found"] for finding in json.loads(done.stdout.splitlines()[-1])["findings"]}
    assert found["native kernels"].startswith("x86-64-v")
    assert (
        len(list((image.folder / "home/distmeta/.cache/distmeta/native").glob("*.so"))) == 4
    )  # two levels, two precisions; none was added


def test_two_workers_train_in_the_image(image: Image) -> None:
    packed = image.run("distmeta", "pack", "--dataset", "glyphs", "--out", "data/glyphs")
    assert packed.returncode == 0, packed.stderr[-2000:]
    shutil.copy(ROOT / "configs/quickstart.yaml", image.folder / "home/distmeta")
    steps = ["--set", "outer.steps=10", "--set", "train.validate_every=10", "--set", "data.eval.episodes=50"]
    trained = image.run("distmeta", "train", "quickstart.yaml", *steps, "--json")
    assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-2000:]
    assert json.loads(trained.stdout.splitlines()[-1])["steps"] == 10


def test_nothing_in_the_image_runs_as_root(image: Image) -> None:
    assert image.run("id", "--user").stdout.strip() == "1000"
