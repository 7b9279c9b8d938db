"""Which worker was lost and why, from what Ray Train hears, what its log says and what the kernel counts."""

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from distmeta.errors import RunError
from distmeta.scale.chronicle import Chronicle
from distmeta.scale.losses import Failure, Loss, Traces, _cgroup, _traces, examine, lost, oom_kills, signal_in
from distmeta.training.events import EventLog, sentence
from distmeta.training.run_folder import RunFolder
from distmeta.training.stored import LOST

DIED = Failure(("WorkerHealthCheckFailedError", "ActorDiedError"), "A worker health check failed.\nThe actor died unexpectedly")
HUNG = Failure(("WorkerHealthCheckTimeoutError",), "A worker health check has been hanging for 10.20 seconds. Marking the worker as dead.")
NODE = Failure(("WorkerHealthCheckFailedError", "ActorDiedError"), "The actor died because its node has died. node died")
MEMORY = Failure(("WorkerHealthCheckFailedError", "OutOfMemoryError"), "the node was running low on memory")
CLOSED = Failure(("RuntimeError",), "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4")
SILENT = Failure(
    ("RuntimeError",), "[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 10000ms for recv operation"
)
BROKEN = Failure(("IndexError",), "list index out of range")


@pytest.mark.parametrize(
    ("failures", "expected"),
    [
        ({1: DIED}, [(1, "died")]),
        ({0: CLOSED, 1: DIED}, [(1, "died")]),
        ({0: CLOSED, 1: DIED, 2: DIED}, [(1, "died"), (2, "died")]),
        ({0: SILENT, 2: HUNG}, [(2, "hung")]),
        ({0: SILENT, 1: SILENT}, [(2, "hung")]),
        ({0: CLOSED}, [(1, "died"), (2, "died")]),
        ({0: CLOSED, 1: CLOSED}, [(2, "died")]),
        ({0: CLOSED, 1: BROKEN}, [(1, "failed")]),
        ({0: NODE}, [(0, "node lost")]),
        ({2: MEMORY, 0: CLOSED}, [(2, "out of memory")]),
        ({0: CLOSED, 1: CLOSED, 2: CLOSED}, [(0, "failed")]),
        ({}, []),
    ],
)
def test_who_only_lost_a_peer_was_not_lost(failures: dict[int, Failure], expected: list[tuple[int, str]]) -> None:
    assert [(loss.rank, loss.kind) for loss in lost(failures, {0, 1, 2})] == expected


def test_a_failure_is_read_from_the_exception_that_ray_train_hands_over() -> None:
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    error = WorkerHealthCheckFailedError("A worker health check failed.", failure=ray.exceptions.ActorDiedError())
    assert Failure.of(error).kinds == ("WorkerHealthCheckFailedError", "ActorDiedError")
    assert lost({3: Failure.of(error)}, {3}) == [Loss(3, "died", "Ray lost its process")]
    assert Failure.of(ValueError("a\nb c")).last_line == "b c"


@pytest.mark.parametrize(
    ("log", "signal"),
    [
        ("*** SIGSEGV received at time=1764 on cpu 1 ***\n[trace]", "SIGSEGV"),
        ("Fatal Python error: Segmentation fault\n\nStack:", "SIGSEGV"),
        ("Fatal Python error: Aborted\n", "SIGABRT"),
        ("all is well\n", None),
        ("", None),
    ],
)
def test_a_log_names_the_signal_if_the_process_could_still_write(log: str, signal: str | None, tmp_path: Path) -> None:
    (tmp_path / "worker.err").write_text("x" * 50_000 + "\n" + log)
    assert signal_in(str(tmp_path / "worker.err")) == signal
    assert signal_in(str(tmp_path / "absent")) is None


