"""cluster/Dockerfile's steps, carried out in plain Debian roots made by debootstrap, and a run in what they make."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser
from roots import Root, missing, plain_debian

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def image(short_folder: Path) -> Root:
    """The Dockerfile's last stage, built."""
    if lacking := missing():
        pytest.skip(lacking)
    plain = plain_debian("bookworm", short_folder / "plain")
    stages: dict[str, Root] = {}
    for step in DockerfileParser(str(ROOT / "cluster/Dockerfile"), cache_content=True).structure:
        instruction, value = step["instruction"], step["value"]
        if instruction == "FROM":
            base, _, name = value.partition(" AS ")
            assert base == "debian:bookworm-slim"
            root = short_folder / (name or "image")
            subprocess.run(["cp", "-a", plain, root], check=True)
            stage = stages[root.name] = Root(root)
        elif instruction != "COMMENT":
            stage.step(instruction, value, stages)
    return stages["image"]


def test_the_doctor_finds_nothing_wrong_in_the_image(image: Root) -> None:
    """Native kernels included, which the build has compiled for both levels of CPU."""
    done = image.run("distmeta", "doctor", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = {finding["what"]: finding["found"] for finding in json.loads(done.stdout.splitlines()[-1])["findings"]}
    assert found["native kernels"].startswith("x86-64-v")
    assert (
        len(list((image.folder / "home/distmeta/.cache/distmeta/native").glob("*.so"))) == 4
    )  # two levels, two precisions; none was added


def test_rays_launcher_finds_in_a_login_shell_what_it_calls(image: Root) -> None:
    found = image.run("bash", "--login", "-c", "-i", "source ~/.bashrc; command -v ray rsync ssh && python -c 'import boto3'")
    assert found.returncode == 0, found.stderr
    assert found.stdout.split() == ["/opt/distmeta/bin/ray", "/usr/bin/rsync", "/usr/bin/ssh"]


def test_two_workers_train_in_the_image(image: Root) -> None:
    packed = image.run("distmeta", "pack", "--dataset", "glyphs", "--out", "data/glyphs")
    assert packed.returncode == 0, packed.stderr[-2000:]
    shutil.copy(ROOT / "configs/quickstart.yaml", image.folder / "home/distmeta")
    steps = ["--set", "outer.steps=10", "--set", "train.validate_every=10", "--set", "data.eval.episodes=50"]
    trained = image.run("distmeta", "train", "quickstart.yaml", *steps, "--json")
    assert trained.returncode == 0, trained.stdout[-2000:] + trained.stderr[-2000:]
    assert json.loads(trained.stdout.splitlines()[-1])["steps"] == 10


def test_nothing_in_the_image_runs_as_root(image: Root) -> None:
    assert image.run("id", "--user").stdout.strip() == "1000"
