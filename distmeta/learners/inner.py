"""The inner loop: from θ and a support set to fast_weights φ, and back from the query loss to the meta-gradient.

Everything here works on T tasks at once: losses are summed over tasks before they are differentiated, which keeps them apart.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Network
from distmeta.learners.objective import Cost, Objective
from distmeta.learners.params import Params, detached, leaves

Rate = Callable[[Params, str, int], float | Tensor]


class InnerLoop(NamedTuple):
    """`objective` gives the losses of a task's data; `rate(params, name, step)` is α for one parameter at one inner step.

    `adapted` names the parameters that the inner loop changes.
    loss_weights (steps + 1): how much the query loss after 0, 1, … inner steps counts in the meta-loss.
    """

    forward: Forward
    objective: Objective
    rate: Rate
    adapted: Sequence[str]
    loss_weights: Sequence[float]
    first_order: bool = False

    @property
    def steps(self) -> int:
        return len(self.loss_weights) - 1

    def step(self, params: Params, fast_weights: Params, batch: Batch, step: int, create_graph: bool) -> Params:
        """φ ← φ - α ∇L_support(φ) (MAML, arXiv:1703.03400, equation 1); `params` holds what `fast_weights` does not."""
        losses = self.objective.support(Network(self.forward, params | fast_weights, 2 * step), batch, step).losses
        gradients = gradients_of(losses, fast_weights, create_graph)
        return {name: value - self.rate(params, name, step) * gradients[name] for name, value in fast_weights.items()}

    def query(self, params: Params, fast_weights: Params, batch: Batch, step: int) -> Cost:
        """The queries' cost after `step` inner steps."""
        return self.objective.query(Network(self.forward, params | fast_weights, 2 * step + 1, outer=True), batch, step)


def gradients_of(losses: Tensor, wanted: Params, create_graph: bool = False) -> Params:
    """Each task's gradient of its own loss, by name. Raises ConfigError naming a parameter that the loss does not depend on."""
    found = torch.autograd.grad(losses.sum(), list(wanted.values()), create_graph=create_graph, allow_unused=True)
    for name, gradient in zip(wanted, found, strict=True):
        if gradient is None:
            raise ConfigError(
                f"parameter {name} of the network does not reach the loss", "remove it from the network, or use it in forward"
            )
    return dict(zip(wanted, found, strict=True))


class MetaGradients(NamedTuple):
    """Of T tasks: the meta-gradients {name: (T, …)}, the meta-losses (T,) and the scores (T,) after the last inner step, if any."""

    gradients: Params
    losses: Tensor
    scores: Tensor | None


def unrolled(loop: InnerLoop, params: Params, wanted: Sequence[str], batch: Batch) -> MetaGradients:
    """Meta-gradients by params[wanted], through a graph that holds every inner step."""
    fast_weights = {name: params[name] for name in loop.adapted}
    meta_losses: Tensor | float = 0.0
    scores = None
    for step, weight in enumerate(loop.loss_weights):
        if weight:
            losses, scores = loop.query(params, fast_weights, batch, step)
            meta_losses = meta_losses + weight * losses
        if step < loop.steps:
            fast_weights = loop.step(params, fast_weights, batch, step, not loop.first_order)
    assert isinstance(meta_losses, Tensor)
    return MetaGradients(gradients_of(meta_losses, {name: params[name] for name in wanted}), meta_losses, scores)


def checkpointed(loop: InnerLoop, params: Params, wanted: Sequence[str], batch: Batch) -> MetaGradients:
    """What `unrolled` gives, holding the graph of one inner step only: memory grows by the size of φ a step, not by the activations.

    Going back, v = ∂L/∂φ_(k+1) becomes ∂L/∂φ_k = v - H_k(α v) by differentiating inner step k once more: one Hessian-vector product.
    """
    visited = [{name: params[name].detach() for name in loop.adapted}]
    for step in range(loop.steps):
        visited.append(detached(loop.step(params, leaves(visited[-1]), batch, step, create_graph=False)))
    others = {name: params[name] for name in wanted if name not in visited[0]}
    total = {name: torch.zeros_like(value) for name, value in others.items()}
    meta_losses: Tensor | float = 0.0
    cotangents: list[Tensor] = []
    last_scores = None
    for step in range(loop.steps, -1, -1):
        fast_weights, weight = leaves(visited.pop()), loop.loss_weights[step]
        ends: list[Tensor] = []
        if cotangents:
            ends += loop.step(params, fast_weights, batch, step, create_graph=True).values()
        if weight:
            losses, scores = loop.query(params, fast_weights, batch, step)
            meta_losses = meta_losses + weight * losses.detach()
            last_scores = scores if last_scores is None else last_scores
            ends, cotangents = [*ends, weight * losses.sum()], [*cotangents, losses.new_ones(())]
        inputs = fast_weights | others
        found = torch.autograd.grad(ends, list(inputs.values()), cotangents, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(inputs, found, strict=True))
        cotangents = [gradients[name] for name in fast_weights]
        total = {name: value + gradients[name] for name, value in total.items()}
    assert isinstance(meta_losses, Tensor)
    return MetaGradients(total | dict(zip(loop.adapted, cotangents, strict=True)), meta_losses, last_scores)
