"""The norms of backbones, and batch normalisation over an episode's images with a fast second derivative for MAML.

torch composes the second derivative of batch norm from some thirty-five passes over the activations; here it is one native backward
call and two linear combinations. Formulas: differentiate Ioffe & Szegedy 2015 (arXiv:1502.03167), Algorithm 1, twice.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from distmeta.errors import ConfigError

Gradients = tuple[Tensor, Tensor, Tensor]


class Statistics(NamedTuple):
    """Mean and biased variance (C,), and the number of values per channel."""

    values: int
    mean: Tensor
    var: Tensor


def pooled(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of the union of several parts."""
    if len(parts) == 1:
        return parts[0]
    values = sum(part.values for part in parts)
    mean = sum(part.mean * (part.values / values) for part in parts)
    assert isinstance(mean, Tensor)
    var = sum((part.var + (part.mean - mean).square()) * (part.values / values) for part in parts)
    assert isinstance(var, Tensor)
    return Statistics(values, mean, var)


def as_images(inputs: Tensor) -> Tensor:
    """(N, C, …) as images (N, C, H, W): a vector becomes an image of one pixel, a sequence an image of one column."""
    return inputs if inputs.dim() == 4 else inputs.reshape(*inputs.shape[:2], -1, 1)


def _shaped_like(inputs: Tensor, images: Tensor) -> Tensor:
    """What `as_images` changed, undone. A needless view of a single image would hide from torch that its channels are innermost."""
    return images if inputs.dim() == 4 else images.view(inputs.shape)


class BatchNorm2d(nn.Module):
    """Batch norm whose statistics belong to the episode.

    In training mode every call normalises by the statistics of the images it is given (transductive when these are queries).
    In evaluation mode it uses `running_mean` and `running_var`, which `distmeta.learners.forward.support_statistics` takes from a
    support set.
    While `seen` is a list, each call in training mode appends the statistics that it normalised by.
    Shapes: input and output (N, C, …), usually images (N, C, H, W); weight, bias, running_mean, running_var (C,). Without `affine`, weight
    and bias are constants.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor
    # not persistent: the buffers describe one support set, and the outer loop does not learn them
    persistent = False
    seen: list[Statistics] | None = None

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        for name in ("weight", "bias"):
            if affine:
                self.register_parameter(name, nn.Parameter(torch.empty(channels)))
            else:
                self.register_buffer(name, torch.empty(channels), persistent=False)
        self.register_buffer("running_mean", torch.empty(channels), persistent=self.persistent)
        self.register_buffer("running_var", torch.empty(channels), persistent=self.persistent)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)
        nn.init.zeros_(self.bias)
        nn.init.zeros_(self.running_mean)
        nn.init.ones_(self.running_var)

    def forward(self, inputs: Tensor) -> Tensor:
        images = as_images(inputs)
        if self.training:
            return _shaped_like(inputs, self.normalise(images)[0])
        normalised = nn.functional.batch_norm(images, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        return _shaped_like(inputs, normalised)

    def normalise(self, images: Tensor) -> Gradients:
        """Normalised images, and the mean (C,) and 1/√(variance + eps) (C,) used for them. The latter two have no gradient."""
        normalised = _Normalise.apply(images, self.weight, self.bias, self.eps)
        self.tell(images.numel() // images.shape[1], *normalised[1:])
        return normalised

    def tell(self, values: int, mean: Tensor, inverse_std: Tensor) -> None:
        """Record the statistics that normalised images with `values` values per channel."""
        if self.seen is not None:
            self.seen.append(Statistics(values, mean, _variance(inverse_std, self.eps)))


class RunningBatchNorm2d(BatchNorm2d):
    """Batch norm that exposes the statistics it used, for a training loop that averages them into `running_mean` and `running_var`.

    The module itself never changes its buffers.
    """

    persistent = True


class FrozenBatchNorm(nn.Module):
    """A trained batch norm as an affine map: its statistics are constants in training and evaluation mode.

    Shapes: input and output (N, C, …); weight, bias, running_mean, running_var (C,). Without `affine`, weight and bias are constants.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", torch.ones(channels)), ("bias", torch.zeros(channels))):
            if affine:
                self.register_parameter(name, nn.Parameter(value))
            else:
                self.register_buffer(name, value, persistent=False)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, inputs: Tensor) -> Tensor:
        slope = self.weight * (self.running_var + self.eps).rsqrt()
        return _shaped_like(inputs, _affine(as_images(inputs), slope, self.bias - self.running_mean * slope))


