"""Batch normalisation over an episode's own images, with a second derivative that MAML can afford.

torch composes the second derivative of batch norm from some thirty-five passes over the activations; here it is one native backward
call and two linear combinations. Formulas: differentiate Ioffe & Szegedy 2015 (arXiv:1502.03167), Algorithm 1, twice.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Gradients = tuple[Tensor, Tensor, Tensor]


class BatchNorm2d(nn.Module):
    """Batch norm whose statistics belong to the episode.

    In training mode every call normalises by the statistics of the images it is given (transductive when these are queries).
    In evaluation mode it uses `running_mean` and `running_var`, which `distmeta.learners.inner.support_statistics` takes from a support
    set.
    Shapes: input and output (N, C, H, W); weight, bias, running_mean, running_var (C,).
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        # Not persistent: they describe one support set, not what the outer loop learns.
        self.register_buffer("running_mean", torch.zeros(channels), persistent=False)
        self.register_buffer("running_var", torch.ones(channels), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            return _Normalise.apply(images, self.weight, self.bias, self.eps)
        return nn.functional.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        y, mean, inverse_std = torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        ctx.eps = eps
        return y

    @staticmethod
    def backward(ctx: Any, *grad_y: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        return *_NormaliseBackward.apply(grad_y[0], x, weight, mean, inverse_std, ctx.eps), None


class _NormaliseBackward(torch.autograd.Function):
    """The first derivative as a function of its own, so that it can be differentiated once more."""

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Gradients:
        grad_x, grad_weight, grad_bias = _native_backward(grad_y, x, weight, mean, inverse_std, eps)
        ctx.save_for_backward(grad_y, x, weight, mean, inverse_std, grad_weight, grad_bias)
        ctx.eps = eps
        return grad_x, grad_weight, grad_bias

    @staticmethod
    @once_differentiable  # a third derivative would silently treat the saved statistics as constants
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        """With g = grad_y, h, u, v the cotangents of grad_x, grad_weight, grad_bias, x̂ = (x - mean) r, <.> the mean over images and pixels,

        a = <h>, b = <g>, c = <h x̂>, d = <g x̂>, P = <h g>, γ = weight:

        grad of g = γ r (h - a - c x̂) + u x̂ + v
        grad of γ = N r (P - a b - c d)
        grad of x = -γ r² (d h + c g) + u r g + [-γ r² (P - a b - 3 c d) - u r d] x̂ + γ r² (a d + b c) - u r b
        """
        h, u, v = cotangents
        g, x, weight, mean, r, sum_gx, sum_g = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        first, sum_hx, sum_h = _native_backward(h.contiguous(memory_format=_layout(x)), x, weight, mean, r, ctx.eps)  # γ r (h - a - c x̂)
        a, b, c, d = sum_h / count, sum_g / count, sum_hx / count, sum_gx / count
        p = (h * g).sum((0, 2, 3)) / count
        grad_weight = count * r * (p - a * b - c * d)
        grad_g = first.add_(_affine(x, u * r, v - u * r * mean))
        scale = weight * r * r
        on_x_hat = -scale * (p - a * b - 3 * c * d) - u * r * d
        constant = scale * (a * d + b * c) - u * r * b - on_x_hat * r * mean
        grad_x = _affine(x, on_x_hat * r, constant)
        grad_x.addcmul_(h, _channels(-scale * d)).addcmul_(g, _channels(u * r - scale * c))
        return grad_g, grad_x, grad_weight, None, None, None


def _native_backward(grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Gradients:
    return torch.ops.aten.native_batch_norm_backward(grad_y, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True])


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def _affine(x: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    return torch.addcmul(_channels(intercept), x, _channels(slope))
