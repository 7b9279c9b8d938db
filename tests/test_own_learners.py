"""Learners of users' own, written in every way that Python allows: each is built and checked as ours are, or refused by name."""

import math
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from test_networks import batch, built
from torch import Tensor, nn

from distmeta.assembly.run import Run
from distmeta.config import validate
from distmeta.errors import ConfigError
from distmeta.learners import LEARNERS, build_learner, check_settings, settings_of
from distmeta.learners.inner import MetaGradients
from distmeta.learners.learner import Learner
from distmeta.learners.objective import SquaredError
from distmeta.learners.params import Params, unflatten

if TYPE_CHECKING:
    from decimal import Decimal

MAML: Any = LEARNERS["maml"]
STEPS = {"inner_lr": 0.1, "inner_steps": 1}


class NoAnnotations(MAML):
    def __init__(self, model, before=0.5, **maml):  # type: ignore[no-untyped-def]
        super().__init__(model, **maml)
        self.before = before


class KeywordOnly(MAML):
    def __init__(self, model: nn.Module, *, before: float = 0.5, **maml: Any) -> None:
        super().__init__(model, **maml)


class ModelByPosition(MAML):
    def __init__(self, model: nn.Module, /, before: float = 0.5, **maml: Any) -> None:
        super().__init__(model, **maml)


