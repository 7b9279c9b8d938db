"""One process at a time writes a run folder: the one that holds its lease, a file that says who it is.

The file is created only if it is absent, and its holder renews it every ten seconds. No two machines' clocks are compared: whoever wants
the folder watches the file, and takes it over if nothing in it has changed for a minute. Before each commit, a writer looks whether the
lease is still its own.
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
    """What a writer shows: the folder whose lease it relies on, and whose it must be."""

    folder: str
    owner: str


class Lease:
    """The lease of `run_folder`, held inside the block. Raises RunError if another process holds it and lives.

    `say` is called before a wait, with what is waited for.
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
        """Create the file, unless there is one."""
        try:
            if on_disk(self._file):
                with self._file.open("x") as file:
                    file.write(self._text())
            else:
                remote = cast(UPath, self._file)
                remote.fs.pipe_file(remote.path, self._text().encode(), mode="create")
        except FileExistsError:
            return False
        except OSError as error:  # S3's answer to a condition that does not hold has no errno
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
        time.sleep(_LOOK_S)  # another may do the same at this moment: the last one to write has it
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
            except OSError:  # storage does not answer now; the next renewal may come in time
                continue


def holder(run_folder: Path) -> str | None:
    """Who holds the folder's lease, None if nobody does."""
    return _content(run_folder / LEASE).get("owner")


def holds(run_folder: Path) -> bool | None:
    """Whether a process writes the folder now; None if one of another machine has its lease, of which nothing more can be known here."""
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
    except (FileNotFoundError, ValueError):  # or not whole yet
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
    """Distinguishes sets of process ids: another boot, or another container, has others."""
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
