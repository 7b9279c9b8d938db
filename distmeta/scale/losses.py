"""Finds out which workers a run lost, and why, from Ray Train's reports and from a lost worker's node."""

import os
import re
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Place = dict[str, Any]
"""A worker's place: rank, pid, node (host name), ip, node_id, log, oom_kills."""

_CONNECT_S, _PROBE_S = 2.0, 5.0
_TAIL_BYTES = 20_000
_KEPT_BYTES = 1 << 20  # of each log
# Messages of gloo and NCCL about a peer that is lost or silent.
_PEER_GONE = re.compile(r"Connection closed by peer|Connection reset|Broken pipe|Connection refused|remote process exited|Socket closed")
_PEER_SILENT = re.compile(r"Timed out waiting|timed out|Timeout|watchdog", re.IGNORECASE)
_COLLECTIVE = re.compile(r"gloo|nccl|ProcessGroup|DistBackendError", re.IGNORECASE)
_SIGNAL_IN_LOG = re.compile(r"\*\*\* (SIG[A-Z]+) received|Fatal Python error: ([A-Z][a-z ]+)")
_NAMED = {
    "Segmentation fault": "SIGSEGV",
    "Aborted": "SIGABRT",
    "Bus error": "SIGBUS",
    "Floating": "SIGFPE",
    "Floating point exception": "SIGFPE",
    "Illegal instruction": "SIGILL",
}


class Failure(NamedTuple):
    """A worker's failure as reported by Ray Train: the names of its exception and of the causes, and their text."""

    kinds: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        inner = getattr(error, "health_check_failure", None) or error.__cause__
        kinds = tuple(type(one).__name__ for one in (error, inner) if one is not None)
        return cls(kinds, f"{error}"[-_TAIL_BYTES:])

    @property
    def last_line(self) -> str:
        return " ".join((self.text.strip().splitlines() or [self.kinds[0]])[-1].split())[:300]


class Loss(NamedTuple):
    rank: int
    kind: str
    reason: str


def lost(failures: dict[int, Failure], ranks: set[int]) -> list[Loss]:
    """The workers among `ranks` that were lost. A worker that only lost its connection to another does not count."""
    losses: list[Loss] = []
    witnesses: dict[int, Failure] = {}
    for rank, failure in failures.items():
        loss = _loss(rank, failure)
        if loss is None:
            witnesses[rank] = failure
        else:
            losses.append(loss)
    if losses:
        return losses
    if not witnesses:
        return []
    suspects = sorted(ranks - failures.keys())
    if not suspects:  # all of them lost a connection, and none is known to be lost
        first = min(witnesses)
        return [Loss(first, "failed", witnesses[first].last_line)]
    said = " ".join(failure.text for failure in witnesses.values())
    silent = _PEER_SILENT.search(said) and not _PEER_GONE.search(said)
    kind, reason = ("hung", "it did not answer the other workers") if silent else ("died", "its connections to the other workers closed")
    return [Loss(rank, kind, reason) for rank in suspects]


def _loss(rank: int, failure: Failure) -> Loss | None:
    """How the worker was lost, or None if it only lost its connection to another."""
    if "WorkerHealthCheckTimeoutError" in failure.kinds:
        return Loss(rank, "hung", "it did not answer Ray")
    if "OutOfMemoryError" in failure.kinds or "running low on memory" in failure.text:
        return Loss(rank, "out of memory", "Ray's memory monitor ended it")
    if "NodeDiedError" in failure.kinds or "node died" in failure.text.lower() or "The node has been marked dead" in failure.text:
        return Loss(rank, "node lost", "Ray lost its node")
    if "WorkerHealthCheckFailedError" in failure.kinds:
        return Loss(rank, "died", "Ray lost its process")
    if "Terminated" in failure.kinds:
        return Loss(rank, "died", "SIGTERM: it was asked to end, and wrote a checkpoint")
    if _COLLECTIVE.search(failure.text) or _PEER_GONE.search(failure.text):
        return None
    return Loss(rank, "failed", f"{failure.kinds[0]}: {failure.last_line}")


def here(rank: int) -> Place:
    """The place of this worker."""
    try:
        log = os.readlink("/proc/self/fd/2")
    except OSError:  # no Linux
        log = ""
    context = ray.get_runtime_context()
    return {
        "rank": rank,
        "pid": os.getpid(),
        "node": socket.gethostname(),
        "ip": ray.util.get_node_ip_address(),
        "node_id": context.get_node_id(),
        "log": log if log.startswith("/") and not log.endswith("(deleted)") else "",
        "cgroup": _cgroup(),
        "oom_kills": oom_kills(_cgroup()),
    }


