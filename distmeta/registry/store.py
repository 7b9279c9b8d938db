"""Checks quickly whether a tracking URI can be used. MLflow alone would retry for minutes, or hang."""

import contextlib
import fcntl
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import urlopen

from mlflow import MlflowClient

from distmeta.errors import RegistryError, Unanswered
from distmeta.masking import masked
from distmeta.time_limit import time_limit

_ANSWER_S = 15.0
_BUSY_S = 30.0
_LONGEST_ANSWER = 1 << 16  # maximum bytes of a server's health answer
_LONGEST_S = 900.0  # a model's files may be large, and the connection slow
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_checked: set[str] = set()


def check(uri: str) -> None:
    """Check a server or database once. Raises Unanswered if it does not answer or stays in use, RegistryError if it cannot be used."""
    uri = absolute(uri)
    if uri not in _checked:
        if uri.startswith(("http://", "https://")):
            _check_server(uri)
        elif (database := database_of(uri)) is not None:
            _check_database(uri, database)
        _checked.add(uri)


def _check_server(uri: str) -> None:
    """The whole answer must arrive in time. MLflow's own limit is on silence, but a server may send one byte per second."""
    failed: list[Exception] = []

    def ask() -> None:
        try:
            with urlopen(f"{masked(uri).rstrip('/')}/health", timeout=_ANSWER_S) as answer:
                if len(answer.read(_LONGEST_ANSWER + 1)) > _LONGEST_ANSWER:
                    raise ValueError("it does not answer as MLflow does")
        except HTTPError:
            pass  # it answers
        except Exception as error:  # the URL may be wrong in many ways
            failed.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER_S)
    if asking.is_alive() or failed:
        reason = getattr(failed[0], "reason", failed[0]) if failed else f"no answer within {_ANSWER_S:.0f} s"
        raise Unanswered(f"MLflow at {masked(uri)}: {reason}", "check tracking.uri or MLFLOW_TRACKING_URI")


def in_time(uri: str) -> AbstractContextManager[None]:
    """Raises TimeoutError if requests in the block take very long, because MLflow's own limit is only on silence."""
    if not uri.startswith(("http://", "https://")):
        return contextlib.nullcontext()
    return time_limit(_LONGEST_S, TimeoutError(f"no whole answer within {_LONGEST_S:.0f} s"))


def database_of(uri: str) -> Path | None:
    """The file of an SQLite URI."""
    path = uri.partition("?")[0].removeprefix("sqlite:///") if uri.startswith("sqlite:///") else ""
    return Path(path).absolute() if path and path != ":memory:" else None


def absolute(uri: str) -> str:
    """The URI with an SQLite file's absolute path. MLflow keeps one connection per URI, so it would read a relative path in the working
    folder of its first use. Unchanged if MLflow would read that path otherwise: with `?` or `%` in a folder's name, or as SQLite's `file:`.
    """
    database = database_of(uri)
    if database is None or database.name.startswith("file:") or not {"?", "%"}.isdisjoint(str(database)):
        return uri
    return f"sqlite:///{database}{''.join(uri.partition('?')[1:])}"


def _check_database(uri: str, database: Path) -> None:
    """Write to it, and let MLflow create its tables. Only one process may do this at a time, because concurrent attempts fail."""
    remedy = "work in a folder that can be written, or give another database: tracking.uri, --tracking-uri or MLFLOW_TRACKING_URI"
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with _alone(database.parent):
            with closing(sqlite3.connect(database, timeout=_BUSY_S)) as opened:
                opened.execute("BEGIN IMMEDIATE")
                tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
                opened.rollback()
            if tables and "alembic_version" not in tables:
                raise sqlite3.Error("it is the database of another program")
            MlflowClient(tracking_uri=uri, registry_uri=uri)
    except TimeoutError:
        raise Unanswered(f"MLflow at {masked(uri)} is in use by another command", "wait until that has ended") from None
    except (OSError, sqlite3.Error) as error:
        if "locked" in str(error):
            raise Unanswered(f"MLflow at {masked(uri)} was in use for {_BUSY_S:.0f} s by another command", "try again") from None
        raise RegistryError(f"MLflow at {masked(uri)} cannot be used: {error}", remedy) from None


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """A lock on the folder itself, which leaves no file. Raises TimeoutError if others hold it for long."""
    until = time.monotonic() + 2 * _BUSY_S
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise TimeoutError from None
                time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def artifacts_beside(uri: str) -> str | None:
    """The artifact folder of a new experiment in an SQLite file: beside that file, independent of the working folder."""
    database = database_of(uri)
    return (database.parent / "mlartifacts").as_uri() if database else None


def unwritable(uri: str, artifacts: str) -> str:
    """Why files cannot be stored at the path `artifacts`. Empty if they can, or if it is not a path. A remote server's path counts as local
    only if it exists here.
    """
    parts = urlsplit(artifacts)
    if parts.scheme not in ("", "file"):
        return ""
    folder, server = Path(unquote(parts.path)), urlsplit(uri)
    if server.scheme in ("http", "https") and server.hostname not in _LOOPBACK and not folder.is_dir():
        return f"it is a path of {server.hostname}"
    made = next((parent for parent in (folder, *folder.parents) if parent.exists()), folder)
    try:
        with contextlib.closing(TemporaryFile(dir=made)):
            return ""
    except OSError as error:
        return error.strerror or str(error)
