"""Law 8, bit for bit: what is answered to an input does not depend on which others are asked, or on its place among them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from distmeta.envs import build_environment
from distmeta.inference.model import Adapted
from distmeta.inference.policy import AdaptedPolicy
from distmeta.inference.tensors import AdaptedTensors
from distmeta.learners import build_learner
from distmeta.learners.finetune import FineTuning
from distmeta.learners.kept import KeptFeatures
from distmeta.learners.learner import Learner
from distmeta.learners.policy_gradient import policy_gradient

WIDTH = 13  # no multiple of a vector register's, so that a chunk's rows would not all be rounded alike
SIDE = 3
INPUTS = 41


class Gelu(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(inputs, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


def network(inputs: int = SIDE * SIDE, outputs: int = 3) -> Gelu:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gelu(inputs, outputs)


def learner() -> Learner:
    return build_learner("maml", network(), inner_lr=0.1, inner_steps=1)


def probabilities(inputs: Tensor) -> Tensor:
    preprocessing = {"image_size": SIDE, "channels": 1, "resize": "squash", "mean": [0.5], "std": [0.5]}
    made = learner()
    return Adapted({"model": {"name": "gelu"}, "preprocessing": preprocessing}, made, made.initial_params(), ["a", "b", "c"]).predict(
        inputs
    )


def outputs(inputs: Tensor) -> Tensor:
    made = learner()
    return AdaptedTensors(made, made.initial_params()).predict(inputs)


def features(inputs: Tensor) -> Tensor:
    made = learner()
    return KeptFeatures()(lambda some: made.outputs(made.initial_params(), some), inputs)


def actions(inputs: Tensor) -> Tensor:
    environment = build_environment("navigation")
    objective = policy_gradient(environment)
    made = build_learner("maml", network(2, 2), objective, inner_lr=0.1, inner_steps=1)
    assert isinstance(made, FineTuning)
    return AdaptedPolicy({}, made, made.initial_params(), environment, [0.0, 0.0], [], torch.zeros(1))(inputs.flatten(1)[:, :2])


@pytest.mark.parametrize("answer", [probabilities, outputs, features, actions])
def test_an_answer_has_the_same_bits_alone_and_anywhere_among_others(answer: Callable[[Tensor], Tensor]) -> None:
    inputs = 2 * torch.randn(INPUTS, 1, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([answer(one[None]) for one in inputs])
    assert len({tuple(row) for row in alone.tolist()}) == INPUTS
    for count in (2, 3, 8, 16, 17, INPUTS):
        for first in (0, 1, 5):
            chosen = torch.arange(first, first + count) % INPUTS
            assert torch.equal(answer(inputs[chosen]), alone[chosen]), (count, first)


@pytest.mark.parametrize(("answer", "columns"), [(probabilities, 3), (outputs, 3), (actions, 2)])
def test_who_asks_nothing_gets_no_rows(answer: Callable[[Tensor], Tensor], columns: int) -> None:
    assert answer(torch.zeros(0, 1, SIDE, SIDE)).shape == (0, columns)