class GroupNorm(nn.GroupNorm):
    """Group norm (Wu & He 2018, arXiv:1803.08494) in groups of at least 16 channels, the paper's best size (table 3). Fewer channels are
    one group.

    Their other choice, always 32 groups, would leave Conv-4-32 one channel a group, which is constant on a feature map of one pixel.
    Shapes: input and output (N, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        groups = max(count for count in range(1, max(channels // 16, 1) + 1) if channels % count == 0)
        super().__init__(groups, channels)

    def forward(self, images: Tensor) -> Tensor:
        n, channels, height, width = images.shape
        # torch's group_norm queries the memory layout, which torch.vmap does not support.
        arguments = n, channels, height * width, self.num_groups, self.eps
        return torch.native_group_norm(images.contiguous(), self.weight, self.bias, *arguments)[0]


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": BatchNorm2d,
    "running": RunningBatchNorm2d,
    "group": GroupNorm,
    "none": lambda channels: nn.Identity(),
}


def make_norm(name: str, channels: int, epsilon: float = 1e-5) -> nn.Module:
    """The norm `name` over (N, channels, H, W): batch, running, group or none, with `epsilon` added to variances. Raises ConfigError.

    A layer before a norm has no bias, because batch norm would subtract it, and group norm has its own bias (as in Wu & He's networks).
    With "none", an identity, the layer has a bias; see `has_bias`.
    """
    if name not in NORMS:
        raise ConfigError(f"model.norm={name!r} is not a norm", f"choose one of {', '.join(NORMS)}")
    norm = NORMS[name](channels)
    if isinstance(norm, BatchNorm2d | GroupNorm):
        norm.eps = epsilon
    return norm


def has_bias(norm: str) -> bool:
    """Whether a layer before the norm of that name needs a bias."""
    return norm == "none"


def _variance(inverse_std: Tensor, eps: float) -> Tensor:
    """The variance (C,) whose 1/√(variance + eps) is given.

    No pass over the images: exact to rounding in variance + eps, and a norm needs only this sum.
    """
    return (inverse_std**-2 - eps).clamp_min(0)


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Gradients:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Gradients) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.save_for_backward(x, weight, mean, inverse_std)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Any, Any]:
        """Tasks become channels: statistics belong to a channel, so T tasks of C channels are one batch of T·C channels.

        x (N, T, C, H, W) → (N, T·C, H, W), weight and bias (T, C) → (T·C,). `vmap` of a convolution leaves tasks next to channels, so
        neither direction copies. Unmapped arguments are repeated, so their gradients sum over tasks.
        """
        tasks = info.batch_size
        x = _tasks_at(1, x, in_dims[0], tasks)
        weight, bias = (_tasks_at(0, value, dim, tasks) for value, dim in zip((weight, bias), in_dims[1:3], strict=True))
        y, mean, inverse_std = _Normalise.apply(x.flatten(1, 2), weight.flatten(), bias.flatten(), eps)
        return (y.unflatten(1, x.shape[1:3]), mean.view(tasks, -1), inverse_std.view(tasks, -1)), (1, 0, 0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        return *_NormaliseBackward.apply(grads[0], x, weight, mean, inverse_std, ctx.eps), None


class _NormaliseBackward(torch.autograd.Function):
    """The first derivative as a separate function, so that it can be differentiated once more.

    It has no `vmap`: tasks are batched only in the forward pass, so autograd calls it with tasks already folded into channels. torch
    refuses it under the derivatives of `torch.func`.
    """

    @staticmethod
    def forward(ctx: Any, grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Gradients:
        grad_x, grad_weight, grad_bias = _native_backward(grad_y, x, weight, mean, inverse_std, eps)
        ctx.save_for_backward(grad_y, x, weight, mean, inverse_std, grad_weight, grad_bias)
        ctx.eps = eps
        return grad_x, grad_weight, grad_bias

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        return *_NormaliseBackwardTwice.apply(*cotangents, *ctx.saved_tensors, ctx.eps), None, None, None


class _NormaliseBackwardTwice(torch.autograd.Function):
    """The second derivative as a function that refuses to be differentiated.

    A third derivative would silently treat the saved statistics as constants. torch's `once_differentiable` does not prevent this, because
    it refuses only on a branch that `torch.autograd.grad` never visits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        u: Tensor,
        v: Tensor,
        g: Tensor,
        x: Tensor,
        weight: Tensor,
        mean: Tensor,
        r: Tensor,
        sum_gx: Tensor,
        sum_g: Tensor,
        eps: float,
    ) -> Gradients:
        """With g = grad_y, h, u, v the cotangents of grad_x, grad_weight, grad_bias, x̂ = (x - mean) r, <.> the mean over images and pixels,

        a = <h>, b = <g>, c = <h x̂>, d = <g x̂>, P = <h g>, γ = weight:

        grad of g = γ r (h - a - c x̂) + u x̂ + v
        grad of γ = N r (P - a b - c d)
        grad of x = -γ r² (d h + c g) + u r g + [-γ r² (P - a b - 3 c d) - u r d] x̂ + γ r² (a d + b c) - u r b
        """
        count = x.numel() // x.shape[1]
        first, sum_hx, sum_h = _native_backward(h, x, weight, mean, r, eps)  # γ r (h - a - c x̂)
        a, b, c, d = sum_h / count, sum_g / count, sum_hx / count, sum_gx / count
        p = (h * g).sum((0, 2, 3)) / count
        grad_weight = count * r * (p - a * b - c * d)
        grad_g = first.add_(_affine(x, u * r, v - u * r * mean))
        scale = weight * r * r
        on_x_hat = -scale * (p - a * b - 3 * c * d) - u * r * d
        constant = scale * (a * d + b * c) - u * r * b - on_x_hat * r * mean
        grad_x = _affine(x, on_x_hat * r, constant)
        grad_x.addcmul_(h, _channels(-scale * d)).addcmul_(g, _channels(u * r - scale * c))
        return grad_g, grad_x, grad_weight

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> Any:
        raise NotImplementedError("batch norm has no third derivative here")


def _tasks_at(place: int, value: Tensor, dim: int | None, tasks: int) -> Tensor:
    """`value` with its task dimension at `place`, repeated there if it has none."""
    return value.unsqueeze(place).expand(*value.shape[:place], tasks, *value.shape[place:]) if dim is None else value.movedim(dim, place)


def _native_backward(grad_y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, inverse_std: Tensor, eps: float) -> Gradients:
    # Mixed layouts take many times as long, and the second derivative of max-pool returns contiguous tensors.
    grad_y = grad_y.contiguous(memory_format=_layout(x))
    return torch.ops.aten.native_batch_norm_backward(grad_y, x, weight, None, None, mean, inverse_std, True, eps, [True, True, True])


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def _channels(values: Tensor) -> Tensor:
    return values[:, None, None]


def _affine(x: Tensor, slope: Tensor, intercept: Tensor) -> Tensor:
    return torch.addcmul(_channels(intercept), x, _channels(slope))
