"""Native kernels: Conv-4's block compiled from C++. `use` enables them for a network; `applies` decides for each call."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from distmeta.models.native.blocks import COLOURS, GROUP, evaluated_block, pooled_block
from distmeta.models.native.library import Library
from distmeta.models.norm import BatchNorm2d, RunningBatchNorm2d

_NORMS = (BatchNorm2d, RunningBatchNorm2d)
_PLAIN = (Tensor, nn.Parameter, FakeTensor)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def use(model: nn.Module, library: Library | None) -> None:
    """Let the blocks of `model` compute by `library` wherever `applies` holds. With None, torch computes everything."""
    for module in model.modules():
        if hasattr(type(module), "library"):
            vars(module)["library"] = library


def serves(model: nn.Module) -> bool:
    """Whether `model` has a block that native kernels can compute."""
    blocks = (module for module in model.modules() if hasattr(type(module), "library"))
    return any(_layers_fit(block.conv, block.norm, block.pool) for block in blocks)


def compute(library: Library, images: Tensor, convolution: Any, norm: Any) -> Tensor:
    """The block's output (N, F, H//2, W//2) for images (N, C, H, W); in training mode the norm records the statistics."""
    if not norm.training:
        statistics = norm.running_mean, norm.running_var
        return evaluated_block(images, convolution.weight, norm.weight, norm.bias, *statistics, norm.eps, library)
    output, mean, inverse_std = pooled_block(images, convolution.weight, norm.weight, norm.bias, norm.eps, library)
    norm.tell(images.numel() // images.shape[1], mean, inverse_std)
    return output


def applies(library: Library, images: Tensor, convolution: Any, norm: Any, pool: Any) -> bool:
    """Whether the native block computes what these layers compute, for images (N, C, H, W); otherwise torch does."""
    return (
        _layers_fit(convolution, norm, pool)
        and _images_fit(library, images, convolution.weight)
        and _nothing_else_looks(images, norm)
        and (norm.training or not _has_gradient(images, convolution, norm))
    )


def _layers_fit(convolution: Any, norm: Any, pool: Any) -> bool:
    return (
        type(convolution) is nn.Conv2d
        and type(norm) in _NORMS
        and convolution.bias is None
        and convolution.out_channels % GROUP == 0
        and not any(getattr(layer, hooks) for layer in (convolution, norm, pool) for hooks in _HOOKS)
    )


def _images_fit(library: Library, images: Tensor, weight: Tensor) -> bool:
    _, channels, height, width = images.shape
    first = channels in COLOURS and not images.requires_grad
    return (
        type(images) in _PLAIN
        and type(weight) in _PLAIN
        and images.device.type == "cpu"
        and images.dtype == weight.dtype == library.dtype
        and (first or channels % GROUP == 0)
        and min(height, width) >= 2
    )


def _has_gradient(images: Tensor, convolution: Any, norm: Any) -> bool:
    inputs = images, convolution.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)


def _nothing_else_looks(images: Tensor, norm: Any) -> bool:
    """No torch transform is active on these tensors, and torch uses only one thread."""
    return not (
        torch._C._functorch.is_functorch_wrapped_tensor(images)
        or torch._C._functorch.is_functorch_wrapped_tensor(norm.weight)
        or torch._C._functorch.is_functorch_wrapped_tensor(norm.running_mean)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.get_num_threads() > 1
    )
