"""Hosts on one machine: namespaces with addresses of their own, joined by a network that delays, loses and cuts.

The network is this file as a program. It carries packets between the hosts' TUN devices, because not every kernel has `tc`'s netem.
"""

import ctypes
import fcntl
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

PREFIX = "10.78.0."
MTU = 9000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
CLONE_NEWNET = 0x40000000


def missing() -> str:
    """What this machine lacks for hosts; empty if it has everything."""
    programs = [name for name in ("setpriv", "unshare", "nsenter", "ip") if shutil.which(name) is None]
    if os.geteuid() or programs or not Path("/dev/net/tun").exists():
        return f"needs root, /dev/net/tun, util-linux and iproute2 (missing: {', '.join(programs) or 'root or /dev/net/tun'})"
    return ""


class Hosts:
    """`count` hosts, numbered from 1; host i has the address 10.78.0.i. All their processes end with the block."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._holders: list[subprocess.Popen[bytes]] = []
        self._pids: list[int] = []
        self._network: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Hosts":
        for number in range(1, self.count + 1):
            unshare = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
            self._holders.append(
                subprocess.Popen(["setpriv", "--pdeathsig=KILL", *unshare, "sh", "-c", f"hostname host-{number}; exec sleep infinity"])
            )
            self._pids.append(_child(self._holders[-1].pid))
        command = [sys.executable, __file__, *map(str, self._pids)]
        self._network = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._network.stdout is not None
        assert self._network.stdout.readline() == "ready\n"
        for number in range(1, self.count + 1):
            up = f"ip link set lo up; ip address add {self.address(number)}/24 dev net; ip link set net mtu {MTU} up"
            subprocess.run(self.command(number, "sh", "-ec", up), check=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for process in [*self._holders, *([self._network] if self._network else [])]:
            process.kill()
            process.wait()

    def address(self, number: int) -> str:
        return f"{PREFIX}{number}"

    def network(self, number: int) -> str:
        """The name of that host's network namespace, as /proc/PID/ns/net links to it."""
        return os.readlink(f"/proc/{self._pids[number - 1]}/ns/net")

    def command(self, number: int, *command: str) -> list[str]:
        """`command` for a process on that host."""
        return ["nsenter", "--net", "--uts", "--mount", "--pid", f"--target={self._pids[number - 1]}", f"--wd={os.getcwd()}", *command]

    def set(self, delay_ms: float = 0.0, loss: float = 0.0, cut: Sequence[int] = ()) -> None:
        """From now on packets arrive `delay_ms` later, a share `loss` of them never, and none from or to the hosts in `cut`."""
        assert self._network is not None
        assert self._network.stdin is not None
        self._network.stdin.write(f"{delay_ms} {loss} {' '.join(map(str, cut))}\n")
        self._network.stdin.flush()


def _child(parent: int) -> int:
    """The first process of a new PID namespace, once `unshare` has started it."""
    for _ in range(200):
        children = psutil.Process(parent).children()
        if children and children[0].name() == "sleep":  # its namespaces are complete
            return children[0].pid
        time.sleep(0.05)
    raise AssertionError("unshare started nothing")


def _device(pid: int) -> int:
    """A TUN device, named net, in the network namespace of process `pid`."""
    namespace = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(namespace)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", b"net", IFF_TUN | IFF_NO_PI))
    return device


def carry(devices: list[int]) -> None:
    """Carry packets until standard input closes. The delay is one for all, so packets leave in the order in which they came."""
    delay, loss, cut = 0.0, 0.0, set[int]()
    under_way: deque[tuple[float, int, bytes]] = deque()
    chance = random.Random(0)
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([sys.stdin, *devices], [], [], wait)
        if sys.stdin in readable:
            line = sys.stdin.readline()
            if not line:
                return
            words = line.split()
            delay, loss, cut = float(words[0]) / 1000, float(words[1]), {int(word) for word in words[2:]}
        now = time.monotonic()
        for source, device in enumerate(devices, 1):
            if device not in readable:
                continue
            for packet in _waiting(device):
                target = packet[19] if packet[0] >> 4 == 4 else 0  # the last byte of an IPv4 packet's destination
                if 1 <= target <= len(devices) and not cut & {source, target} and chance.random() >= loss:
                    under_way.append((now + delay, devices[target - 1], packet))
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            _, device, packet = under_way.popleft()
            with suppress(OSError):  # a full queue loses the packet, as a switch would
                os.write(device, packet)


def _waiting(device: int) -> Any:
    """The packets that can be read now, a few at most, so that no host is kept waiting."""
    for _ in range(64):
        try:
            yield os.read(device, MTU)
        except BlockingIOError:
            return


if __name__ == "__main__":
    opened = [_device(int(pid)) for pid in sys.argv[1:]]
    print("ready", flush=True)
    carry(opened)
