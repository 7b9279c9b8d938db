"""The state of runs, of several seeds and of sweeps, as their folders tell it to anybody."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError
from registered import finished_run

from distmeta import cli
from distmeta.config import validate
from distmeta.errors import RunError
from distmeta.report.status import lines, status, watched
from distmeta.training.events import time_left
from distmeta.training.lease import Lease
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import LEASE


def folder(path: Path, **top: Any) -> RunFolder:
    made = RunFolder(path)
    path.mkdir(parents=True)
    content = {"run_folder": str(path), "data": {"shards": "x"}, "outer": {"steps": 100}}
    made.write_description(validate(content | top, "test"), {"dataset": "patterns", "fingerprint": "f" * 64})
    return made


def seen(made: RunFolder, step: int = 30, ago: float = 1.0) -> None:
    workers = [{"rank": rank, "pid": 70 + rank, "node": f"host-{rank // 2}"} for rank in range(3)]
    figures = {"meta-loss": "1.200"}
    status = {"phase": "training", "step": step, "steps_per_s": 2.0, "figures": figures, "steps": 100, "time": time.time() - ago}
    made.status.write(status | {"workers": workers})


def test_a_run_that_trains_says_how_far_how_fast_and_where(tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    seen(made)
    made.events.add("died", rank=1, pid=71, node="host-0", signal="SIGKILL", reason="", step=20, checkpoint="step-000010", log="")
    with Lease(made.path, print):
        found = status(made)
        told = "\n".join(lines(found))
    assert (found["state"], found["step"], found["steps"], found["time_left_s"]) == ("running", 30, 100, 35)
    for part in ("running; training; step 30 of 100", "2 steps/s, 0:35 left", "host-0: 0 (process 70), 1 (process 71)", "host-1: 2"):
        assert part in told
    assert "worker 1 (process 71 on host-0) died (SIGKILL) at step 20; the run resumes from checkpoint step-000010" in told


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00 left"), (65, "1:05 left"), (3599.6, "1 h 00 min left"), (93_900, "26 h 05 min left")]
)
def test_the_time_left_is_in_hours_from_an_hour_on(seconds: float, text: str) -> None:
    assert time_left(seconds) == text


def test_a_run_whose_process_is_gone_is_stopped_whatever_it_said_last(tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    seen(made)
    found = status(made)
    assert (found["state"], found["step"], found["workers"], found["steps_per_s"]) == ("stopped", 0, [], None)


def held_elsewhere(made: RunFolder) -> None:
    lease = {"owner": "x", "renewals": 3, "host": "far", "machine": "another", "pid": 1, "started": 0.0}
    (made.path / LEASE).write_text(json.dumps(lease))


@pytest.mark.parametrize(("ago", "state"), [(1.0, "running"), (1000.0, "silent")])
def test_of_another_machine_only_what_its_driver_writes_is_known(ago: float, state: str, tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    seen(made, ago=ago)
    held_elsewhere(made)
    assert status(made)["state"] == state


@pytest.mark.parametrize(("ago", "state"), [(1.0, "running"), (1000.0, "silent")])
@pytest.mark.parametrize("kind", ["sweep", "seeds"])
def test_a_sweep_and_seeds_on_another_machine_run_while_one_of_their_runs_does(kind: str, ago: float, state: str, tmp_path: Path) -> None:
    space = {"sweep": {"space": {"learner.inner_lr": {"choice": [0.1, 0.2]}}}, "train": {"validate_every": 10}}
    made = folder(tmp_path / kind, **(space if kind == "sweep" else {}))
    inner = made.trial(0) if kind == "sweep" else made.of_seed(0)
    folder(inner.path)
    if kind == "sweep":
        inner.write_trial({"number": 0, "state": "running", "reason": "", "params": {}})
    else:
        made.write_seeds({"seeds": [0, 1]})
        held_elsewhere(inner)
    seen(inner, ago=ago)
    held_elsewhere(made)
    assert status(made)["state"] == state


def test_a_finished_run_says_what_it_came_to(tmp_path: Path) -> None:
    made = finished_run(tmp_path / "done", f"sqlite:///{tmp_path / 'mlflow.db'}", 0.5)
    made.write_description(
        validate({"run_folder": "x", "data": {"shards": "x"}, "outer": {"steps": 10}}, "test"), {"dataset": "d", "fingerprint": ""}
    )
    found = status(made)
    assert (found["state"], found["step"]) == ("finished", 10)
    assert "test accuracy" in lines(found)[0]
    assert [one["state"] for one in watched(made)] == ["finished"]


def test_of_several_seeds_each_is_told(tmp_path: Path) -> None:
    made = folder(tmp_path / "all")
    made.write_seeds({"seeds": [0, 1]})
    folder(made.of_seed(0).path)
    found = status(made)
    assert (found["kind"], found["state"]) == ("seeds", "stopped")
    assert {name: run["state"] for name, run in found["runs"].items()} == {"seed 0": "stopped", "seed 1": "not begun"}


def test_of_a_sweep_each_trial_is_told_as_the_sweep_recorded_it(tmp_path: Path) -> None:
    made = folder(tmp_path / "sweep", sweep={"space": {"learner.inner_lr": {"choice": [0.1, 0.2]}}}, train={"validate_every": 10})
    for number, state in enumerate(("finished", "stopped", "running")):
        folder(made.trial(number).path)
        made.trial(number).write_trial({"number": number, "state": state, "reason": "", "params": {}})
    seen(made.trial(2))
    with Lease(made.path, print):
        found = status(made)
    assert (found["kind"], found["state"]) == ("sweep", "running")
    assert {name: run["state"] for name, run in found["runs"].items()} == {
        "trial 0": "finished",
        "trial 1": "stopped",
        "trial 2": "running",
    }
    assert (found["runs"]["trial 2"]["step"], len(found["runs"]["trial 2"]["workers"])) == (30, 3)
    assert "1 finished, 1 stopped, 1 running" in lines(found)[0]


def test_no_run_has_no_status(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="holds no run"):
        status(RunFolder(tmp_path))


class Locked:
    """A folder in object storage whose client finds no credentials."""

    def __truediv__(self, name: str) -> "Locked":
        return self

    def __str__(self) -> str:
        return "s3://bucket/run"

    def stat(self) -> Any:
        raise BotoCoreError


def test_a_bucket_without_credentials_is_named() -> None:
    with pytest.raises(RunError, match=r"s3://bucket/run holds no run: An unspecified error occurred; are its credentials in the env"):
        status(RunFolder(Locked()))  # type: ignore[arg-type]


def test_the_verb_prints_lines_or_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder(tmp_path / "run")
    for more in ([], ["--json"], ["--watch"]):
        monkeypatch.setattr("sys.argv", ["distmeta", "status", str(tmp_path / "run"), *more])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert json.loads(out)["state"] == "stopped" if "--json" in more else f"{tmp_path / 'run'}: stopped; step 0 of 100" in out


def test_a_jobs_status_is_that_of_its_run_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    jobs = {("http://head:8265", "job-7"): str(folder(tmp_path / "run"))}
    monkeypatch.setattr("distmeta.scale.submit.run_folder_of", lambda address, job_id: jobs[address, job_id])
    monkeypatch.setattr("sys.argv", ["distmeta", "status", "job-7", "--address", "http://head:8265"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert f"{tmp_path / 'run'}: stopped" in capsys.readouterr().out


def test_a_job_whose_run_has_not_begun_is_told_from_a_wrong_folder(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("distmeta.scale.submit.run_folder_of", lambda address, job_id: str(tmp_path / "run"))
    monkeypatch.setattr("sys.argv", ["distmeta", "status", "job-7", "--address", "http://head:8265"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == (
        f"distmeta: job job-7 writes {tmp_path / 'run'}, where this machine finds no run\n"
        "  wait until the run has begun, or read the job's log: distmeta jobs logs job-7 --address http://head:8265\n"
    )


@pytest.mark.parametrize(
    "event",
    [
        {"time": 1e300, "kind": "finished"},
        {"time": 1.0, "kind": "start", "step": 0, "workers": []},
        {"time": 1.0, "kind": "start", "step": 0, "checkpoint": None},
        {"time": 1.0, "kind": "died", "reason": "killed"},
        {"time": 1.0, "kind": "hung", "rank": 1},
        {"time": 1.0},
        ["start"],
    ],
)
def test_an_event_that_lacks_what_its_kind_needs_is_damage(event: Any, tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    (tmp_path / "run" / "events.jsonl").write_text(json.dumps(event) + "\n")
    with pytest.raises(RunError, match=r"events\.jsonl"):
        status(made)


@pytest.mark.parametrize("name", ["events.jsonl", "status.json"])
def test_a_run_does_not_need_a_damaged_record_of_what_happened(name: str, tmp_path: Path) -> None:
    made = folder(tmp_path / "run")
    (made.path / name).write_text('{"time": 1.0, "ki')
    with pytest.raises(RunError, match=rf"{name} is damaged: .*\n.*else remove that file: the run does not need it"):
        status(made)
    (made.path / name).unlink()
    assert status(made)["state"] == "stopped"


def test_what_a_received_folder_says_of_its_events_commands_no_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    made = folder(tmp_path / "run")
    made.events.add("of a later version", reason="\x1b[31mred\x07")
    made.events.add("\x1b]0;title\x07")
    monkeypatch.setattr("sys.argv", ["distmeta", "status", str(tmp_path / "run")])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert r"of a later version: \x1b[31mred\x07" in out
    assert "\x1b" not in out