class AnyArguments(MAML):
    def __init__(self, *args: Any, before: float = 0.5, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class MutableDefault(MAML):
    def __init__(self, model: nn.Module, before: list[float] = [0.5], **maml: Any) -> None:  # noqa: B006 (a user's)
        super().__init__(model, **maml)
        self.before = before


class Pair(MAML):
    def __init__(self, model: nn.Module, before: tuple[int, int] = (1, 2), **maml: Any) -> None:
        super().__init__(model, **maml)


class NoObjective(MAML):
    """Takes nothing but its own."""

    def __init__(self, model: nn.Module, before: float = 0.5) -> None:
        super().__init__(model, **STEPS)


class NotANumber(MAML):
    """A metric that is never a number."""

    metrics = ("nothing",)

    def task_gradients(self, params: Any, forward: Any, batch: Any) -> MetaGradients:
        found = super().task_gradients(params, forward, batch)
        return found._replace(metrics={"nothing": torch.full_like(found.losses, math.nan)})


class ByPosition(MAML):
    def __init__(self, model: nn.Module, before: float, /, **maml: Any) -> None:
        super().__init__(model, **maml)


class TypeDefault(MAML):
    def __init__(self, model: nn.Module, kind: Any = torch.float32, **maml: Any) -> None:
        super().__init__(model, **maml)


class InfiniteDefault(MAML):
    def __init__(self, model: nn.Module, limit: float = math.inf, **maml: Any) -> None:
        super().__init__(model, **maml)


class PathSetting(MAML):
    def __init__(self, model: nn.Module, file: Path, **maml: Any) -> None:
        super().__init__(model, **maml)


class TensorSetting(MAML):
    def __init__(self, model: nn.Module, weights: Tensor | None = None, **maml: Any) -> None:
        super().__init__(model, **maml)


class Unresolved(MAML):
    def __init__(self, model: nn.Module, price: "Decimal | None" = None, **maml: Any) -> None:
        super().__init__(model, **maml)


class Forgets(MAML):
    def __init__(self, model: nn.Module, **maml: Any) -> None:
        self.ready = True


class Raises(MAML):
    def __init__(self, model: nn.Module, **maml: Any) -> None:
        super().__init__(model, **maml)
        raise KeyError("ready")


class Swallows(MAML):
    def __init__(self, model: nn.Module, **maml: Any) -> None:
        super().__init__(model)


class SetsSettings(MAML):
    def __init__(self, model: nn.Module, **maml: Any) -> None:
        super().__init__(model, **maml)
        self.settings = {"mine": 1}


class Noisy(MAML):
    """Scales its gradients by `draw`, which is never the same."""

    def draw(self) -> float:
        return float(torch.rand(()))

    def task_gradients(self, params: Any, forward: Any, batch: Any) -> MetaGradients:
        found = super().task_gradients(params, forward, batch)
        return found._replace(gradients={name: self.draw() * value for name, value in found.gradients.items()})


class NoisyByNumpy(Noisy):
    def draw(self) -> float:
        return float(np.random.rand())


class Counts(Noisy):
    calls = 0

    def draw(self) -> float:
        self.calls += 1
        return float(self.calls)


class DrawsOnce(Noisy):
    def __init__(self, model: nn.Module, **maml: Any) -> None:
        super().__init__(model, **maml)
        self.drawn = random.random()

    def draw(self) -> float:
        return self.drawn


class AdaptsByChance(MAML):
    def adaptation(self, meta_params: Params, episode: Any, steps: int | None = None) -> Iterator[Params]:
        for params in super().adaptation(meta_params, episode, steps):
            yield {name: value + 0.01 * torch.rand(()) for name, value in params.items()}


class Collides(MAML):
    """Learns something that bears a parameter's name."""

    def initial_params(self) -> Params:
        return super().initial_params() | {"head.bias": torch.ones(3)}


class WrongShape(MAML):
    def task_gradients(self, params: Any, forward: Any, batch: Any) -> MetaGradients:
        found = super().task_gradients(params, forward, batch)
        return found._replace(gradients={name: value[..., None] for name, value in found.gradients.items()})


class Abstract(Learner):
    def adaptation(self, meta_params: Params, episode: Any, steps: int | None = None) -> Iterator[Params]:
        yield meta_params


def network() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    made.__dict__["_distmeta_head"] = "1"
    return made


def path(case: str) -> str:
    return f"{__name__}.{case}"


def run(packed: Path, case: str, **settings: Any) -> Run:
    content = {
        "run_folder": "unused",
        "data": {"shards": str(packed), "way": 3, "shot": 1, "queries": 2, "eval": {"queries": 2, "episodes": 6, "val_episodes": 6}},
        "model": {"name": "conv4", "filters": 4},
        "learner": {"name": case if "." in case else path(case)} | settings,
        "outer": {"lr": 0.01, "steps": 4, "meta_batch_size": 2},
    }
    return Run.of(validate(content, "test"))


@pytest.mark.parametrize(
    "case", ["NoAnnotations", "KeywordOnly", "ModelByPosition", "AnyArguments", "MutableDefault", "Pair", "NotANumber"]
)
def test_a_constructor_in_any_of_pythons_ways_gives_settings_and_a_learner(case: str, packed: Path) -> None:
    own = {} if case == "NotANumber" else {"before": {"MutableDefault": [0.25], "Pair": [3, 4]}.get(case, 0.25)}
    settings = check_settings(path(case), STEPS | own, allow_import=True)
    assert settings == {name: parameter.default for name, parameter in settings_of(MAML).items()} | STEPS | {
        name: tuple(value) if case == "Pair" else value for name, value in own.items()
    }
    made = build_learner(path(case), network(), allow_import=True, **settings)
    assert made.settings == settings
    this = run(packed, case, **STEPS | own)
    this.check()
    ours = run(packed, "MAML", **STEPS)
    example = this.domain.example(2)
    assert example is not None
    gradients, metrics = this.learner.slot_gradients(this.start(), example)
    assert torch.equal(gradients, ours.learner.slot_gradients(ours.start(), example)[0])
    assert metrics.own.isnan().all()


def test_a_learner_that_takes_no_objective_has_the_usual_one_and_is_refused_where_another_is_needed(packed: Path) -> None:
    this = run(packed, "NoObjective", before=0.25)
    this.check()
    assert this.learner.settings == {"before": 0.25}
    with pytest.raises(
        ConfigError, match=r"NoObjective does not take `objective`, which holds the domain's loss\nlet it take \*\* and pass"
    ):
        build_learner(path("NoObjective"), network(), SquaredError(), allow_import=True)


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("ByPosition", {}, r"the constructor of learner .*ByPosition takes 'before' by position only.*\nmove the / in front of it"),
        ("TypeDefault", {}, r"learner.kind=torch.float32 is a dtype; settings are finite numbers.*\nlet kind be one of these"),
        ("InfiniteDefault", {}, r"learner.limit=inf is a float; settings are finite numbers"),
        ("PathSetting", {"file": "here"}, r"learner.file=PosixPath\('here'\) is a PosixPath"),
        ("TensorSetting", {"weights": [1.0]}, r"learner.weights=\[1.0\]: its annotation .*Tensor.* is not a type of a config's values"),
        ("Unresolved", {}, r"an annotation in the constructor of learner Unresolved cannot be evaluated: name 'Decimal' is not defined"),
        ("Forgets", {}, r"the constructor of learner .*Forgets does not call its base's\ncall super\(\).__init__"),
        ("Raises", {}, r"learner .*Raises cannot be built: KeyError: 'ready'\nfix its constructor"),
        (
            "Swallows",
            {},
            r"learner.inner_lr=0.1 is not used: the constructor of learner .*Swallows does not pass it on\nfix its constructor",
        ),
        ("SetsSettings", {}, r"learner .*SetsSettings sets self.settings, which distmeta sets\nname that attribute otherwise"),
        ("Noisy", {}, r"learner .*Noisy finds something else when it is asked again, or in another instance\ndraw random numbers by"),
        ("NoisyByNumpy", {}, r"NoisyByNumpy finds something else when it is asked again"),
        ("Counts", {}, r"Counts finds something else when it is asked again"),
        ("DrawsOnce", {}, r"DrawsOnce finds something else when it is asked again, or in another instance"),
        ("AdaptsByChance", {}, r"AdaptsByChance finds something else when it is asked again"),
        ("Collides", {}, r"head.bias is a parameter of the network, and what Collides learns beside it has that name, too"),
        ("WrongShape", {}, r"WrongShape gives a gradient \(.*, 1\) for "),
        ("Abstract", {}, r"learner.name='.*Abstract' does not define task_gradients\ndefine it"),
    ],
)
def test_what_cannot_be_used_is_refused_by_name(case: str, settings: dict[str, Any], message: str, packed: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run(packed, case, **STEPS | settings if case != "Abstract" else {}).check()


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_the_pages_learner_from_scratch_is_exact(batching: str, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences along each entry of meta_params, the learned size of its step among them."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class OneStep" in block]
    (tmp_path / "one_step.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    run(packed, "one_step.OneStep", task_batching=batching, first_rate=0.2).check()
    made = build_learner("one_step.OneStep", built("Flat"), allow_import=True, task_batching=batching, first_rate=0.2)
    theta, episodes = {name: value.double() for name, value in made.initial_params().items()}, batch(3)
    gradients, metrics = made.slot_gradients(theta, episodes)
    assert torch.equal(made.slot_gradients(theta, episodes.take([2]))[0][0], gradients[2])
    assert metrics.score.isfinite().all()
    gradient = unflatten(gradients[0], theta)
    random, width = torch.Generator().manual_seed(0), 1e-6
    for name, value in theta.items():
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        up, down = (made.slot_gradients(theta | {name: value + sign * width * direction}, episodes)[1].loss[0] for sign in (1, -1))
        assert ((up - down) / (2 * width)).item() == pytest.approx((gradient[name] * direction).sum().item(), rel=1e-6, abs=1e-9), name
