"""Whole runs of reinforcement learning on Ray workers, from the config to the report, whatever happens to their workers."""

import itertools
import json
import os
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
from failures import at_checkpoint, workers_of
from ray.cluster_utils import Cluster
from test_failures import has_reached, start
from test_loop import PLAN, Recorder
from test_reinforcement import config
from torch import nn

from distmeta.assembly.run import Run
from distmeta.config import Config, validate
from distmeta.errors import DistmetaError
from distmeta.learners.forward import Forward
from distmeta.learners.inner import InnerLoop
from distmeta.learners.maml import FOMAML
from distmeta.learners.params import weights_sha256
from distmeta.scale.run import run
from distmeta.training.loop import Progress, train
from distmeta.training.run_folder import RunFolder

UPDATES = ["gradient", "promp", "trpo"]


class Fragile(FOMAML):
    """Its process dies in the fourth step, as that makes an inner loop for the n-th time; once only, which a file remembers."""

    def __init__(self, model: nn.Module, dies_at: int = 0, remembers: str = "", **settings: Any) -> None:
        super().__init__(model, **settings)
        self.dies_at, self.remembers, self.made = dies_at, remembers, 0

    def inner_loop(self, forward: Forward, step: int) -> InnerLoop:
        self.made += step == 3
        if self.made == self.dies_at and not os.path.exists(self.remembers):
            Path(self.remembers).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().inner_loop(forward, step)


def small(home: Path, name: str, **sections: dict[str, Any]) -> Config:
    made = config(home / name).model_dump(exclude_none=True)
    for section, keys in sections.items():
        made[section] |= keys
    made["tracking"] |= {"uri": f"sqlite:///{home / 'mlflow.db'}", "model": "walker"}
    return validate(made, "test")


@pytest.fixture(scope="module")
def alone(home: Path, address: str) -> dict[str, Any]:
    """A run on one worker."""
    return run(small(home, "alone", train={"workers": 1}), address=address)


def test_a_run_is_scored_by_its_return_after_each_step(alone: dict[str, Any]) -> None:
    assert alone["steps"] == 6
    assert list(alone["test"]["return_by_step"]) == ["0", "1", "2"]
    assert all(value < 0 for value in alone["test"]["return_by_step"].values())
    assert alone["test"]["random_init"].keys() == alone["test"]["return_by_step"].keys()
    page = (Path(alone["run_folder"]) / "report.html").read_text()
    assert "a policy that knows the goals" in page


def lasting(home: Path, name: str, update: str, workers: dict[str, Any]) -> Config:
    """100 steps of four tasks, a checkpoint at every fifth."""
    return small(
        home,
        f"{name}-{update}",
        outer={"update": update, "steps": 100, "meta_batch_size": 4},
        train={"checkpoint_every": 5, "validate_every": 100} | workers,
    )


def undisturbed(made: Config) -> str:
    """The weights of the same run in this process, without Ray."""
    run, slots = Run.of(made), list(range(4))
    outer, plan = run.outer(), PLAN._replace(steps=100, validate_every=100, checkpoint_every=100, meta_batch_size=4, slots=slots)
    train(run.learner, outer, run.domain.training(slots, 0), Progress(), plan, Recorder())
    return weights_sha256(run.learner.whole(outer.meta_params))


def steps_of(made: Config) -> list[int]:
    return [record["step"] for record in RunFolder(made.run_folder).metrics.read()]


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
def test_three_workers_of_which_one_is_killed_give_the_weights_of_one(update: str, home: Path, address: str) -> None:
    made = lasting(home, "killed", update, {"workers": 3})
    alone = undisturbed(made)
    at_checkpoint(Path(made.run_folder), 40, lambda: workers_of(psutil.Process())[1].kill())
    result = run(made, address=address)
    assert RunFolder(made.run_folder).restarts()
    assert steps_of(made) == list(range(1, 101))
    assert result["weights_sha256"] == alone


@pytest.mark.slow
@pytest.mark.parametrize("update", UPDATES)
def test_two_workers_that_become_one_give_the_weights_of_one(update: str, home: Path) -> None:
    """The node of one of them is lost, and the run continues on the other's."""
    node: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0, "include_dashboard": False})
    lost, _ = (cluster.add_node(**node) for _ in range(2))
    made = lasting(home, "resized", update, {"workers": [1, 2], "cpus_per_worker": 1, "start_timeout_s": 20})
    alone = undisturbed(made)
    process = start(made, home, cluster.address)
    has_reached(made, 30)
    cluster.remove_node(lost, allow_graceful=False)
    out, errors = process.communicate()
    cluster.shutdown()
    assert process.returncode == 0, errors
    workers = [max(record["ranks"]) + 1 for record in RunFolder(made.run_folder).metrics.read()]
    assert [count for count, _ in itertools.groupby(workers)] == [2, 1]
    assert json.loads(out.splitlines()[-1])["weights_sha256"] == alone


@pytest.mark.slow
def test_workers_that_die_inside_a_trpo_step_change_no_weights(home: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step makes inner loops to play, for the gradient, for the products, for the loss before, and for each try of the line search."""
    monkeypatch.chdir(Path(__file__).parent)  # where workers find the learner
    results = {}
    for inside, dies_at in (("nothing", 0), ("conjugate gradients", 3), ("the line search", 5)):
        remembers = home / f"died inside {inside}"
        learner = {"name": f"{__name__}.Fragile", "dies_at": dies_at or 99, "remembers": str(remembers)}
        outer = {"update": "trpo", "steps": 6, "meta_batch_size": 4}
        made = small(home, f"dies-{dies_at}", learner=learner, outer=outer, train={"checkpoint_every": 1, "workers": 2})
        results[inside] = run(made, address=address)["weights_sha256"]
        assert remembers.exists() == (inside != "nothing")
        assert bool(RunFolder(made.run_folder).restarts()) == (inside != "nothing")
    assert len(set(results.values())) == 1


@pytest.mark.slow
def test_a_run_whose_environment_hangs_ends_with_a_message(home: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After more steps than the trial before a run makes."""
    monkeypatch.chdir(Path(__file__).parent)  # where workers find the environment
    options = {"id": "test_gymnasium.Stuck", "horizon": 25, "arguments": {"at": 24}, "step_timeout_s": 1}
    with pytest.raises(DistmetaError, match=r"Stuck did not return from reset or step within 1 s"):
        run(small(home, "stuck", data={"settings": {"environment": "gymnasium", "options": options}}), address=address)


def cheetah(home: Path, name: str, **train: Any) -> Config:
    return small(
        home,
        name,
        data={"settings": {"environment": "half-cheetah-direction", "options": {"horizon": 20}}},
        outer={"steps": 5, "meta_batch_size": 3},
        train={"checkpoint_every": 1, "validate_every": 5} | train,
    )


@pytest.mark.slow
def test_half_cheetah_trains_the_same_weights_on_any_workers_killed_or_not(home: Path, address: str) -> None:
    pytest.importorskip("mujoco")
    alone, three = (run(cheetah(home, f"cheetah-{workers}", workers=workers), address=address) for workers in (1, 3))
    killed = cheetah(home, "cheetah-killed", workers=2)
    at_checkpoint(Path(killed.run_folder), 2, lambda: workers_of(psutil.Process())[1].kill())
    again = run(killed, address=address)
    assert alone["weights_sha256"] == three["weights_sha256"] == again["weights_sha256"]
    (written, *_) = Path(killed.run_folder).glob("checkpoints/step-*/progress.json")
    assert {"gymnasium", "mujoco"} <= json.loads(written.read_text())["machine"].keys()
