"""Only one process at a time writes a run folder: the holder of its lease, a file that names the process.

The file is created only if it does not exist, and its holder renews it every ten seconds. Clocks of two machines are never compared: a
process that wants the folder watches the file, and takes the lease over if the file does not change for a minute. Before each commit, a
writer checks that it still holds the lease.
"""

import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import psutil
from pydantic import Field
from typing_extensions import TypedDict
from upath import UPath

from distmeta import files
from distmeta.errors import Overtaken, RunError
from distmeta.training.storage import LEASE, folder_at, on_disk, write_whole

RENEW_S = 10.0
LOST_S = 60.0
_LOOK_S = 1.0


class Claim(NamedTuple):
    """A writer's claim: the folder, and the holder that its lease must name."""

    folder: str
    owner: str


class Lease:
    """Hold the lease of `run_folder` inside the block. Raises RunError if a live process holds it. `say` is called with the reason before a
    wait.
    """

    def __init__(self, run_folder: Path, say: Callable[[str], None]) -> None:
        self.claim = Claim(str(run_folder), uuid.uuid4().hex)
        self._folder = run_folder
        self._file = run_folder / LEASE
        self._say = say
        self._renewals = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)

    def __enter__(self) -> "Lease":
        if not self._created():
            self._take_over()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        if holder(self._folder) == self.claim.owner:
            self._file.unlink(missing_ok=True)

    def _text(self) -> str:
        return json.dumps({"owner": self.claim.owner, "renewals": self._renewals} | _process(os.getpid()))

    def _created(self) -> bool:
        """Create the file unless it exists."""
        try:
            if on_disk(self._file):
                with self._file.open("x") as file:
                    file.write(self._text())
            else:
                remote = cast(UPath, self._file)
                remote.fs.pipe_file(remote.path, self._text().encode(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # S3's error for an unmet condition has no errno
            if "PreconditionFailed" in str(error) or "ConditionalRequestConflict" in str(error):
                return False
            raise
        return True

    def _take_over(self) -> None:
        seen = _content(self._file)
        if _lives_here(seen):
            raise self._refusal(seen)
        if not _died_here(seen):
            self._say(f"{self._file} is held by {_named(seen)}; if it does not renew it in {LOST_S:g} s, it is taken over")
            until = time.monotonic() + LOST_S
            while time.monotonic() < until:
                time.sleep(_LOOK_S)
                if (now := _content(self._file)) != seen:
                    raise self._refusal(now)
        write_whole(self._file, self._text())
        time.sleep(_LOOK_S)  # another process may do the same at this moment: the last one to write holds the lease
        if holder(self._folder) != self.claim.owner:
            raise self._refusal(_content(self._file))

    def _refusal(self, seen: dict[str, Any]) -> RunError:
        return RunError(f"{self._folder} is in use: {_named(seen)} writes it", "wait until that ends, or stop it; then --resume")

    def _run(self) -> None:
        while not self._end.wait(RENEW_S):
            try:
                if holder(self._folder) != self.claim.owner:
                    return
                self._renewals += 1
                write_whole(self._file, self._text())
            except OSError:  # storage does not answer now, but the next renewal may be in time
                continue


def holder(run_folder: Path) -> str | None:
    """The holder of the folder's lease, or None."""
    return _content(run_folder / LEASE).get("owner")


def holds(run_folder: Path) -> bool | None:
    """Whether a process writes the folder now. None if a process on another machine holds the lease, because its state cannot be known
    here.
    """
    seen = _content(run_folder / LEASE)
    return None if seen and seen.get("machine") != _machine() else _lives_here(seen)


def check(claim: Claim) -> None:
    """Raises Overtaken unless the claim holds."""
    seen = _content(folder_at(claim.folder) / LEASE)
    if seen.get("owner") != claim.owner:
        raise Overtaken(
            f"{claim.folder} was taken over by {_named(seen)}: this process has stopped writing", "let the other process continue"
        )


def _content(file: Path) -> dict[str, Any]:
    try:
        content = files.read_json(file, finite=False)
        return cast(dict[str, Any], files.of_kind(_Content, content))
    except (FileNotFoundError, ValueError):  # or not written completely yet
        return {}


class _Content(TypedDict):
    owner: str
    renewals: int
    host: str
    machine: str
    pid: Annotated[int, Field(ge=1, le=2**31 - 1)]
    started: float


def _process(pid: int) -> dict[str, Any]:
    return {"host": platform.node(), "machine": _machine(), "pid": pid, "started": psutil.Process(pid).create_time()}


def _machine() -> str:
    """Identifies the namespace of process ids: another boot or container has another one."""
    if sys.platform != "linux":
        return f"{platform.node()} {psutil.boot_time():.0f}"
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.stat('/proc/self/ns/pid').st_ino}"


def _lives_here(seen: dict[str, Any]) -> bool:
    return seen.get("machine") == _machine() and not _died_here(seen)


def _died_here(seen: dict[str, Any]) -> bool:
    """Whether the process is known to be gone."""
    if seen.get("machine") != _machine():
        return False
    try:
        process = psutil.Process(seen["pid"])
        return bool(process.create_time() != seen["started"]) or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _named(seen: dict[str, Any]) -> str:
    return f"process {seen.get('pid')} on {seen.get('host')}" if seen else "another process"
