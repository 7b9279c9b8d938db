"""From a config to objects: what fits is built, what does not is refused with the key, the rule and the remedy."""

import random
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from distmeta.assembly.domain import domain_of
from distmeta.assembly.run import Run
from distmeta.config import Config, ModelConfig, validate
from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.training.evaluate import evaluate
from distmeta.training.metric import Metric

IMAGES = {"model": {"filters": 4}, "data": {"way": 3, "shot": 1, "queries": 2}}
POINTS = {
    "data": {"functions": "sinusoid", "way": 1, "shot": 5, "queries": 7, "eval": {"queries": 20}},
    "model": {"name": "mlp", "norm": "none"},
}


def config(content: dict[str, Any], packed: Path | None = None, **sections: dict[str, Any]) -> Config:
    merged: dict[str, Any] = {"run_folder": "r"} | {key: dict(value) for key, value in content.items()}
    if packed is not None:
        merged["data"]["shards"] = str(packed)
    for section, keys in sections.items():
        merged[section] = merged.get(section, {}) | keys
    return validate(merged, "test")


def check(made: Config) -> None:
    Run.of(made).check()


@pytest.mark.parametrize("name", sorted(LEARNERS))
def test_every_learner_trains_on_what_its_domain_gives(name: str, packed: Path) -> None:
    """One step from a config, for each learner; the example that memory is predicted from is shaped as the real batch."""
    made = config(IMAGES, packed, learner={"name": name}, model={"filters": 4, "norm": "running"})
    if name == "in-context":
        made = made.model_copy(update={"model": ModelConfig.model_validate({"name": "transformer", "width": 8})})
    check(made)
    run = Run.of(made)
    domain, learner, outer = run.domain, run.learner, run.outer()
    batch = next(domain.training([0, 2], 5))
    tensors = ([value for value in vars(one).values() if isinstance(value, torch.Tensor)] for one in (domain.example(2), batch))
    for example, real in zip(*tensors, strict=True):
        assert (example.shape, example.dtype, example.stride()) == (real.shape, real.dtype, real.stride())
    gradients, metrics = learner.slot_gradients(outer.meta_params, batch)
    assert gradients.isfinite().all()
    assert outer.update(gradients.mean(0), 0) > 0
    assert ((metrics.score >= 0) & (metrics.score <= 1)).all()
    predicted = run.worker_bytes("cpu", 2)
    assert predicted is not None
    assert predicted > 4 * gradients.numel()
    assert run.description["learner"]["name"] == name
    assert set(run.description["learner"]) >= set(made.learner.settings) | {"task_batching"}


@pytest.mark.parametrize("name", ["maml", "fomaml", "anil", "meta-sgd", "maml++", "reptile", "transfer"])
def test_regression_differs_in_loss_and_source_only(name: str) -> None:
    made = config(POINTS, learner={"name": name})
    check(made)
    run = Run.of(made)
    domain, learner = run.domain, run.learner
    batch = next(domain.training([1], 0))
    assert isinstance(batch, EpisodeBatch)
    assert (batch.support_images.shape, batch.query_labels.shape) == ((1, 5, 1), (1, 7, 1))
    gradients, metrics = learner.slot_gradients(run.start(), batch)
    assert gradients.isfinite().all()
    assert metrics.score.isnan().all()
    stream = domain.evaluation("test")
    result = evaluate(domain.metric, learner, run.start(), stream, 30, "none").as_dict()
    assert list(result["mse_by_step"]) == [str(step) for step in range(6)]
    assert run.model_name == "sinusoid-5shot"


def test_episodes_of_functions_are_pure_and_belong_to_their_split() -> None:
    domain = domain_of(config(POINTS))
    first = next(domain.training([3, 1], 4))
    stream = domain.training([1], 0)
    again = [next(stream) for _ in range(5)][-1]
    assert torch.equal(first.support_images[1], again.support_images[0])
    assert torch.equal(first.query_labels[1], again.query_labels[0])
    in_test = next(iter(domain.evaluation("test").evaluation([1])))
    in_val = next(iter(domain.evaluation("val").evaluation([1])))
    assert not torch.equal(in_test.support_images, in_val.support_images)


class Nameless(Metric):
    def score(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> torch.Tensor:
        return torch.zeros(1)


class Choosy(Nameless):
    name = "choosy"

    def __init__(self, bins: int) -> None:
        self.bins = bins


def test_a_metric_in_a_file_beside_the_config_scores_validation_and_test(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one of docs/extending.md, against the loss that the learner itself computes."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class LogLoss" in block]
    (tmp_path / "log_loss.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    named = {"way": 3, "shot": 1, "queries": 2, "eval": {"metric": "log_loss.LogLoss"}}
    run = Run.of(config(IMAGES | {"data": named}, packed, model={"filters": 4, "norm": "group"}))
    run.check()
    stream, theta = run.domain.evaluation("test"), run.start()
    result = evaluate(run.metric, run.learner, theta, stream, 6, "group")
    assert (result.measurement.name, result.measurement.more_is_better, result.measurement.columns) == ("log loss", False, ["inductive"])
    episode = next(iter(stream.evaluation([0])))
    logits = run.learner.predict(run.learner.adapt(theta, episode), episode.query_images[0]).transductive  # without batch statistics: both
    expected = -logits.log_softmax(1).gather(1, episode.query_labels[0][:, None]).mean()
    assert result.by_episode[0, 0].item() == pytest.approx(expected.item(), rel=1e-5)
    assert run.description["metric"] == "log_loss.LogLoss"
    assert run.domain.metric.name == "accuracy"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("networks_of_a_user.Narrow", "is type, not a Metric"),
        ("networks_of_a_user.Nameless", "has no name"),
        ("networks_of_a_user.Choosy", "cannot be built: TypeError"),
        ("absent.Metric", "cannot be imported"),
        ("distmeta.training.metric.Metric", "has no score, name"),
    ],
)
def test_what_is_not_a_metric_is_refused(path: str, message: str, packed: Path) -> None:
    named = {"way": 3, "shot": 1, "queries": 2, "eval": {"metric": path}}
    with pytest.raises(ConfigError, match=message):
        check(config(IMAGES | {"data": named}, packed))


