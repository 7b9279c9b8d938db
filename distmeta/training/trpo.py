"""TRPO: the longest step down the natural gradient that keeps adapted policies close (Schulman et al. 2015, arXiv:1502.05477).

MAML's authors update policies in this way (Finn, Abbeel & Levine 2017, section 4.2). Meta-gradients, Fisher-vector products and the line
search's values are each summed exactly, and every worker computes the same from the sums.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.learners.held import HeldBatch
from distmeta.learners.learner import Learner
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, flatten, unflatten
from distmeta.learners.trust_region import Curvature, hold, loss_and_divergence
from distmeta.training.metrics_folder import Record
from distmeta.training.outer import OuterUpdate
from distmeta.training.reduce import Mean, Reduced, SlotVectors

_ITERATIONS = 10  # of conjugate gradients
_RESIDUAL = 1e-10  # squared residual at which the iterations stop
_DAMPING = 1e-5  # added to the Fisher information's diagonal
_SHRINK = 0.8  # factor after a step that the line search refuses
_TRIES = 15


class _NotFinite(Exception):
    """A sum over the workers is not finite."""

    def __init__(self, reduced: Reduced) -> None:
        self.reduced = reduced


class TRPO(OuterUpdate):
    """One step of at most `max_divergence` in the mean KL divergence (nats) of adapted policies; no optimiser, no learning rate."""

    def __init__(self, max_divergence: float, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.max_divergence = max_divergence

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        assert isinstance(learner, MAML)
        return hold(learner, self.meta_params, batch)

    def step(self, learner: Learner, batch: Batch, mean: Mean, step: int) -> tuple[Reduced, Record]:
        """Returns the meta-gradient's averaged result. meta_params stay unchanged if a sum is not finite or the line search fails."""
        assert isinstance(learner, MAML)
        assert isinstance(batch, HeldBatch)
        theta = {name: value.clone() for name, value in self.meta_params.items()}
        first = mean(theta, lambda: learner.each_slot(theta, batch))
        try:
            gradient = _finite(first)
            curvature: list[Curvature] = []

            def products(vector: Tensor) -> SlotVectors:
                if not curvature:  # built inside the block whose failure is reported to the other workers
                    curvature.append(Curvature.of(learner, theta, batch))
                return curvature[0].times(vector)

            def product(vector: Tensor) -> Tensor:
                like = vector.to(flatten(theta))
                return _finite(mean(theta, lambda: products(like))) + _DAMPING * vector

            direction = conjugate_gradients(product, gradient)
            bend = direction.dot(product(direction)).item()
            curvature.clear()
            longest = direction * (2 * self.max_divergence / bend) ** 0.5 if bend > 0 else torch.zeros_like(direction)
            searched = self._search(learner, batch, mean, theta, longest)
        except _NotFinite as error:
            return error.reduced, {}
        return first, {"gradient_norm": gradient.norm().item()} | searched

    def _search(self, learner: MAML, batch: HeldBatch, mean: Mean, theta: Params, longest: Tensor) -> Record:
        """Move along minus `longest` as far as the loss decreases and the divergence allows."""

        def tried(params: Params) -> Reduced:
            return mean(params, lambda: loss_and_divergence(learner, params, batch), 2)

        before, origin = _finite(tried(theta))[0], flatten(theta).double()
        for shrinks in range(_TRIES):
            params = unflatten((origin - _SHRINK**shrinks * longest).to(flatten(theta)), theta)
            reached = tried(params).meta_gradient
            if reached is not None and reached[0] < before and reached[1] <= self.max_divergence:
                for name, value in self.meta_params.items():
                    value.copy_(params[name])
                return {"divergence": reached[1].item(), "shrinks": shrinks}
        return {"divergence": 0.0, "shrinks": _TRIES}


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """x for which product(x) is near `target`, both (P,) in float64; `product` is linear, symmetric and positive definite.

    Hestenes & Stiefel 1952, from x = 0, for at most 10 iterations.
    """
    solution, residual, direction = torch.zeros_like(target), target.clone(), target.clone()
    squared = residual.dot(residual)
    for _ in range(_ITERATIONS):
        if squared < _RESIDUAL:
            break
        bent = product(direction)
        length = squared / direction.dot(bent)
        solution = solution + length * direction
        residual = residual - length * bent
        squared, before = residual.dot(residual), squared
        direction = residual + squared / before * direction
    return solution


def _finite(reduced: Reduced) -> Tensor:
    """The sum's mean, in float64. Raises _NotFinite."""
    if reduced.meta_gradient is None:
        raise _NotFinite(reduced)
    return reduced.meta_gradient.double()