def _cgroup(table: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> str:
    """The file that counts kills for lack of memory in this process's control group; empty if there is none."""
    with suppress(OSError, ValueError):
        for line in table.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            # Version 1 has a tree for each controller, version 2 one for all. In a container the tree may begin at the group itself.
            tree, name = (root / "memory", "memory.oom_control") if controllers == "memory" else (root, "memory.events")
            if controllers in ("memory", ""):
                counter = next((file for file in (tree / path.strip("/") / name, tree / name) if file.exists()), None)
                if counter is not None:
                    return str(counter)
    return ""


def oom_kills(cgroup: str, machine: Path = Path("/proc/vmstat")) -> list[int]:
    """The number of processes killed by the kernel for lack of memory, in the control group and on the machine, if counted."""
    counts = []
    for file in (Path(cgroup), machine) if cgroup else (machine,):
        with suppress(OSError):
            counts += [int(count) for count in re.findall(r"^oom_kill (\d+)$", file.read_text(), re.MULTILINE)]
    return counts


def signal_in(log: str) -> str | None:
    """The fatal signal named in a process's log."""
    with suppress(OSError):
        with open(log, "rb") as file:
            file.seek(max(0, os.path.getsize(log) - _TAIL_BYTES))
            lines = list(_SIGNAL_IN_LOG.finditer(file.read().decode(errors="replace")))
        if lines:
            return lines[-1][1] or _NAMED.get(lines[-1][2].strip(), lines[-1][2].strip())
    return None


class Traces(NamedTuple):
    """Traces of a worker on its node: the signal in its log, the kernel's counts now, and the last bytes that it printed."""

    signal: str | None
    oom_kills: list[int]
    errors: bytes
    output: bytes


def examine(loss: Loss, place: Place, traces: Traces | None) -> dict[str, Any]:
    """The event's `kind`, `reason` and `signal`. `traces` are None if the node is gone, or too busy. Never raises."""
    known = {"kind": loss.kind, "reason": loss.reason, "signal": None}
    if "SIGTERM" in loss.reason:
        return known | {"signal": "SIGTERM"}
    if loss.kind not in ("died", "hung") or not place:
        return known
    if traces is None:
        return known if _node_answers(place) else known | {"kind": "node lost", "reason": "its node does not answer"}
    if loss.kind == "hung":
        return known
    if traces.signal is None and traces.oom_kills > place["oom_kills"]:
        return known | {"kind": "out of memory", "reason": "the kernel ended it", "signal": "SIGKILL"}
    # A process that can still write logs its signal. Without a log entry the signal was SIGKILL.
    return known | {"signal": traces.signal or "SIGKILL"}


def _node_answers(place: Place) -> bool:
    """Whether Ray counts the place's node among the cluster's, and its raylet listens: Ray itself misses a node only after 15 s or more."""
    for node in ray.nodes():
        if node["NodeID"] == place["node_id"] and node["Alive"]:
            with suppress(OSError):
                socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), timeout=_CONNECT_S).close()
                return True
    return False


@ray.remote(num_cpus=0)
class Witness:
    """Stays on a node for as long as workers train there. A process that had to be started first would answer too late on a busy node."""

    def __init__(self, title: str) -> None:
        """`title` is what dashboards call the run."""
        self.title = title

    def __repr__(self) -> str:
        return f"{self.title} witness"

    def traces(self, log: str, cgroup: str) -> "Traces":
        return _traces(log, cgroup)


def witnesses_at(places: Iterable[Place], title: str) -> dict[str, Any]:
    """A witness on each node of these workers but this process's own: node id → actor. They start in the background."""
    away = {place["node_id"] for place in places} - {ray.get_runtime_context().get_node_id()}
    there = {node_id: NodeAffinitySchedulingStrategy(node_id, soft=False) for node_id in away}
    made = Witness.options  # type: ignore[attr-defined]
    return {node_id: made(scheduling_strategy=strategy).remote(title) for node_id, strategy in there.items()}


def traces_of(places: list[Place], witnesses: dict[str, Any]) -> list[Traces | None]:
    """The traces of the workers at these places, queried in parallel; None if a node does not answer in time. Never raises."""
    own, asked = ray.get_runtime_context().get_node_id(), {}
    for number, place in enumerate(places):
        if place["node_id"] in witnesses and _node_answers(place):
            asked[witnesses[place["node_id"]].traces.remote(place["log"], place["cgroup"])] = number
    found = [_traces(place["log"], place["cgroup"]) if place["node_id"] == own else None for place in places]
    answered, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_PROBE_S) if asked else ([], [])
    for answer in answered:
        with suppress(RayError):  # the node is lost, too
            found[asked[answer]] = ray.get(answer)
    return found


def _traces(log: str, cgroup: str) -> Traces:
    return Traces(signal_in(log), oom_kills(cgroup), _end_of(log), _end_of(log.removesuffix(".err") + ".out"))


def _end_of(log: str) -> bytes:
    with suppress(OSError), open(log, "rb") as file:
        file.seek(max(0, os.path.getsize(log) - _KEPT_BYTES))
        return file.read()
    return b""
