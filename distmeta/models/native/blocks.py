"""The native blocks and the native convolution as functions that autograd differentiates twice.

blocks.cpp computes; this module allocates memory and links each function to its derivative.

A block is 3×3 convolution with zero padding, batch norm over all images, 2×2 max-pool and ReLU:
images (N, C, H, W), weight (F, C, 3, 3), gamma and beta (F,) → (N, F, H//2, W//2), mean (F,) and inverse standard deviation (F,).
The convolution by itself maps images and weight to (N, F, H, W).
"""

from typing import Any

import torch
from torch import Tensor

from distmeta.models.native.library import Library

COLOURS = (1, 3)  # channels of a first block's images
GROUP = 16  # the number of filters must be a multiple of this
_GRAM = {1: (9, 16), 3: (27, 32)}  # patches.h: rows are a patch's values, columns are those, a 1, and padding to whole groups


def pooled_block(
    images: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float, library: Library
) -> tuple[Tensor, Tensor, Tensor]:
    """The block's output, and the mean and inverse standard deviation used to normalise it, which have no gradient."""
    if images.shape[1] in COLOURS:
        return _FirstBlock.apply(images, weight, gamma, beta, eps, library)
    output, _, mean, inverse_std = _Block.apply(images, weight, gamma, beta, eps, library)
    return output, mean, inverse_std


def evaluated_block(
    images: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, variance: Tensor, eps: float, library: Library
) -> Tensor:
    """The block's output where mean and variance (F,) are given. It has no gradient."""
    w = _channels_last(weight)
    n, channels, height, width = images.shape
    output = _new(images, n, len(w), height // 2, width // 2)
    name, x = ("first_block_evaluate", _layout(images)) if channels in COLOURS else ("block_evaluate", (_channels_last(images),))
    statistics = mean.contiguous(), variance.contiguous()
    library(name, *_sizes(images, w), *x, w, gamma.contiguous(), beta.contiguous(), *statistics, eps, output)
    return output


def convolved(images: Tensor, weight: Tensor, library: Library) -> Tensor:
    """The 3×3 convolution with zero padding, without a bias."""
    return _Convolution.apply(images, weight, library)


class _Block(torch.autograd.Function):
    """A block after the first. The convolution's output y is a separate output, so that the second derivative can pass its gradient by y to
    `backward`, which then differentiates the convolution once for both.
    """

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float, library: Library
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        x, w = _channels_last(images), _channels_last(weight)
        n, _, height, width = x.shape
        pooled = (n, len(w), height // 2, width // 2)
        y, output, y_max = _new(x, n, len(w), height, width), _new(x, *pooled), _new(x, *pooled)
        where = _new(x, *pooled, dtype=torch.uint8)
        mean, inverse_std = x.new_empty(len(w)), x.new_empty(len(w))
        library("block_forward", *_sizes(x, w), x, w, gamma, beta, eps, y, output, y_max, where, mean, inverse_std)
        # The inputs themselves: a copy in another layout would have no graph.
        ctx.save_for_backward(images, weight, gamma, y, output, y_max, where, mean, inverse_std)
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.library = library
        return output, y, mean, inverse_std

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor | None, grad_y: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grad_output = torch.zeros_like(saved[4]) if grad_output is None else grad_output
        arguments = grad_output, grad_y, *saved, ctx.needs_input_grad[0], torch.is_grad_enabled(), ctx.library
        return *_BlockBackward.apply(*arguments), None, None


class _BlockBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        grad_of_y: Tensor | None,
        images: Tensor,
        weight: Tensor,
        gamma: Tensor,
        y: Tensor,
        output: Tensor,
        y_max: Tensor,
        where: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        by_images: bool,
        again: bool,
        library: Library,
    ) -> tuple[Tensor | None, ...]:
        x, w, grad_output = map(_channels_last, (images, weight, grad_output))
        grad_of_y = None if grad_of_y is None else _channels_last(grad_of_y)
        grad_y = torch.empty_like(y) if again else None
        grad_x = torch.empty_like(x) if by_images else None
        grad_w, grad_gamma, grad_beta = torch.empty_like(w), torch.empty_like(mean), torch.empty_like(mean)
        kept = output, y_max, where, mean, inverse_std
        gradients = grad_y, grad_x, grad_w, grad_gamma, grad_beta
        library("block_backward", *_sizes(x, w), grad_output, grad_of_y, x, w, gamma, y, *kept, *gradients)
        if again:
            ctx.save_for_backward(grad_output, x, w, gamma, y, grad_y, *kept, grad_gamma, grad_beta)
            ctx.library = library
        return grad_x, grad_w, grad_gamma, grad_beta

    @staticmethod
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        refuse_third_derivative()
        grad_output, x, w, gamma, y, grad_y, *kept, grad_gamma, grad_beta = ctx.saved_tensors
        hx = torch.zeros_like(x) if hx is None else _channels_last(hx)
        hw, u, v = _channels_last(hw), u.contiguous(), v.contiguous()
        by_grad_output, by_y, by_x, by_w, by_gamma = map(torch.empty_like, (grad_output, y, x, w, gamma))
        inputs = hx, hw, u, v, grad_output, x, w, gamma, y, grad_y, *kept, grad_gamma, grad_beta
        ctx.library("block_second", *_sizes(x, w), *inputs, by_grad_output, by_y, by_x, by_w, by_gamma)
        # The gradient of grad_of_y would be h, but only a third derivative needs it.
        return by_grad_output, None, by_x, by_w, by_gamma, by_y, *[None] * 8


class _FirstBlock(torch.autograd.Function):
    """The first block, whose images have no gradient."""

    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, gamma: Tensor, beta: Tensor, eps: float, library: Library
    ) -> tuple[Tensor, Tensor, Tensor]:
        w = _channels_last(weight)
        n, colours, height, width = images.shape
        pooled = (n, len(w), height // 2, width // 2)
        output, y_max, where = _new(images, *pooled), _new(images, *pooled), _new(images, *pooled, dtype=torch.uint8)
        mean, inverse_std = images.new_empty(len(w)), images.new_empty(len(w))
        gram = images.new_empty(_GRAM[colours], dtype=torch.float64)
        made = gram, output, y_max, where, mean, inverse_std
        library("first_block_forward", *_sizes(images, w), *_layout(images), w, gamma, beta, eps, *made)
        ctx.save_for_backward(images, weight, gamma, output, y_max, where, mean, inverse_std, gram)
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.library = library
        return output, mean, inverse_std

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        return None, *_FirstBlockBackward.apply(grad_output, *ctx.saved_tensors, ctx.library), None, None


class _FirstBlockBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        grad_output: Tensor,
        images: Tensor,
        weight: Tensor,
        gamma: Tensor,
        output: Tensor,
        y_max: Tensor,
        where: Tensor,
        mean: Tensor,
        inverse_std: Tensor,
        gram: Tensor,
        library: Library,
    ) -> tuple[Tensor, Tensor, Tensor]:
        w, grad_output = map(_channels_last, (weight, grad_output))
        sums = w.new_empty((len(w), w[0].numel()), dtype=torch.float64)
        grad_w, grad_gamma, grad_beta = torch.empty_like(w), torch.empty_like(mean), torch.empty_like(mean)
        kept = output, y_max, where, mean, inverse_std
        made = sums, grad_w, grad_gamma, grad_beta
        library("first_block_backward", *_sizes(images, w), *_layout(images), grad_output, w, gamma, *kept, gram, *made)
        ctx.save_for_backward(grad_output, images, w, gamma, *kept, grad_gamma, grad_beta, gram, sums)
        ctx.library = library
        return grad_w, grad_gamma, grad_beta

    @staticmethod
    def backward(ctx: Any, hw: Tensor, u: Tensor, v: Tensor) -> tuple[Tensor | None, ...]:
        refuse_third_derivative()
        grad_output, images, w, gamma, *kept, grad_gamma, grad_beta, gram, sums = ctx.saved_tensors
        hw, u, v = _channels_last(hw), u.contiguous(), v.contiguous()
        by_grad_output, by_w, by_gamma = map(torch.empty_like, (grad_output, w, gamma))
        inputs = hw, u, v, w, gamma, *kept, grad_gamma, grad_beta, gram, sums
        ctx.library("first_block_second", *_sizes(images, w), *_layout(images), *inputs, by_grad_output, by_w, by_gamma)
        return by_grad_output, None, by_w, by_gamma, *[None] * 7


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, library: Library) -> Tensor:
        x, w = _channels_last(images), _channels_last(weight)
        y = _new(x, len(x), len(w), *x.shape[2:])
        library("convolution", *_sizes(x, w), x, w, y)
        ctx.save_for_backward(images, weight)
        ctx.library = library
        return y

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        return *_ConvolutionBackward.apply(grad_y, *ctx.saved_tensors, ctx.needs_input_grad[0], ctx.library), None


