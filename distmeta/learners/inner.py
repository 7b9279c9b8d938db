"""The inner loop: from θ and a support set to fast_weights φ, and back from the query loss to the meta-gradient.

Everything here works on T tasks at once: losses are summed over tasks before differentiation, which gives each task its own gradient.
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Network
from distmeta.learners.objective import Cost, Objective
from distmeta.learners.params import Params, leaves

Rate = Callable[[Params, str, int], float | Tensor]
InnerOptimizerName = Literal["sgd", "momentum", "adam"]

_SQUARES_DECAY = 0.999  # Adam's β2


class InnerOptimizer(NamedTuple):
    """The update of an inner step for a gradient g. Every state starts at zero, and the update is differentiable.

    sgd:      φ ← φ - α g
    momentum: v ← μ v + g;  φ ← φ - α v  (as torch's SGD)
    adam:     m ← μ m + (1 - μ) g;  s ← β2 s + (1 - β2) g²;  φ ← φ - α m̂ / √(ŝ + ε²)  (Kingma & Ba 2015, arXiv:1412.6980)

    m̂ and ŝ are m and s without their bias towards zero. ε is inside the root, so that the root has a derivative at s = 0.
    """

    name: InnerOptimizerName = "sgd"
    momentum: float = 0.9
    epsilon: float = 1e-8

    def start(self, weights: Params) -> Params:
        """The state before the first step, under names that no parameter has."""
        parts = {"sgd": (), "momentum": ("velocity",), "adam": ("velocity", "squares")}[self.name]
        return {f"{name}:{part}": torch.zeros_like(value) for part in parts for name, value in weights.items()}

    def step(self, fast: Params, gradients: Params, rates: dict[str, float | Tensor], step: int) -> Params:
        """`fast`, weights and state, after inner step number `step` (from 0), in the same order."""
        moved = {name: self._state(fast, gradients[name], name, step) for name in gradients}
        weights = {name: fast[name] - rates[name] * direction for name, (direction, _) in moved.items()}
        state = {key: value for _, parts in moved.values() for key, value in parts.items()}
        return {key: (weights | state)[key] for key in fast}

    def _state(self, fast: Params, gradient: Tensor, name: str, step: int) -> tuple[Tensor, Params]:
        """The update direction of a parameter, and its new state."""
        if self.name == "sgd":
            return gradient, {}
        if self.name == "momentum":
            velocity = self.momentum * fast[f"{name}:velocity"] + gradient
            return velocity, {f"{name}:velocity": velocity}
        velocity = self.momentum * fast[f"{name}:velocity"] + (1 - self.momentum) * gradient
        squares = _SQUARES_DECAY * fast[f"{name}:squares"] + (1 - _SQUARES_DECAY) * gradient.square()
        unbiased = squares / (1 - _SQUARES_DECAY ** (step + 1))
        direction = velocity / (1 - self.momentum ** (step + 1)) / (unbiased + self.epsilon**2).sqrt()
        return direction, {f"{name}:velocity": velocity, f"{name}:squares": squares}


class InnerLoop(NamedTuple):
    """`objective` gives the losses of a task's data; `rate(params, name, step)` is α for one parameter at one inner step.

    `adapted` names the parameters that the inner loop changes. loss_weights (steps + 1): weights of the query loss after 0, 1, … inner
    steps in the meta-loss. In its methods `fast` holds fast_weights φ together with the optimiser's state.
    """

    forward: Forward
    objective: Objective
    rate: Rate
    adapted: Sequence[str]
    loss_weights: Sequence[float]
    first_order: bool = False
    optimizer: InnerOptimizer = InnerOptimizer()

    @property
    def steps(self) -> int:
        return len(self.loss_weights) - 1

    def start(self, params: Params) -> Params:
        weights = {name: params[name] for name in self.adapted}
        return weights | self.optimizer.start(weights)

    def step(self, params: Params, fast: Params, batch: Batch, step: int, create_graph: bool) -> Params:
        """φ ← φ - α ∇L_support(φ) (MAML, arXiv:1703.03400, equation 1), or the optimiser's update. `params` holds the parameters that are
        not in `fast`.
        """
        losses = self.objective.support(Network(self.forward, params | fast, 2 * step), batch, step).losses
        gradients = gradients_of(losses, {name: fast[name] for name in self.adapted}, create_graph)
        return self.optimizer.step(fast, gradients, {name: self.rate(params, name, step) for name in self.adapted}, step)

    def query(self, params: Params, fast: Params, batch: Batch, step: int) -> Cost:
        """The queries' cost after `step` inner steps."""
        return self.objective.query(Network(self.forward, params | fast, 2 * step + 1, outer=True), batch, step)


def gradients_of(losses: Tensor, wanted: Params, create_graph: bool = False) -> Params:
    """The gradient of each task's loss, by name. Raises ConfigError naming a parameter that the loss does not depend on."""
    derivatives = torch.autograd.grad(losses.sum(), list(wanted.values()), create_graph=create_graph, allow_unused=True)
    for name, gradient in zip(wanted, derivatives, strict=True):
        if gradient is None:
            raise ConfigError(
                f"parameter {name} of the network does not reach the loss", "remove it from the network, or use it in forward"
            )
    return dict(zip(wanted, derivatives, strict=True))


class MetaGradients(NamedTuple):
    """Of T tasks: the meta-gradients {name: (T, …)}, the meta-losses (T,) and the scores (T,) after the last inner step, if any.

    metrics: {name: (T,)} for each name in the learner's `metrics`.
    """

    gradients: Params
    losses: Tensor
    scores: Tensor | None = None
    metrics: Mapping[str, Tensor] = MappingProxyType({})


def unrolled(loop: InnerLoop, params: Params, wanted: Sequence[str], batch: Batch) -> MetaGradients:
    """Meta-gradients by params[wanted], through a graph that holds every inner step."""
    fast = loop.start(params)
    meta_losses: Tensor | float = 0.0
    scores = None
    for step, weight in enumerate(loop.loss_weights):
        if weight:
            losses, scores = loop.query(params, fast, batch, step)
            meta_losses = meta_losses + weight * losses
        if step < loop.steps:
            fast = loop.step(params, fast, batch, step, not loop.first_order)
    assert isinstance(meta_losses, Tensor)
    return MetaGradients(gradients_of(meta_losses, {name: params[name] for name in wanted}), meta_losses, scores)


def checkpointed(loop: InnerLoop, params: Params, wanted: Sequence[str], batch: Batch) -> MetaGradients:
    """The same result as `unrolled`, with the graph of only one inner step: memory grows by the size of φ per step, not by the activations.

    On the way back, v = ∂L/∂φ_(k+1) becomes ∂L/∂φ_k = v - H_k(α v) by differentiating inner step k once more: one Hessian-vector product.
    The whole step is differentiated, so the optimiser's state has cotangents like φ. The last step is the first on the way back, so its
    graph is kept and not computed again.
    """
    visited = [leaves(loop.start(params))]
    moved: Params = {}
    for step in range(loop.steps):
        moved = loop.step(params, visited[-1], batch, step, create_graph=step == loop.steps - 1)
        visited.append(leaves(moved))
    others = {name: params[name] for name in wanted if name not in visited[0]}
    total = {name: torch.zeros_like(value) for name, value in others.items()}
    meta_losses: Tensor | float = 0.0
    cotangents: list[Tensor] = []
    last_scores = None
    for step in range(loop.steps, -1, -1):
        fast, weight = visited.pop(), loop.loss_weights[step]
        if step < loop.steps - 1:
            moved = loop.step(params, fast, batch, step, create_graph=True)
        ends = list(moved.values()) if cotangents else []
        if weight:
            losses, scores = loop.query(params, fast, batch, step)
            meta_losses = meta_losses + weight * losses.detach()
            last_scores = scores if last_scores is None else last_scores
            ends, cotangents = [*ends, weight * losses.sum()], [*cotangents, losses.new_ones(())]
        inputs = fast | others
        derivatives = torch.autograd.grad(ends, list(inputs.values()), cotangents, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(inputs, derivatives, strict=True))
        cotangents = [gradients[name] for name in fast]
        total = {name: value + gradients[name] for name, value in total.items()}
    assert isinstance(meta_losses, Tensor)
    found_by_name = dict(zip(fast, cotangents, strict=True))
    return MetaGradients(total | {name: found_by_name[name] for name in loop.adapted}, meta_losses, last_scores)
