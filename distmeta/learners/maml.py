"""MAML: model-agnostic meta-learning (Finn, Abbeel & Levine 2017, arXiv:1703.03400), exact to second order."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners import inner
from distmeta.learners.params import Params, flatten


class SlotMetrics(NamedTuple):
    """Per slot: mean query loss (B,) float, correctly classified queries (B,) and queries (B,), both integers."""

    loss: Tensor
    correct: Tensor
    total: Tensor


class Logits(NamedTuple):
    """Query logits (N*Q, N) of one episode: all queries normalised together, and each by the support set's statistics alone."""

    transductive: Tensor
    inductive: Tensor


class MAML:
    """Learns an initialisation θ from which a few gradient steps solve a new task.

    inner_lr is the paper's α for a loss that is a mean over the support set; the official code sums over N*K images and divides by K,
    so its α equals ours divided by N. inner_steps are used in training, inner_steps_eval in evaluation and prediction.
    """

    def __init__(self, model: nn.Module, inner_lr: float, inner_steps: int, inner_steps_eval: int) -> None:
        self.model = model
        self.inner_lr = inner_lr
        self.inner_steps = inner_steps
        self.inner_steps_eval = inner_steps_eval

    def slot_gradients(self, meta_params: Params, episodes: EpisodeBatch) -> tuple[Tensor, SlotMetrics]:
        """One meta-gradient for each slot, (B, P): ∇θ L_query(φ_k(θ)) (arXiv:1703.03400, the sum's terms in algorithm 1, line 10).

        Slots are computed one after another, so that a slot's bits never depend on its neighbours.
        """
        parameters = {name: value.detach().requires_grad_() for name, value in meta_params.items()}
        gradients, losses, correct = [], [], []
        for support, support_labels, queries, query_labels in zip(*episodes[2:], strict=True):
            fast_weights = inner.adapt(self.model, parameters, support, support_labels, self.inner_lr, self.inner_steps, create_graph=True)
            logits = functional_call(self.model, fast_weights, (queries,))
            loss = cross_entropy(logits, query_labels)
            slot_gradient = torch.autograd.grad(loss, list(parameters.values()))
            gradients.append(flatten(dict(zip(parameters, slot_gradient, strict=True))))
            losses.append(loss.detach())
            correct.append((logits.argmax(1) == query_labels).sum())
        total = torch.full((len(losses),), episodes.query_labels.shape[1])
        return torch.stack(gradients), SlotMetrics(torch.stack(losses), torch.stack(correct), total)

    def adapt(self, meta_params: Params, images: Tensor, labels: Tensor) -> Params:
        """fast_weights (and the support set's norm statistics) for one support set, images (N*K, C, H, W), labels (N*K,)."""
        fast_weights = inner.adapt(self.model, meta_params, images, labels, self.inner_lr, self.inner_steps_eval, create_graph=False)
        return fast_weights | inner.support_statistics(self.model, fast_weights, images)

    @torch.no_grad()
    def predict(self, adapted: Params, queries: Tensor) -> Logits:
        """Logits of queries (B, C, H, W) under what `adapt` returned."""
        return Logits(functional_call(self.model, adapted, (queries,)), inner.predict_frozen(self.model, adapted, queries))
