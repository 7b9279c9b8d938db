"""A Ray cluster over the hosts of tests/hosts.py, and what runs on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
from hosts import Hosts

PORT, DASHBOARD = 6379, 8265
_OF_ANOTHER = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN_PATH", "RAY_TMPDIR")
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in _OF_ANOTHER} | {
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's `python`
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
}


class RayHosts:
    """A Ray cluster on all hosts, with one CPU on each, or none on the first, which has the head. It ends with the hosts."""

    def __init__(self, hosts: Hosts, folder: Path, head_cpus: int = 1, dashboard: bool = False) -> None:
        """`folder` is new, and its path short, because Ray makes sockets in it."""
        self.hosts, self.folder = hosts, folder
        self.head = f"{hosts.address(1)}:{PORT}"
        self.dashboard = f"http://{hosts.address(1)}:{DASHBOARD}"
        shown = [f"--include-dashboard={dashboard}", f"--dashboard-host={hosts.address(1)}", f"--dashboard-port={DASHBOARD}"]
        self._start(1, head_cpus, "--head", f"--port={PORT}", *shown)
        for number in range(2, hosts.count + 1):
            self._start(number, 1, f"--address={self.head}")

    def _start(self, number: int, cpus: int, *options: str) -> None:
        """Start a node on that host, and wait until it is there. It has its own folder, because every node unpacks a job's files."""
        own = [f"--node-ip-address={self.hosts.address(number)}", f"--num-cpus={cpus}", "--object-store-memory=80000000"]
        own.append(f"--temp-dir={self.node_folder(number)}")
        ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", *options, *own]
        log = self.folder / f"host-{number}.log"
        with log.open("w") as out:
            process = subprocess.Popen(self.hosts.command(number, *ray), stdout=out, stderr=out, env=ENVIRONMENT)
        until = time.monotonic() + 240
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def node_folder(self, number: int) -> Path:
        """Where Ray keeps that node's logs and sockets."""
        return self.folder / str(number)

    def run(self, *arguments: str) -> list[str]:
        """The command `distmeta ARGUMENTS` on the first host."""
        return self.hosts.command(1, sys.executable, "-m", "distmeta", *arguments)

    def processes(self, number: int, word: str) -> list[psutil.Process]:
        """The processes on that host with `word` in their command."""
        namespace, found = self.hosts.network(number), []
        for process in psutil.process_iter():
            try:
                if word in " ".join(process.cmdline()) and os.readlink(f"/proc/{process.pid}/ns/net") == namespace:
                    found.append(process)
            except (psutil.Error, OSError):  # it has just ended
                continue
        return found
