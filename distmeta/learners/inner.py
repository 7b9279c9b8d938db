"""The inner loop: from meta_params and a support set to fast_weights, and predictions with them."""

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from distmeta.learners.params import Params
from distmeta.models.norm import BatchNorm2d


def adapt(model: nn.Module, meta_params: Params, images: Tensor, labels: Tensor, inner_lr: float, steps: int, create_graph: bool) -> Params:
    """`steps` of gradient descent on the support set: φ ← φ - α ∇L_support(φ), starting from θ (MAML, arXiv:1703.03400, equation 1).

    images (N*K, C, H, W), labels (N*K,) in 0..N-1; the loss is the mean cross-entropy over the support set.
    With `create_graph` the fast_weights can be differentiated with respect to meta_params, through every step.
    """
    fast_weights = meta_params if create_graph else {name: value.detach() for name, value in meta_params.items()}
    for _ in range(steps):
        if not create_graph:
            fast_weights = {name: value.detach().requires_grad_() for name, value in fast_weights.items()}
        loss = cross_entropy(functional_call(model, fast_weights, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(fast_weights.values()), create_graph=create_graph)
        fast_weights = {name: value - inner_lr * gradient for (name, value), gradient in zip(fast_weights.items(), gradients, strict=True)}
    return fast_weights if create_graph else {name: value.detach() for name, value in fast_weights.items()}


@torch.no_grad()
def support_statistics(model: nn.Module, fast_weights: Params, images: Tensor) -> Params:
    """The batch-norm statistics of a support set under `fast_weights`: {"….running_mean": (C,), "….running_var": (C,)}.

    With them `predict_frozen` classifies every query by itself, whoever else is asked.
    """
    statistics: Params = {}
    norms = {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm2d)}

    def record(name: str, inputs: Tensor) -> None:
        statistics[f"{name}.running_mean"] = inputs.mean((0, 2, 3))
        statistics[f"{name}.running_var"] = inputs.var((0, 2, 3), correction=0)

    hooks = [module.register_forward_pre_hook(lambda _module, inputs, name=name: record(name, inputs[0])) for name, module in norms.items()]
    try:
        functional_call(model, fast_weights, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return statistics


@torch.no_grad()
def predict_frozen(model: nn.Module, adapted: Params, images: Tensor) -> Tensor:
    """Logits (B, N) for images (B, C, H, W), normalised by the statistics in `adapted` only: each row depends on its own image alone."""
    model.eval()
    try:
        return functional_call(model, adapted, (images,))
    finally:
        model.train()
