"""An HTTP server on the loopback that misbehaves as told."""

import contextlib
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Served(ThreadingHTTPServer):
    """`faults[name]` is what happens to the next requests for that file: an HTTP status, or "reset", "truncate", "cut",
    "stall", "flip", "drip" (a byte every 50 ms), "endless"."""

    def __init__(self, folder: Path, latency_s: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder
        self.latency_s = latency_s
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.faults: dict[str, list[int | str]] = defaultdict(list)
        self.requests: dict[str, int] = defaultdict(int)
        self.released = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients may hang up."""


class _Handler(BaseHTTPRequestHandler):
    server: Served

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        self.server.requests[name] += 1
        time.sleep(self.server.latency_s)
        fault = self.server.faults[name].pop(0) if self.server.faults[name] else None
        path = self.server.folder / self.path.partition("?")[0].lstrip("/")
        if fault == "reset":
            self.connection.close()
        elif isinstance(fault, int) or not path.exists():
            self.send_error(fault if isinstance(fault, int) else 404)
        else:
            self._send(path.read_bytes(), fault)

    def _send(self, content: bytes, fault: str | None) -> None:
        self.send_response(200)
        if fault not in ("cut", "endless"):  # without a length, a body that ends early looks whole
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if fault == "flip":
            content = bytes([content[0] ^ 1]) + content[1:]
        if fault == "drip":
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.server.released.wait(0.05):
                    return
        while fault == "endless" and not self.server.released.is_set():
            self.wfile.write(bytes(1 << 16))
        self.wfile.write(content[: len(content) // 2] if fault in ("truncate", "cut", "stall") else content)
        if fault == "stall":
            self.wfile.flush()
            self.server.released.wait()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # after a reset
            super().finish()

    def log_message(self, format: str, *args: object) -> None:
        """Silence."""


@contextlib.contextmanager
def serve(folder: Path, latency_s: float = 0.0) -> Iterator[Served]:
    with Served(folder, latency_s) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server
        finally:
            server.released.set()
            server.shutdown()
