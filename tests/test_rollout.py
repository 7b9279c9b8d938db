"""Registered policies in use: they adapt to a task by acting, map observations to actions, and refuse what does not fit."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_reinforcement import config

from distmeta.assembly.build import learner_of, model_description
from distmeta.assembly.domain import domain_of
from distmeta.cli import main
from distmeta.config import Config, validate
from distmeta.envs import build_environment
from distmeta.errors import ConfigError, DataError, RegistryError
from distmeta.inference.policy import PolicyModel
from distmeta.registry import tracking, versions
from distmeta.registry.policies import load_policy, save_policy
from distmeta.training.evaluate import evaluate
from distmeta.training.run_folder import RunFolder


def publish(home: Path, name: str, **sections: dict[str, Any]) -> str:
    """A policy registered as a run publishes it, not trained at all; its address."""
    uri = f"sqlite:///{home / 'mlflow.db'}"
    made: Config = validate(config(home / name, **sections).model_dump(exclude_none=True) | {"tracking": {"uri": uri}}, "test")
    domain = domain_of(made)
    learner = learner_of(made, domain)
    params = learner.initial_params()
    run_folder = RunFolder(home / name)
    tested = evaluate(domain.metric, learner, params, domain.evaluation("test"), 7, "none")
    description = model_description(made, domain, learner)
    run_folder.save_best(6, params, description | {"step": 6, "validation": tested.as_dict(), "validation_score": tested.score})
    (home / name / "config.yaml").write_text(made.to_yaml())
    run_folder.write_result({"steps": 6, "best_step": 6, "weights_sha256": "0" * 64, "test": tested.as_dict()}, tested.rows())
    tracking.start_run(made, run_folder, {"run_folder": str(home / name)})
    return versions.publish(uri, run_folder, name).uri


@pytest.fixture(scope="module")
def policy(home: Path) -> PolicyModel:
    return load_policy(f"sqlite:///{home / 'mlflow.db'}", publish(home, "walker"))


def test_a_registered_policy_adapts_to_a_task_and_maps_observations_to_actions(policy: PolicyModel) -> None:
    adapted, again = (policy.adapt(task=[0.3, -0.2], inner_steps=2, trajectories=5) for _ in range(2))
    assert adapted.task == pytest.approx([0.3, -0.2])
    assert len(adapted.returns) == 3
    assert adapted.returns == again.returns
    assert adapted.params.keys() == policy.meta_params.keys()
    assert not torch.equal(adapted.params["head.weight"], policy.meta_params["head.weight"])
    actions = adapted(torch.zeros(4, 2))
    assert actions.shape == (4, 2)
    assert torch.equal(actions, again(torch.zeros(4, 2)))


def test_a_policys_task_has_trajectories_and_no_classes(policy: PolicyModel) -> None:
    assert policy.description["task"] == {"way": 1, "shot": 4, "queries": 4}


def test_a_policy_adapts_in_another_environment_with_its_own_horizon(policy: PolicyModel) -> None:
    adapted = policy.adapt(build_environment("navigation", horizon=3), trajectories=4)
    assert adapted.played[0].rewards.shape == (1, 4, 3)
    assert policy.adapt(trajectories=4).played[0].rewards.shape == (1, 4, 8), "the model itself is unchanged"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"environment": build_environment("grid")}, r"was trained with"),
        ({"task": [0.1]}, r"has 2 components, not 1"),
        ({"task": [0.1, float("nan")]}, r"must be finite"),
        ({"inner_steps": 0}, r"0 inner steps"),
        ({"inner_steps": 10**6}, r"1,000,000 inner steps; at most 1,000"),
        ({"trajectories": 10**9}, r"1,000,000,000 trajectories; at most 10,000"),
        ({"trajectories": 1}, r"needs more than one"),
    ],
)
def test_what_a_policy_cannot_do_is_refused(policy: PolicyModel, changes: dict[str, Any], reason: str) -> None:
    with pytest.raises((ConfigError, DataError), match=reason):
        policy.adapt(**changes)


def test_a_policy_of_the_users_own_environment_is_built_only_in_one_that_is_named(home: Path) -> None:
    options = {"id": "CartPole-v1", "horizon": 5}
    data = {"domain": "reinforcement", "shot": 4, "settings": {"environment": "gymnasium", "options": options}}
    uri, store = publish(home, "pole", data=data), f"sqlite:///{home / 'mlflow.db'}"
    with pytest.raises(ConfigError, match="imported only if you name it"):
        load_policy(store, uri)
    adapted = load_policy(store, uri, environment=build_environment("gymnasium", **options)).adapt(trajectories=3)
    actions = adapted(torch.zeros(2, 4))
    assert actions.dtype == torch.int64
    assert set(actions.tolist()) <= {0, 1}


@pytest.mark.parametrize(("name", "options"), [("grid", {}), ("gymnasium", {"id": "CartPole-v1"}), ("gymnasium", {"id": "MountainCar-v0"})])
def test_a_policy_is_not_loaded_into_an_environment_that_it_does_not_fit(policy: PolicyModel, home: Path, name: str, options: Any) -> None:
    with pytest.raises(ConfigError, match=r"was trained with 2 and 2 continuous ones\nchoose an environment like"):
        load_policy(f"sqlite:///{home / 'mlflow.db'}", policy.uri, environment=build_environment(name, **options))


@pytest.mark.slow
def test_half_cheetah_is_drawn_as_a_gif(home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mujoco")
    settings = {"environment": "half-cheetah-direction", "options": {"horizon": 10}}
    uri, picture = publish(home, "cheetah", data={"domain": "reinforcement", "shot": 4, "settings": settings}), home / "cheetah.gif"
    arguments = ["--model", uri, "--tracking-uri", f"sqlite:///{home / 'mlflow.db'}", "--trajectories", "3", "--out", str(picture)]
    monkeypatch.setattr("sys.argv", ["distmeta", "rollout", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    with Image.open(picture) as drawn:
        assert drawn.n_frames > 5  # frames that are equal are joined
        assert drawn.format == "GIF"


def test_an_environment_without_pictures_writes_no_gif(policy: PolicyModel) -> None:
    with pytest.raises(ConfigError, match="has no pictures of its states"):
        policy.adapt(trajectories=3).frames()


def test_a_policy_is_no_model_of_images(home: Path, policy: PolicyModel) -> None:
    with pytest.raises(RegistryError, match="reads no images"):
        versions.load_model(f"sqlite:///{home / 'mlflow.db'}", policy.uri)


def test_rollout_prints_returns_and_draws_paths(
    policy: PolicyModel, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = home / "paths.png"
    common = ["--model", policy.uri, "--tracking-uri", f"sqlite:///{home / 'mlflow.db'}", "--out", str(picture)]
    own = ["--env", "navigation", "--option", "horizon=4", "--task", "0.3,-0.2", "--adapt", "1", "--trajectories", "3", "--json"]
    monkeypatch.setattr("sys.argv", ["distmeta", "rollout", *common, *own])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["task"] == pytest.approx([0.3, -0.2])
    assert len(found["returns"]) == 2
    assert picture.read_bytes().startswith(b"\x89PNG")


ACTS = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"ray", "webdataset", "typer", "gymnasium"}:
            raise ImportError(f"{name} is not installed here")
sys.meta_path.insert(0, Blocked())
import json
import subprocess
import sys
import mlflow, numpy as np
model, observations = mlflow.pyfunc.load_model(sys.argv[1]), np.array(json.loads(sys.argv[2]))
refused = []
for wrong in (observations[:, :1], observations * np.nan):
    try:
        model.predict(wrong)
    except mlflow.exceptions.MlflowException as error:
        refused.append(str(error))
import distmeta
print(json.dumps([model.predict(observations).tolist(), refused, distmeta.__file__]))
"""