class _ConvolutionBackward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, grad_y: Tensor, images: Tensor, weight: Tensor, by_images: bool, library: Library
    ) -> tuple[Tensor | None, Tensor]:
        g, x, w = map(_channels_last, (grad_y, images, weight))
        grad_x, grad_w = torch.empty_like(x) if by_images else None, torch.empty_like(w)
        library("convolution_gradients", *_sizes(x, w), g, x, w, grad_x, grad_w)
        ctx.save_for_backward(g, x, w)
        ctx.library = library
        return grad_x, grad_w

    @staticmethod
    def backward(ctx: Any, hx: Tensor | None, hw: Tensor) -> tuple[Tensor | None, ...]:
        refuse_third_derivative()
        g, x, w = ctx.saved_tensors
        hx, hw = None if hx is None else _channels_last(hx), _channels_last(hw)
        by_g, by_x, by_w = torch.empty_like(g), None if hx is None else torch.empty_like(x), torch.empty_like(w)
        ctx.library("convolution_gradients_twice", *_sizes(x, w), hx, hw, g, x, w, by_g, by_x, by_w)
        return by_g, by_x, by_w, None, None


def refuse_third_derivative() -> None:
    """Raises NotImplementedError in a second derivative that keeps a graph: statistics would silently be treated as constants."""
    if torch.is_grad_enabled():
        raise NotImplementedError("native blocks have no third derivative: remove create_graph, or use torch's kernels")


def _sizes(x: Tensor, w: Tensor) -> tuple[int, ...]:
    n, channels, height, width = x.shape
    return n, height, width, channels, len(w)


def _layout(images: Tensor) -> tuple[Any, ...]:
    """Images and their strides, in the form of patches.h."""
    return images, *images.stride()


def _channels_last(value: Tensor) -> Tensor:
    return value.contiguous(memory_format=torch.channels_last)


def _new(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