class Narrow(nn.Module):
    """Gives rows of the wrong width."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.top = nn.Linear(256, outputs + 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(images.flatten(1))


class OwnBuffer(nn.Module):
    """A buffer that is not kept, and that every instance computes alike."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.linspace(0, 1, 256), persistent=False)
        self.head = nn.Linear(256, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1) * self.scale)


class DrawnBuffer(OwnBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.rand(256)


class DrawnAttribute(OwnBuffer):
    def __init__(self) -> None:
        super().__init__()
        del self._buffers["scale"]
        self.scale = torch.rand(256)


class DrawnOrder(OwnBuffer):
    def __init__(self) -> None:
        super().__init__()
        self.order = random.sample(range(256), 256)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images.flatten(1)[:, self.order])


class KeepsFirst(OwnBuffer):
    """Divides by the size that its weights had in its first forward."""

    size: torch.Tensor | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.size is None:
            self.size = self.head.weight.detach().norm()
        return super().forward(images) / self.size


@pytest.mark.parametrize("name", ["DrawnBuffer", "DrawnAttribute", "DrawnOrder", "KeepsFirst"])
def test_what_a_constructor_draws_beside_its_state_is_refused_because_workers_would_draw_it_again(name: str, packed: Path) -> None:
    with pytest.raises(ConfigError, match=r"another instance of .* gives other outputs with the same parameters and buffers\nregister"):
        check(config({"data": IMAGES["data"]}, packed, model={"name": f"networks_of_a_user.{name}"}))


def test_a_buffer_that_every_instance_computes_alike_need_not_be_kept(packed: Path) -> None:
    check(config({"data": IMAGES["data"]}, packed, model={"name": "networks_of_a_user.OwnBuffer"}))


class Deaf(Narrow):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.top(images)


class Distances(Narrow):
    """A layer that torch has no second derivative of."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cdist(self.top(images.flatten(1)), torch.ones(3, self.top.out_features))


class Undecided(LEARNERS["maml"]):  # type: ignore[misc]
    def adaptation(self, meta_params: Params, episode: Any, steps: int | None = None) -> Any:
        raise KeyError("adapted")


sys.modules.setdefault("networks_of_a_user", sys.modules[__name__])


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"model": {"filter": 3}}, r"model.filter is not an argument of conv4\nits arguments: filters, downsample"),
        ({"model": {"filters": 0}}, r"model.filters=0"),
        ({"model": {"name": "resnet"}}, r"model.name='resnet' is not a backbone of distmeta\nchoose one of conv4"),
        ({"learner": {"name": "protonet", "inner_lr": 0.1}}, r"learner.inner_lr is not a setting of learner protonet\nremove it"),
        ({"learner": {"name": "maml", "inner_batch": 3}}, r"learner.inner_batch is not a setting of learner maml"),
        ({"model": {"name": "networks_of_a_user.Narrow"}}, r"networks_of_a_user.Narrow gives \(2, 5\) for 2 inputs; \(2, 3\) is needed"),
        ({"model": {"name": "networks_of_a_user.Deaf"}}, r"does not take inputs of shape \(2, 1, 16, 16\)"),
        (
            {"model": {"name": "networks_of_a_user.Distances"}},
            r"maml cannot differentiate .*Distances: NotImplementedError: .*\nchoose learner.name=fomaml",
        ),
        ({"model": {"name": "networks_of_a_user.OwnBuffer", "seed": 3}}, r"model.seed cannot be given.*\nname the constructor's argument"),
        (
            {"learner": {"name": "networks_of_a_user.Undecided"}},
            r"Undecided cannot adapt to an episode: KeyError: 'adapted'\nfix its adapt",
        ),
        ({"data": {"way": 3, "queries": 2, "eval": {"way": 4}}}, r"data.eval.way=4 but data.way=3: the network's head is as wide"),
    ],
)
def test_what_does_not_fit_is_refused(sections: dict[str, dict[str, Any]], message: str, packed: Path) -> None:
    content = {"data": IMAGES["data"]} if "model" in sections else IMAGES
    with pytest.raises(ConfigError, match=message):
        check(config(content, packed, **sections))


def test_centroids_may_be_tested_on_another_way(packed: Path) -> None:
    check(config(IMAGES, packed, learner={"name": "protonet"}, data={"way": 3, "queries": 2, "eval": {"way": 5}}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"learner": {"name": "protonet"}}, r"learner protonet classifies; the tasks of sinusoid have no classes"),
        ({"data": {"class_rotations": True}}, r"data.functions=sinusoid has no images"),
        ({"model": {"name": "conv4"}}, r"model.name=conv4 reads images"),
    ],
)
def test_what_regression_has_no_use_for_is_refused(sections: dict[str, dict[str, Any]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config(POINTS, **sections))


def test_an_episode_is_named_by_its_classes(packed: Path) -> None:
    domain = domain_of(config(IMAGES, packed))
    words = domain.describe(3, 1).removeprefix("classes ").split(", ")
    assert len(set(words)) == 3
    assert all(word.startswith("train-") for word in words)
