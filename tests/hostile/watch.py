"""What a process may not do while it handles a hostile input, noted as it happens: by Python's audit events, which nothing can skip."""

import os
import sys
from pathlib import Path
from typing import Any

_STARTS = ("subprocess.Popen", "os.system", "os.posix_spawn", "os.exec", "os.spawn", "os.fork", "os.forkpty", "pty.spawn")
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FOLDER, _NOTES = "DISTMETA_WATCHED_FOLDER", "DISTMETA_WATCHED_NOTES"


def watch(folder: Path, notes: Path) -> None:
    """From now on, write a line into `notes` for each process started, each file changed outside `folder`, and each distant connection."""
    own = os.path.realpath(folder)
    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(what: str, *about: Any) -> None:
        os.write(file, f"{what} {' '.join(map(str, about))}\n".encode(errors="backslashreplace"))

    def inside(path: Any) -> bool:
        if isinstance(path, int) or path is None:
            return True
        place = os.path.realpath(os.fsdecode(path))
        return place == own or place.startswith((own + os.sep, "/dev/null", "/dev/shm/"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _STARTS and arguments[:1] != ("uname",):  # which Python's own `platform` asks
            note("started", event, arguments[0] if arguments else "")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITES and not inside(arguments[0]):
            note("wrote", arguments[0])
        elif event in _CHANGES and not all(map(inside, _touched(event, arguments))):
            note("changed", event, *arguments[:2])
        elif event == "sqlite3.connect" and arguments[0] != ":memory:" and not inside(arguments[0]):
            note("wrote", arguments[0])
        elif event == "socket.connect" and isinstance(arguments[1], tuple) and arguments[1][0] not in _LOOPBACK:
            note("connected", arguments[1][0])

    sys.addaudithook(hook)


def _touched(event: str, arguments: tuple[Any, ...]) -> list[str | bytes]:
    """The paths that change; none if a folder that is there already is to be made."""
    if event == "os.mkdir" and os.path.isdir(arguments[0]):
        return []
    return [path for path in arguments[:2] if isinstance(path, str | bytes)]


def environment(folder: Path, notes: Path) -> dict[str, str]:
    """What makes a Python process of ours watch itself from its start."""
    site = Path(__file__).parent / "site"
    return {_FOLDER: str(folder), _NOTES: str(notes), "PYTHONPATH": os.pathsep.join([str(site), str(Path(__file__).parents[2])])}


def watch_from_start() -> None:
    """What `site/sitecustomize.py` calls."""
    watch(Path(os.environ[_FOLDER]), Path(os.environ[_NOTES]))
