"""Computations of ProMP and TRPO on held trajectories, slot by slot: drawing them, and the divergence from the policy that acted."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distmeta.data.episodes import Batch
from distmeta.learners.forward import Network
from distmeta.learners.held import HeldBatch
from distmeta.learners.inner import InnerLoop
from distmeta.learners.learner import Chunk, SlotMetrics
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, detached, leaves, unflatten
from distmeta.learners.policy_gradient import PolicyGradient


def hold(learner: MAML, meta_params: Params, batch: Batch) -> HeldBatch:
    """The trajectories of `batch` under meta_params, before the first inner step of training and after each."""
    objective, parts = _objective(learner), []
    for params, forward, tasks, places in learner.chunks(meta_params, batch):
        loop, phases = learner.inner_loop(forward, batch.step), []
        fast = detached(loop.start(params))
        for number in range(loop.steps + 1):
            phases.append(objective.play(Network(forward, params | fast), tasks, number))
            if number < loop.steps:
                fast = detached(loop.step(params, leaves(fast), HeldBatch.of(tasks, phases), number, create_graph=False))
        parts.append(HeldBatch.of(tasks, phases).take(places))
    return HeldBatch.joined(parts)


def loss_and_divergence(learner: MAML, meta_params: Params, batch: HeldBatch) -> Iterator[tuple[Tensor, SlotMetrics]]:
    """For the next n slots, (n, 2): the query loss under meta_params, and the divergence from the adapted policy that acted."""
    objective = _objective(learner)
    for params, forward, tasks, places in learner.chunks(meta_params, batch):
        loop = learner.inner_loop(forward, batch.step)
        fast, losses = detached(loop.start(params)), torch.zeros(len(tasks)).to(tasks.rewards)
        for number, weight in enumerate(loop.loss_weights):
            network = Network(forward, params | fast)
            with torch.no_grad():
                losses = losses + weight * objective.ratio_loss(network, tasks.phase(number))
                divergence = objective.divergence(network, tasks.phase(number))
            if number < loop.steps:
                fast = detached(loop.step(params, leaves(fast), tasks, number, create_graph=False))
        yield torch.stack([losses, divergence], 1)[places], _metrics(losses[places])


class Curvature(NamedTuple):
    """The second derivative, by meta_params, of each slot's divergence from the adapted policy that acted, at these meta_params.

    At this point the divergence is minimal, so the result is the Fisher information of the adapted policy, differentiated through the inner
    steps (through θ alone for a first-order learner). It keeps the graph of every slot.
    """

    meta_params: Params
    chunks: list[tuple[Params, list[Tensor], Chunk]]

    @classmethod
    def of(cls, learner: MAML, meta_params: Params, batch: HeldBatch) -> "Curvature":
        return cls(
            meta_params,
            [_curved(learner, chunk, learner.inner_loop(chunk.forward, batch.step)) for chunk in learner.chunks(meta_params, batch)],
        )

    def times(self, vector: Tensor) -> Iterator[tuple[Tensor, SlotMetrics]]:
        """The product (n, P) of the next n slots' second derivatives with `vector` (P,)."""
        along = unflatten(vector, self.meta_params)
        for wanted, gradients, (_, _, tasks, places) in self.chunks:
            slope = torch.stack([(gradient * along[name]).sum() for name, gradient in zip(wanted, gradients, strict=True)]).sum()
            derivatives = torch.autograd.grad(slope, list(wanted.values()), retain_graph=True, allow_unused=True, materialize_grads=True)
            products = dict(zip(wanted, derivatives, strict=True))
            flat = torch.cat([products[name].reshape(len(tasks), -1) for name in self.meta_params], 1)
            yield flat[places], _metrics(flat.new_zeros(len(places)))


def _curved(learner: MAML, chunk: Chunk, loop: InnerLoop) -> tuple[Params, list[Tensor], Chunk]:
    """Leaves, the divergence's gradient by them as a function of them, and the chunk."""
    params, forward, tasks, _ = chunk
    fast = loop.start(params)
    for number in range(loop.steps):
        fast = loop.step(params, fast, tasks, number, create_graph=not loop.first_order)
    divergence = _objective(learner).divergence(Network(forward, params | fast), tasks.phase(loop.steps))
    wanted = learner.trained(params)
    gradients = torch.autograd.grad(divergence.sum(), list(wanted.values()), create_graph=True, allow_unused=True, materialize_grads=True)
    return wanted, list(gradients), chunk


def _objective(learner: MAML) -> PolicyGradient:
    assert isinstance(learner.objective, PolicyGradient)
    return learner.objective


def _metrics(losses: Tensor) -> SlotMetrics:
    return SlotMetrics(losses, torch.full_like(losses, torch.nan, dtype=torch.float64), losses.new_empty(len(losses), 0))
