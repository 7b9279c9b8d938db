"""Spiking Conv-4: the four-block network with leaky integrate-and-fire neurons, derivatives of any order through a surrogate."""

import math
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from distmeta.bounds import Fraction, Positive, PositiveFloat
from distmeta.models.layers import image_shape
from distmeta.models.norm import has_bias, make_norm


def arctangent(potential: Tensor, scale: float) -> Tensor:
    """arctan(scale · v) / π: the smooth function whose derivatives replace those of the Heaviside step.

    (Fang et al. 2021, arXiv:2007.05785, equation 13, up to a constant; its derivative is scale / (π (1 + (scale · v)²)).)
    """
    return torch.atan(scale * potential) / math.pi


def spike(potential: Tensor, scale: float) -> Tensor:
    """1 where the potential above threshold is positive, else 0; every derivative is that of `arctangent`.

    The difference below is exactly zero in value. torch can differentiate its first term any number of times, also under vmap.
    """
    smooth = arctangent(potential, scale)
    return (potential > 0).to(potential.dtype) + (smooth - smooth.detach())


class LeakyIntegrateAndFire(nn.Module):
    """Neurons with leak `beta` and a soft, detached reset (Neftci, Mostafa & Zenke 2019, arXiv:1901.09948, equations 4 and 5).

    v[t] = beta · v[t-1] + current[t];  spikes[t] = step(v[t] - threshold);  v[t] ← v[t] - threshold · spikes[t].
    The reset passes no gradient. Input and output (T, M, …); `spike_rate` holds the mean of the last spikes, a scalar without gradient;
    inside `torch.vmap` it must be read inside the mapped function.
    """

    spike_rate: Tensor

    def __init__(self, beta: float, threshold: float, surrogate_scale: float) -> None:
        super().__init__()
        self.beta = beta
        self.threshold = threshold
        self.surrogate_scale = surrogate_scale

    def fire(self, potential: Tensor) -> Tensor:
        return spike(potential, self.surrogate_scale)

    def reset(self, potential: Tensor, spikes: Tensor) -> Tensor:
        return potential - self.threshold * spikes.detach()

    def forward(self, currents: Tensor) -> Tensor:
        potential, fired = torch.zeros_like(currents[0]), []
        for current in currents.unbind(0):
            potential = self.beta * potential + current
            fired.append(self.fire(potential - self.threshold))
            potential = self.reset(potential, fired[-1])
        spikes = torch.stack(fired)
        self.spike_rate = spikes.detach().mean()
        return spikes


class SpikingConv4(nn.Module):
    """Conv-4 whose ReLUs are spiking neurons: an image is shown for `steps` time steps, features are spike rates.

    A block is convolution, norm, neurons, and 2×2 average pooling. The image does not change over time, so the first block's currents are
    computed once. Keys: `steps` (T, time steps), `beta` (leak: the share of its potential that a neuron keeps for a time step),
    `threshold` (potential at which a neuron fires), `surrogate_scale` (slope of the surrogate, per unit of potential), `filters`.
    Input (B, C, H, W), features (B, filters·h·w) in 0..1, output (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        norm: str = "batch",
        filters: Positive = 32,
        steps: Positive = 4,
        beta: Fraction = 0.5,
        threshold: PositiveFloat = 1.0,
        surrogate_scale: PositiveFloat = math.pi,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape("spiking_conv4", input_shape, halvings=4)
        self.steps = steps
        widths = [channels, filters, filters, filters, filters]
        neurons = beta, threshold, surrogate_scale
        self.blocks = nn.Sequential(*(SpikingBlock(ins, outs, norm, neurons) for ins, outs in pairwise(widths)))
        self.head = nn.Linear(filters * (height // 16) * (width // 16), outputs)

    def features(self, images: Tensor) -> Tensor:
        first, *others = cast("list[SpikingBlock]", list(self.blocks))
        currents = first.currents(images)
        spikes = first.spikes(currents.expand(self.steps, *currents.shape))
        for block in others:
            spikes = block.spikes(block.currents(spikes.flatten(0, 1)).unflatten(0, spikes.shape[:2]))
        return spikes.mean(0).flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class SpikingBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str, neurons: tuple[float, float, float]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=has_bias(norm))
        self.norm = make_norm(norm, outputs)
        self.neurons = LeakyIntegrateAndFire(*neurons)
        self.pool = nn.AvgPool2d(2)

    def currents(self, images: Tensor) -> Tensor:
        """The neurons' input currents (M, outputs, H, W), from images or spikes (M, inputs, H, W)."""
        return self.norm(self.conv(images))

    def spikes(self, currents: Tensor) -> Tensor:
        """Pooled spikes (T, M, outputs, H/2, W/2), from currents (T, M, outputs, H, W)."""
        fired = self.neurons(currents)
        return self.pool(fired.flatten(0, 1)).unflatten(0, fired.shape[:2])
