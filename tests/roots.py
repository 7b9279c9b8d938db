"""Plain Debian roots made by debootstrap, in which a Dockerfile's steps are carried out without a container engine."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

CONTEXT = Path(__file__).parent.parent  # what COPY copies from
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


class Root:
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
            [*alone, *variables, *command], env=settings | {"LOCAL": " ".join(self.local)}, capture_output=True, text=True, timeout=3600
        )

    def step(self, instruction: str, value: str, stages: dict[str, "Root"]) -> None:
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

    def copy(self, words: list[str], stages: dict[str, "Root"]) -> None:
        source = CONTEXT
        if words[0].startswith("--from="):
            source = stages[words.pop(0).removeprefix("--from=")].folder
        *names, target = words
        for name in names:
            to = self.folder / os.path.join(self.place, target).lstrip("/")
            to = to / Path(name).name if target.endswith("/") else to
            subprocess.run(["cp", "-a", "-T", source / name.lstrip("/"), to], check=True)


def missing() -> str:
    """What this machine lacks for roots; empty if it has everything."""
    return "needs root and debootstrap" if os.geteuid() or shutil.which("debootstrap") is None else ""


def plain_debian(suite: str, folder: Path) -> Path:
    """A new root of that release of Debian (bookworm, trixie), with this machine's name servers."""
    subprocess.run(["debootstrap", "--variant=minbase", suite, folder], check=True, stdout=subprocess.DEVNULL)
    shutil.copy("/etc/resolv.conf", folder / "etc/resolv.conf")
    return folder