@pytest.mark.parametrize(
    ("table", "file"),
    [
        ("0::/pod/7\n", "pod/7/memory.events"),
        ("0::/pod/7\n", "memory.events"),  # a container sees its own group as the root
        ("9:name=systemd:/\n4:memory:/pod/7\n0::/\n", "memory/pod/7/memory.oom_control"),
    ],
)
def test_kills_for_lack_of_memory_are_counted_in_the_workers_own_control_group(table: str, file: str, tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text(table)
    counter = tmp_path / "fs" / file
    counter.parent.mkdir(parents=True)
    counter.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert _cgroup(tmp_path / "cgroup", tmp_path / "fs") == str(counter)
    (tmp_path / "vmstat").write_text("pgfault 9\noom_kill 5\n")
    assert oom_kills(str(counter), tmp_path / "vmstat") == [3, 5]


def test_where_no_group_counts_the_machine_does(tmp_path: Path) -> None:
    (tmp_path / "vmstat").write_text("pgfault 9\noom_kill 2\n")
    assert _cgroup(tmp_path / "absent", tmp_path) == ""
    assert oom_kills("", tmp_path / "vmstat") == [2]
    assert oom_kills("", tmp_path / "absent") == []


@pytest.mark.parametrize("kind", ["died", "hung"])
def test_a_worker_whose_node_does_not_answer_was_lost_with_it_before_ray_says_so(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray itself misses a node only after its health checks have failed several times."""
    loss, place = Loss(1, kind, "its connections closed"), {"node_id": "far"}
    with socket.create_server(("127.0.0.1", 0)) as raylet:
        node = {"NodeID": "far", "Alive": True, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": raylet.getsockname()[1]}
        monkeypatch.setattr(ray, "nodes", lambda: [{"NodeID": "other", "Alive": True}, node])
        assert examine(loss, place, None)["kind"] == kind, "it is only too busy to answer more"
    assert examine(loss, place, None)["kind"] == "node lost"
    node["Alive"] = False
    assert examine(loss, place, None)["kind"] == "node lost"


@pytest.mark.parametrize(
    ("kind", "kills", "signal", "expected"),
    [
        ("died", [3, 7], "SIGSEGV", ("died", "SIGSEGV")),
        ("died", [3, 7], None, ("died", "SIGKILL")),
        ("died", [4, 7], None, ("out of memory", "SIGKILL")),
        ("hung", [3, 7], None, ("hung", None)),
    ],
)
def test_what_a_node_knows_names_the_cause(kind: str, kills: list[int], signal: str | None, expected: tuple[str, str | None]) -> None:
    known = examine(Loss(1, kind, "gone"), {"node_id": "far", "oom_kills": [3, 7]}, Traces(signal, kills, b"", b""))
    assert (known["kind"], known["signal"]) == expected


@pytest.mark.parametrize("kind", LOST)
def test_every_loss_is_told_with_place_cause_and_what_comes_next(kind: str, tmp_path: Path) -> None:
    facts: dict[str, Any] = {"rank": 1, "pid": 77, "node": "host-a", "ip": "10.0.0.1", "log": "/logs/w.err", "signal": "SIGKILL"}
    log = EventLog(tmp_path / "log", tmp_path / "worker_logs")
    told = sentence(log.add(kind, **facts, reason="because", step=573, checkpoint="step-000528"))
    for part in ("worker 1", "process 77 on host-a", "at step 573", "checkpoint step-000528", "/logs/w.err"):
        assert part in told
    assert ("SIGKILL" if kind == "died" else "because") in told
    (kept,) = log.read()
    assert (kept["kind"], kept["pid"]) == (kind, 77)


class Board:
    """What a run's board would have heard, without Ray."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {"phase": "training", "step": 7, "steps_per_s": 2.0}
        self.happened: list[tuple[str, Any]] = []
        self.heard = SimpleNamespace(remote=lambda since: (dict(self.status), self.happened[since:]))


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    monkeypatch.setattr("distmeta.scale.chronicle.ask", lambda method, *arguments: method.remote(*arguments))
    monkeypatch.setattr(
        "distmeta.scale.chronicle.examine", lambda loss, place, traces: {"kind": loss.kind, "reason": loss.reason, "signal": "SIGKILL"}
    )
    monkeypatch.setattr("distmeta.scale.chronicle.traces_of", lambda asked, _: [_traces(place["log"], "") for place in asked])
    monkeypatch.setattr("distmeta.scale.chronicle.witnesses_at", lambda places, title: {})
    return Board()


def places(first_pid: int) -> dict[int, dict[str, Any]]:
    return {rank: {"rank": rank, "pid": first_pid + rank, "node": "host-a", "ip": "10.0.0.1", "log": f"/logs/{rank}"} for rank in range(2)}


def test_a_chronicle_keeps_what_happened_once_and_tells_what_people_would_else_not_hear(board: Board, tmp_path: Path) -> None:
    said: list[str] = []
    folder = RunFolder(tmp_path)
    chronicle = Chronicle(folder, board, 100, said.append)
    board.happened.append(("start", {"step": 0, "checkpoint": None, "workers": places(70)}))
    assert chronicle.follow()["step"] == 7
    assert said == [], "a first start is no news"
    board.happened.append(("failures", {0: CLOSED, 1: DIED}))
    chronicle.follow()
    board.happened.append(("start", {"step": 5, "checkpoint": "step-000005", "workers": places(80)}))
    chronicle.follow()
    chronicle.follow()
    begun, died, again = folder.events.read()
    assert [event["kind"] for event in (begun, died, again)] == ["start", "died", "start"]
    assert (died["rank"], died["pid"], died["step"], died["log"]) == (1, 71, 7, "/logs/1")
    assert said == [sentence(died), sentence(again)]
    status = folder.status.read()
    assert status is not None
    assert (status["step"], status["steps"], [worker["pid"] for worker in status["workers"]]) == (7, 100, [80, 81])


def test_what_a_lost_worker_printed_is_copied_into_the_run_folder_without_colours_and_secrets(board: Board, tmp_path: Path) -> None:
    log, said = tmp_path / "node" / "worker-1.err", list[str]()
    log.parent.mkdir()
    log.write_text("\x1b[31mKilled\x1b[0m\tat s3://key:secret@store/x\n")
    log.with_suffix(".out").write_text("hello\n")
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    chronicle = Chronicle(folder, board, 100, said.append)
    workers = places(70)
    workers[1]["log"] = str(log)
    board.happened = [("start", {"step": 0, "checkpoint": None, "workers": workers}), ("failures", {0: CLOSED, 1: DIED})]
    chronicle.follow()
    copy = tmp_path / "run" / "worker_logs" / "rank-1-host-a-71.err"
    assert copy.read_text() == "Killed\tat s3://store/x\n"
    assert copy.with_suffix(".out").read_text() == "hello\n"
    assert folder.events.read()[-1]["log"] == str(copy)
    assert said[-1].endswith(f"its log is {copy}")
    log.write_text("again\n")
    chronicle.keep_logs()
    assert copy.read_text() == "again\n"


def test_a_resumed_driver_says_that_workers_start_again(board: Board, tmp_path: Path) -> None:
    said: list[str] = []
    for pid in (70, 80):
        board.happened = [("start", {"step": 5, "checkpoint": "step-000005", "workers": places(pid)})]
        Chronicle(RunFolder(tmp_path), board, 100, said.append).follow()
    assert said == ["2 workers train from checkpoint step-000005"]


def test_events_are_kept_in_order(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log", tmp_path / "worker_logs")
    assert log.read() == []
    log.add("start", step=0, checkpoint=None, workers=list(places(70).values()))
    log.add("stopped", reason="as asked")
    assert [sentence(event) for event in log.read()] == ["2 workers train from the beginning", "stopped: as asked"]


@pytest.mark.parametrize(
    "line", ["", "[]", '{"kind": "died"}', '{"time": 1, "kind": "start", "workers": [{}]}', '{"time": 1, "kind": "died", "step": -1}']
)
def test_events_that_somebody_else_wrote_are_checked(line: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(f'{{"time": 1, "kind": "finished"}}\n{line}\n')
    with pytest.raises(RunError, match="is damaged"):
        EventLog(tmp_path / "log", tmp_path / "worker_logs").read()


def test_no_secret_stands_in_an_event(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log", tmp_path / "worker_logs")
    log.add("ended", reason="cannot read http://user:hunter2@host/shards")
    assert "hunter2" not in (tmp_path / "log").read_text()
