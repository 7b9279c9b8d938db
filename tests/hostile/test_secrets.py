"""Secrets planted where a user can put them are found nowhere afterwards: folders, logs, registry, reports, terminal, process list."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from http_server import serve
from mlflow_http import Flaky, flaky_server
from registered import WAY, finished_run

SECRETS = {
    "data.shards": "Sh4rdsPassw0rd",
    "tracking.uri": "Track1ngPassw0rd",
    "init_from": "S1gnatureOfAFile",
    "AWS_SECRET_ACCESS_KEY": "Env1ronmentKey",  # as a user's shell has it
}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Flaky]:
    with flaky_server(tmp_path) as found:
        yield found


def found_in(folder: Path) -> list[str]:
    """Files that hold a secret, or have one in their name."""
    places = []
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        places += [f"{key} in {path}" for key, secret in SECRETS.items() if secret.encode() in content or secret in str(path)]
    return places


def shown_by(process: psutil.Process) -> set[str]:
    """Command lines of a process and all that it started which show a secret."""
    lines = set()
    for each in [process, *process.children(recursive=True)]:
        try:
            lines.add(" ".join(each.cmdline()))
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return {line for line in lines if any(secret in line for secret in SECRETS.values())}


@pytest.mark.slow
def test_secrets_of_a_whole_run_are_found_nowhere_afterwards(packed: Path, server: Flaky, tmp_path: Path) -> None:
    home, served = tmp_path / "home", tmp_path / "served"
    home.mkdir()
    served.mkdir()
    (served / "data").symlink_to(packed)
    weights = finished_run(tmp_path / "earlier", f"sqlite:///{tmp_path}/earlier.db").best.path / "meta_params.safetensors"
    (served / "weights.safetensors").write_bytes(weights.read_bytes())
    with serve(served) as files, tempfile.TemporaryDirectory(dir="/tmp") as short:
        url = files.url
        content = {
            "run_folder": "run",
            "data": {"shards": f"{url.replace('//', '//me:' + SECRETS['data.shards'] + '@')}/data", "way": WAY, "queries": 3},
            "init_from": f"{url}/weights.safetensors?X-Amz-Signature={SECRETS['init_from']}",
            "model": {"filters": 4},
            "outer": {"steps": 2, "meta_batch_size": 1},
            "train": {"workers": 1, "cpus_per_worker": 0.5, "device": "cpu"},
            "tracking": {"uri": server.uri.replace("//", f"//me:{SECRETS['tracking.uri']}@")},
        }
        content["data"] |= {"eval": {"episodes": 5, "val_episodes": 5, "queries": 3}}
        own = tmp_path / "own.yaml"
        own.write_text(yaml.safe_dump(content))
        environment = os.environ | {"RAY_TMPDIR": short, "HOME": str(home), "AWS_SECRET_ACCESS_KEY": SECRETS["AWS_SECRET_ACCESS_KEY"]}

        def ask(*arguments: str) -> tuple[int, str]:
            command = [sys.executable, "-m", "distmeta", *arguments]
            process = subprocess.Popen(command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            seen = psutil.Process(process.pid)
            while True:
                try:
                    out, _ = process.communicate(timeout=0.5)
                    return process.returncode, out
                except subprocess.TimeoutExpired:
                    assert shown_by(seen) == set()

        for arguments, expected, says in (
            (("train", str(own)), 0, "model models:/"),
            (("report", "run", "--config", str(own)), 0, "wrote"),
            (("train", str(own)), 2, "holds a run already"),
            (("train", str(own), "--set", "outer.lr=0.5", "--resume"), 2, "holds another run"),
            (("submit", "train", str(own), "--address", "http://127.0.0.1:9"), 2, "holds a secret"),  # so there is no job to show one
        ):
            code, out = ask(*arguments)
            assert (code, says in out) == (expected, True), out
            assert not [secret for secret in SECRETS.values() if secret in out], out
        assert (home / "run" / "report.html").exists()
        assert found_in(home) == []
        assert found_in(Path(short)) == [], "Ray's own logs"
    assert found_in(tmp_path / "artifacts") == []
    assert [key for key, secret in SECRETS.items() if secret.encode() in (tmp_path / "server.db").read_bytes()] == []
