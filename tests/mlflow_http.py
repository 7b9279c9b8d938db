"""MLflow servers on the loopback: one in this process that misbehaves as told, and a real one that is started and stopped."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from werkzeug.serving import WSGIRequestHandler, make_server


class Flaky:
    """MLflow's own application over SQLite, and what happens on the way to it.

    `faults` is what happens to the next requests whose path holds the key, first come first served: "fail" (503, and nothing is done),
    "lost" (it is done, but the answer does not come), "hold" (neither, until `released`) or None. While it is `away`, every connection is
    cut. `asked` lists the paths of all requests.
    """

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self._application = application
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=_Quiet)
        self.uri = f"http://127.0.0.1:{self._server.port}"
        self.faults: dict[str, list[str | None]] = {}
        self.asked: list[str] = []
        self.away = False
        self.latency_s = 0.0
        self.released = threading.Event()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        self.asked.append(path)
        self.released.wait(self.latency_s)
        fault = next((faults.pop(0) for key, faults in self.faults.items() if key in path and faults), None)
        if fault == "hold":
            self.released.wait()
        if fault in ("fail", "hold"):
            start_response("503 Service Unavailable", [("Content-Length", "0")])
            return []
        if fault == "lost":
            list(self._application(environ, lambda *_: lambda _: None))
        if fault == "lost" or self.away:
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            raise ConnectionAbortedError
        return self._application(environ, start_response)

    def __enter__(self) -> "Flaky":
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


class _Quiet(WSGIRequestHandler):
    def log(self, *_: object, **__: object) -> None:
        """Silence."""


@contextmanager
def flaky_server(folder: Path) -> Iterator[Flaky]:
    with pytest.MonkeyPatch.context() as patch:
        from mlflow.server import ARTIFACT_ROOT_ENV_VAR, BACKEND_STORE_URI_ENV_VAR, app, handlers

        patch.setattr(handlers, "_tracking_store", None)
        patch.setattr(handlers, "_model_registry_store", None)
        patch.setattr(handlers.utils, "set_tracking_uri", lambda _: None)  # else later tests meet this server's store
        patch.setattr(handlers.registry_utils, "set_registry_uri", lambda _: None)
        patch.setenv(BACKEND_STORE_URI_ENV_VAR, f"sqlite:///{folder / 'server.db'}")
        patch.setenv(ARTIFACT_ROOT_ENV_VAR, (folder / "artifacts").as_uri())
        handlers._get_tracking_store()  # makes the database, which takes seconds
        with Flaky(app) as server:
            yield server


def start_server(folder: Path, port: int) -> "subprocess.Popen[bytes]":
    """`mlflow server` over SQLite in `folder`; returns when it answers. It leads a process group of its own."""
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1", "--port", str(port)]
    places = ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--artifacts-destination", str(folder / "artifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # ten more processes
    with (folder / "server.txt").open("ab") as log:
        server = subprocess.Popen([*command, *places], env=environment, stdout=log, stderr=log, start_new_session=True)
    until = time.monotonic() + 120
    while True:
        assert server.poll() is None, (folder / "server.txt").read_text()
        assert time.monotonic() < until, "mlflow server does not answer"
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return server
        except OSError:
            time.sleep(0.2)


def stop_server(server: "subprocess.Popen[bytes]") -> None:
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()