def acts(folder: Path, observations: torch.Tensor) -> tuple[torch.Tensor, list[str]]:
    """Actions of a saved policy in a process that knows only MLflow, and why it refused what does not fit."""
    command = [sys.executable, "-I", "-c", ACTS, str(folder), json.dumps(observations.tolist())]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=folder.parent)
    assert answer.returncode == 0, answer.stderr
    actions, refused, package = json.loads(answer.stdout.splitlines()[-1])
    assert Path(package).is_relative_to(folder), "the model brings its code along"
    return torch.tensor(actions), refused


def test_an_adapted_policy_is_saved_as_a_model_from_observations_to_actions(
    policy: PolicyModel, home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    saved, observations = home / "adapted", torch.tensor([[0.1, -0.2], [0.3, 0.0], [0.0, 0.4]], dtype=torch.float64)
    common = ["--model", policy.uri, "--tracking-uri", f"sqlite:///{home / 'mlflow.db'}", "--out", str(home / "saved.png")]
    monkeypatch.setattr("sys.argv", ["distmeta", "rollout", *common, "--task", "0.3,-0.2", "--trajectories", "4", "--save", str(saved)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0, capsys.readouterr().err
    actions, refused = acts(saved, observations)
    assert torch.equal(actions, policy.adapt(task=[0.3, -0.2], trajectories=4)(observations))
    assert len(refused) == 2
    assert "(M, 2) is needed" in refused[0] or "shape" in refused[0]
    assert "observation 0 holds values that are not finite" in refused[1]
    with pytest.raises(ConfigError, match="exists already"):
        save_policy(policy.adapt(trajectories=3), saved)


def test_a_saved_policy_of_choices_gives_whole_numbers(home: Path) -> None:
    data = {"domain": "reinforcement", "shot": 4, "settings": {"environment": "grid", "options": {"horizon": 5, "side": 3}}}
    adapted = load_policy(f"sqlite:///{home / 'mlflow.db'}", publish(home, "grid", data=data)).adapt(trajectories=3)
    save_policy(adapted, home / "choices")
    observations = torch.eye(adapted.environment.observation_size, dtype=torch.float64)[:4]
    actions, _ = acts(home / "choices", observations)
    assert actions.dtype == torch.int64
    assert torch.equal(actions, adapted(observations))
