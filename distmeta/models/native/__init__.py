"""Native kernels, compiled from C++: Conv-4's block, and the 3×3 convolutions of ResNet-12 and VGG. `use` enables them for a network;
`applies` and `convolves` decide for each call.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from distmeta.models.native.blocks import COLOURS, GROUP, evaluated_block, pooled_block
from distmeta.models.native.library import Library
from distmeta.models.norm import BatchNorm2d, RunningBatchNorm2d

_NORMS = (BatchNorm2d, RunningBatchNorm2d)
_PLAIN = (Tensor, nn.Parameter, FakeTensor)
_LEAST_PIXELS = 400  # of an image: on smaller ones the native convolution's gradient by the weights errs more than torch's
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def use(model: nn.Module, library: Library | None) -> None:
    """Let `model` compute by `library` wherever `applies` or `convolves` holds. With None, torch computes everything."""
    for module in model.modules():
        if hasattr(type(module), "library"):
            vars(module)["library"] = library


def serves(model: nn.Module) -> bool:
    """Whether `model` has a block or convolution that native kernels can compute."""
    layers: list[Any] = [module for module in model.modules() if hasattr(type(module), "library")]
    return any(layer.fits() for layer in layers)


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
        layers_fit(convolution, norm, pool)
        and _images_fit(library, images, convolution.weight)
        and not _something_else_looks(images, norm.weight, norm.running_mean)
        and (norm.training or not _has_gradient(images, convolution, norm))
    )


def convolves(library: Library, images: Tensor, layer: nn.Conv2d) -> bool:
    """Whether the native convolution computes what this layer computes, for images (N, C, H, W); otherwise torch does."""
    return (
        convolution_fits(layer)
        and images.shape[2] * images.shape[3] >= _LEAST_PIXELS
        and images.shape[1] % GROUP == 0
        and _images_fit(library, images, layer.weight)
        and not _something_else_looks(images, layer.weight)
    )


def convolution_fits(layer: nn.Conv2d) -> bool:
    """Whether the native convolution can compute this layer."""
    return (
        (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and layer.groups == 1
        and layer.bias is None
        and layer.in_channels % GROUP == 0 == layer.out_channels % GROUP
    )


def layers_fit(convolution: Any, norm: Any, pool: Any) -> bool:
    """Whether the native block can compute these layers of a block."""
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


def _something_else_looks(*tensors: Tensor) -> bool:
    """Whether a torch transform is active on these tensors, or torch uses more than one thread."""
    return (
        any(torch._C._functorch.is_functorch_wrapped_tensor(tensor) for tensor in tensors)
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch.get_num_threads() > 1
    )
