"""cluster/slurm.sh with substitutes for Slurm's programs: what starts where, and what follows a signal."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "cluster/slurm.sh"
# Each notes its call. srun runs what follows its options; its node's name is in $NODE. It takes its processors from its own variable, as
# since Slurm 22.05. ray's nodes run until they are ended, and the head is healthy unless $HEALTH is a failure. distmeta ends when $JOINED
# nodes of Ray have started, or with $LASTS by a signal only.
PROGRAMS = {
    "scontrol": '[ "$1" = show ] && printf "%s\\n" $NODES || exit 0',
    "squeue": 'echo "${STATE:-RUNNING}"',
    "srun": '[ "$SRUN_CPUS_PER_TASK" = 8 ] || exit 9; '
    'while [ "${1#--}" != "$1" ]; do case $1 in --nodelist=*) NODE=${1#*=};; esac; shift; done; export NODE; exec "$@"',
    "hostname": 'echo "$ADDRESSES"',
    "getent": "printf '127.0.1.1 STREAM\\nfe80::1 STREAM\\n'",
    "ray": '[ "$1" != health-check ] || exit ${HEALTH:-0}; exec sleep 300',
    "distmeta": 'trap "exit 1" TERM; if [ -n "$LASTS" ]; then sleep 300 & wait $!; fi; '
    'until [ "$(grep -c "^ray start" "$CALLS")" -ge "${JOINED:-0}" ]; do sleep 0.05; done',
}


@pytest.fixture
def allocation(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts the script as a job with these variables. Whatever it leaves behind is ended."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in PROGRAMS.items():
        program = programs / name
        program.write_text(f'#!/bin/sh\necho "{name} $*${{NODE:+ on $NODE}}" >> "$CALLS"\n{does}\n')
        program.chmod(0o755)
    jobs = []

    def start(*arguments: str, **variables: str) -> "subprocess.Popen[str]":
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "BIN": str(programs), "SLURM_SUBMIT_DIR": str(tmp_path)}
        environment |= {"CALLS": str(tmp_path / "calls")}
        environment |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_CPUS_PER_TASK": "8"}
        environment |= {"NODES": "n1 n2 n3", "ADDRESSES": "127.0.0.1 10.0.0.5 fd00::5"} | variables
        jobs.append(
            subprocess.Popen(["bash", SCRIPT, *arguments], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        return jobs[-1]

    yield start
    for job in jobs:
        with suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
        job.communicate()


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def noted(folder: Path, call: str) -> None:
    """Wait until a call that begins so was made."""
    until = time.monotonic() + 60
    while not any(line.startswith(call) for line in calls(folder)):
        assert time.monotonic() < until, calls(folder)
        time.sleep(0.05)


def test_a_run_gets_a_node_of_ray_on_every_allocated_node(allocation: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """The head's address is one that other nodes reach, although the host's name leads to loopback."""
    job = allocation("train", "run.yaml", "--resume", JOINED="3")
    assert job.wait(60) == 0
    made = calls(tmp_path)
    address = "10.0.0.5:20007"
    assert "ray start --block --num-cpus=8 --head --node-ip-address=10.0.0.5 --port=20007 --include-dashboard=true on n1" in made
    assert f"ray start --block --num-cpus=8 --address={address} on n2" in made
    assert f"ray start --block --num-cpus=8 --address={address} on n3" in made
    assert f"distmeta train run.yaml --resume --address {address} on n1" in made
    assert not [call for call in made if call.startswith("scontrol requeue")]
    assert not (tmp_path / ".distmeta-7").exists(), "its token stays"


def test_a_failed_run_is_a_failed_job(allocation: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    (tmp_path / "bin/distmeta").write_text("#!/bin/sh\nexit 3\n")
    assert allocation("train", "run.yaml").wait(60) == 3


def test_a_host_that_others_cannot_reach_is_named(allocation: Callable[..., "subprocess.Popen[str]"]) -> None:
    job = allocation("train", "run.yaml", ADDRESSES="127.0.0.1")
    assert job.communicate(timeout=60)[1].startswith("n1 has no address that other nodes could reach")
    assert job.returncode == 1


@pytest.mark.parametrize(("state", "requeued"), [("RUNNING", True), ("CANCELLED", False)])
def test_a_preempted_job_is_requeued_but_not_a_cancelled_one(
    allocation: Callable[..., "subprocess.Popen[str]"], tmp_path: Path, state: str, requeued: bool
) -> None:
    job = allocation("train", "run.yaml", LASTS="yes", STATE=state)
    noted(tmp_path, "distmeta train")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0
    assert ("scontrol requeue 7" in calls(tmp_path)) == requeued


def test_a_job_preempted_while_ray_starts_is_requeued(allocation: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    job = allocation("train", "run.yaml", HEALTH="1")
    noted(tmp_path, "ray health-check")
    job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0
    assert "scontrol requeue 7" in calls(tmp_path)
    assert not [call for call in calls(tmp_path) if call.startswith("distmeta")]


def test_the_tasks_of_an_array_are_one_cluster(allocation: Callable[..., "subprocess.Popen[str]"], tmp_path: Path) -> None:
    """The task that leads starts after one that follows; a preempted follower is requeued, and the last ends with the sweep."""
    array = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_MIN": "0"}
    leader = allocation("sweep", "s.yaml", SLURM_JOB_ID="9", SLURM_ARRAY_TASK_ID="0", NODES="n1", LASTS="yes", **array)
    noted(tmp_path, "distmeta sweep")
    follower = allocation("sweep", "s.yaml", SLURM_JOB_ID="10", SLURM_ARRAY_TASK_ID="1", NODES="n2", **array)
    noted(tmp_path, "ray start --block --num-cpus=8 --address=10.0.0.5:20009 on n2")
    assert len([call for call in calls(tmp_path) if call.startswith("distmeta")]) == 1
    follower.send_signal(signal.SIGTERM)
    assert follower.wait(60) == 0
    assert "scontrol requeue 10" in calls(tmp_path)
    leader.send_signal(signal.SIGTERM)
    assert leader.wait(60) != 0
    assert "scontrol requeue 9" in calls(tmp_path)
    again = allocation("sweep", "s.yaml", SLURM_JOB_ID="9", SLURM_ARRAY_TASK_ID="0", NODES="n1", **array)
    assert again.wait(60) == 0
    late = allocation("sweep", "s.yaml", SLURM_JOB_ID="11", SLURM_ARRAY_TASK_ID="2", NODES="n3", **array)
    assert late.wait(60) == 0
    assert not [call for call in calls(tmp_path) if call.endswith("on n3")], "the sweep is over"
