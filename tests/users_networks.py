"""Networks as users write them: each case of the contract in docs/extending.md, alone and combined."""

import functools
import math
import random
import sys
import threading
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

SHAPE, OUTPUTS, WIDTH = (1, 8, 8), 3, 6

sys.modules.setdefault("users_networks", sys.modules[__name__])


class Flat(nn.Module):
    """A hidden layer between flattened images and the head; the others add one thing each."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, WIDTH)
        self.between: nn.Module = nn.Tanh()
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Any:
        return self.head(self.between(self.hidden(images.flatten(1))))


class OtherHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, WIDTH), nn.Tanh())
        self.fc = nn.Linear(WIDTH, 1000)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.body(images))


class Token(Flat):
    """A bare parameter."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.token = nn.Parameter(torch.randn(WIDTH))

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.hidden(images.flatten(1)) + self.token).tanh())


class NumpyDrawn(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.weight.data = torch.tensor(np.random.randn(WIDTH, 64) * random.random(), dtype=torch.float32)


class FrozenBody(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.requires_grad_(False)


class Pooler(Flat):
    """A layer that nothing uses, as library networks have."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.pooler = nn.Linear(WIDTH, WIDTH)


class Tied(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.enters = nn.Linear(64, WIDTH, bias=False)
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(self.enters(images.flatten(1))).tanh()).tanh())


class SharedModule(Tied):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.second = self.first


class Buffers(Flat):
    """Buffers of its own: an integer one, a float one, one that is not kept."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("order", torch.randperm(64))
        self.register_buffer("scale", torch.rand(1) + 1)
        self.register_buffer("shift", torch.full((1,), 0.25), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1)[:, self.order] * self.scale + self.shift)


class Norm1d(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Tanh())


class NormTwice(Flat):
    """One norm, called twice."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.norm = nn.BatchNorm1d(WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.hidden(images.flatten(1))).tanh()
        return self.head(self.norm(3 * hidden + 1).tanh())


class Norm2d(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4, affine=False), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(36, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class Norm3d(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv3d(1, 2, (1, 3, 3), 2), nn.BatchNorm3d(2), nn.Tanh(), nn.Flatten())
        self.head = nn.Linear(18, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images[:, :, None]))


class ActivatedNorm(nn.BatchNorm1d):
    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).relu()


class Pretrained(nn.Module):
    """A small CNN as training left it: its norms hold statistics, scales and shifts."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(1, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh()),
            *(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.head = nn.Linear(4, outputs)
        for norm in (self.body[1], self.body[4]):
            for values, low in ((norm.weight, 0.5), (norm.bias, -0.5), (norm.running_mean, -0.5), (norm.running_var, 0.5)):
                nn.init.uniform_(values, low, low + 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images))


class SubclassedNorm(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = ActivatedNorm(WIDTH)


class OtherNorms(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = nn.Sequential(nn.LayerNorm(WIDTH), nn.GroupNorm(2, WIDTH), nn.Tanh())


class Dropout(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))


class DropoutAndNorm(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.AlphaDropout(0.3))


class FunctionalDropout(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.hidden(images.flatten(1)).tanh(), 0.3, self.training))


class Recurrent(nn.Module):
    """torch's own LSTM, over rows of pixels."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.rows = nn.LSTM(8, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.rows(images[:, 0])[0][:, -1])


class Attention(nn.Module):
    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.layer(images[:, 0]).mean(1))


class ViT(nn.Module):
    """The vision transformer of `transformers`, with three layers and dropout."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        from transformers import ViTConfig, ViTModel

        sizes = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 12}
        config = ViTConfig(image_size=8, patch_size=4, num_channels=1, hidden_dropout_prob=0.1, **sizes)
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(8, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.vit(images).last_hidden_state[:, 0])


class WeightNorm(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        parametrizations.weight_norm(self.hidden)


class SpectralNorm(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        parametrizations.spectral_norm(self.hidden)


class SpectralNormInEvaluation(SpectralNorm):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.eval()


class IntegersFirst(Flat):
    """Its first parameter, a frozen one, holds integers."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.codes = nn.Parameter(torch.zeros(3, dtype=torch.int8), requires_grad=False)


class Complex(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("phases", torch.zeros(3, dtype=torch.complex64))


class Sparse(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("graph", torch.eye(3).to_sparse())


class OnMeta(Flat):
    def __init__(self, outputs: int) -> None:
        with torch.device("meta"):
            super().__init__(outputs)


class NotANumber(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        nn.init.constant_(self.hidden.weight, math.nan)


class Exits(Flat):
    def __init__(self, outputs: int) -> None:
        raise SystemExit(3)


class Grows(Flat):
    """Each instance has a parameter that the one before lacks."""

    instances = 0

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_parameter(f"extra{Grows.instances}", nn.Parameter(torch.zeros(1)))
        if Grows.instances % 2 == 0:
            del self._parameters[f"extra{Grows.instances}"]
        Grows.instances += 1


_ONLY: list[nn.Module] = []


def same() -> nn.Module:
    """One module for all calls."""
    if not _ONLY:
        _ONLY.append(Flat(OUTPUTS))
    return _ONLY[0]


class Views(nn.Module):
    """Flattens feature maps as tutorials do, which takes the channels outermost in memory."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2)
        self.head = nn.Linear(36, outputs)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images).tanh()
        return self.head(features.view(features.size(0), -1))


class HeadInTheMiddle(Flat):
    """Makes something of what its head gives."""

    def forward(self, images: Tensor) -> Tensor:
        return 3 * super().forward(images).tanh()


class FunctionalNorm(Flat):
    """Normalises by its batch where model.norm does not see it."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.batch_norm(self.hidden(images.flatten(1)), None, None, training=True))


class Centred(Flat):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1))
        return self.head((hidden - hidden.mean(0)).tanh())


class AlwaysDropout(Flat):
    """Functional dropout without training=self.training."""

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.dropout(self.hidden(images.flatten(1)), 0.3))


class NumpyNoise(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * (1 + np.random.rand() if self.training else 1))


class Stateful(Flat):
    """Keeps something from one call to the next."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images / self.calls)


class ChangesInputs(Flat):
    def forward(self, images: Tensor) -> Tensor:
        images -= 0.5
        return super().forward(images)


class Clamps(Flat):
    """Keeps its weights small in every forward; at the start they are."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.hidden.weight.clamp_(-9, 9)
        return super().forward(images)


class Checkpointed(Flat):
    """Computes its body again in the backward pass, when the parameters are its own again."""

    def __init__(self, outputs: int, reentrant: bool = False) -> None:
        super().__init__(outputs)
        self.reentrant = reentrant
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        return self.head(checkpoint(self.body, self.hidden(images.flatten(1)), use_reentrant=self.reentrant))


class SparseGradient(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.shades = nn.Embedding(4, 64, sparse=True)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1) + self.shades(images.flatten(1)[:, 0].clamp(0, 3).long()))


class Locked(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.lock = threading.Lock()


@dataclass
class NoHash(nn.Module):
    outputs: int

    def __post_init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, self.outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1))


class Hooked(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.register_forward_hook(lambda _module, _given, found: found * 2)


class InPlace(Flat):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1))
        hidden += 1
        return self.head(hidden.tanh_())


class NoParameters(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1)[:, :OUTPUTS]


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(64, 7)

    def forward(self, images: Tensor) -> Tensor:
        return self.top(images.flatten(1))


class Pair(Flat):
    def forward(self, images: Tensor) -> Any:
        return super().forward(images), None


class Silent(Flat):
    def forward(self, images: Tensor) -> Any:
        super().forward(images)


class Classes(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).round().long()


class Detached(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class Lazy(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden = nn.LazyLinear(WIDTH)


class Raises(Flat):
    def __init__(self, outputs: int) -> None:
        raise FileNotFoundError("weights.bin")


class Clock(Flat):
    """Another network each time."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.bias.data.fill_(time.perf_counter() % 0.1)  # of which float32 keeps the nanoseconds


class Slow(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        time.sleep(60)


class Counting(Flat):
    """Changes a buffer of its own while training."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(images)


class Deaf(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(images)


def factory(width: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, outputs))


instance = Flat(OUTPUTS)


def compiled(outputs: int) -> Any:
    return torch.compile(Flat(outputs))


class AnyArguments(Flat):
    def forward(self, *args: Tensor, **kwargs: Any) -> Tensor:
        return super().forward(*args, **kwargs)


class Called(Flat):
    """Does something of its own when it is called."""

    def __call__(self, images: Tensor) -> Any:
        return 2 * super().__call__(images)


class Squared(Flat):
    """An attribute that cannot be pickled."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.activation = lambda hidden: hidden.square().tanh()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.activation(self.hidden(images.flatten(1))))


class Slots(Flat):
    __slots__ = ("scale",)

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scale = 0.5

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(self.scale * images)


class Property(Flat):
    """A property of the name that its layer's parameter has."""

    @property
    def weight(self) -> Tensor:
        return self.hidden.weight

    def forward(self, images: Tensor) -> Tensor:
        return self.head((images.flatten(1) @ self.weight.t()).tanh())


class PartlyUsed(Flat):
    """Of a list of layers, each second one is used."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1))
        for layer in self.layers[::2]:
            hidden = layer(hidden.tanh())
        return self.head(hidden)


class TiedByUse(Flat):
    """Uses a weight a second time, transposed."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        return self.head(self.hidden((hidden @ self.hidden.weight).tanh()))


class Lists(Flat):
    """Parameters in torch's own lists and dictionaries."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.shifts = nn.ParameterList(nn.Parameter(torch.randn(WIDTH)) for _ in range(2))
        self.scales = nn.ParameterDict({"out": nn.Parameter(torch.rand(WIDTH))})

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)) + self.shifts[0]
        return self.head((hidden * self.scales["out"]).tanh() + self.shifts[1])


class View(Flat):
    """Gives a part of a larger tensor, and computes on views of its input."""

    def forward(self, images: Tensor) -> Tensor:
        both = torch.cat([super().forward(images.transpose(2, 3)), images.flatten(1)], 1)
        return both[:, :OUTPUTS]


class ChannelsLast(nn.Module):
    """Keeps its weights and images with the channels innermost."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, 2)
        self.head = nn.Linear(36, outputs)
        self.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        features = self.conv(images.contiguous(memory_format=torch.channels_last)).tanh()
        return self.head(features.permute(0, 2, 3, 1).flatten(1))


class Spectrum(Flat):
    """Complex numbers on the way."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.fft.fft2(images + 0.1).abs().sqrt())


class Doubled(Flat):
    """Computes its body in double precision."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1).double() @ self.hidden.weight.double().t()
        return self.head(hidden.tanh().to(self.head.weight.dtype))


class Rounded(Flat):
    """Rounds on the way to half precision."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1))
        return self.head(hidden.half().to(hidden.dtype).tanh())


class WithoutGradient(Flat):
    """A body under no_grad, which is frozen by that."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = self.hidden(images.flatten(1))
        return self.head(hidden.tanh())


class PartlyDetached(Flat):
    """The gradient reaches one of two paths."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        return self.head(hidden + 0.5 * hidden.detach().square())


class StraightThrough(Flat):
    """Its gradient is not that of what it computes, as intended."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        return self.head(hidden + (hidden.round() - hidden).detach())


class Watched(Flat):
    """Keeps what it computed, for whoever wants to look."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = self.hidden(images.flatten(1)).tanh()
        return self.head(self.seen)


class WatchedDetached(Flat):
    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        self.seen = hidden.detach()
        return self.head(hidden)


class StochasticDepth(Flat):
    """Drops a whole branch in training, by torch's generator."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        if self.training:
            hidden = hidden * (torch.rand(len(hidden), 1, dtype=hidden.dtype) > 0.3)
        return self.head(hidden)


class FixedNoise(Flat):
    """Draws the same numbers in every call."""

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(64, generator=torch.Generator().manual_seed(3), dtype=images.dtype)
        return super().forward(images.flatten(1) + 0.1 * noise)


class InnerCompiled(Flat):
    """Only its body is wrapped by torch.compile, and by the method that compiles in place."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between: Any = torch.compile(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()))
        self.hidden.compile()


class Expanded(Flat):
    """A buffer, and a parameter, that repeat one value in memory."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.shift = nn.Parameter(torch.zeros(1).expand(WIDTH))
        self.register_buffer("places", torch.arange(8.0).expand(8, -1))

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.hidden((images + self.places).flatten(1)) + self.shift).tanh())


class RowByRow(Flat):
    """Decides for each input by its own values."""

    def forward(self, images: Tensor) -> Tensor:
        rows = [2 * image if image.mean() > 0 else image - 1 for image in images]
        return super().forward(torch.stack(rows))


class Asserts(Flat):
    """Refuses inputs that are not finite; skips what no input needs."""

    def forward(self, images: Tensor) -> Tensor:
        assert not images.isnan().any()
        if (images > 100).any():
            images = images.clamp(max=100)
        if images.abs().max() > 1e9:
            raise ValueError("too large")
        return super().forward(images)


class Experts(Flat):
    """Sends each input to one of two layers."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.experts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.hidden(images.flatten(1)).tanh()
        chosen = (images.flatten(1).sum(1) > 0).long()
        found = torch.zeros_like(hidden)
        for number, expert in enumerate(self.experts):
            (rows,) = torch.where(chosen == number)
            if len(rows):
                found = found.index_put((rows,), expert(hidden[rows]))
        return self.head(found)


def traced(outputs: int) -> nn.Module:
    """Rewritten by torch.fx."""
    return torch.fx.symbolic_trace(Flat(outputs))


def parallel(outputs: int) -> nn.Module:
    return nn.DataParallel(Flat(outputs))


class LeaksModes(Flat):
    """Sets what the whole process computes with."""

    def __init__(self, outputs: int) -> None:
        torch.set_default_dtype(torch.float64)
        torch.set_num_threads(3)
        torch.set_grad_enabled(True)
        super().__init__(outputs)


class GradientHook(Flat):
    """Learns its body more slowly."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.weight.register_hook(lambda gradient: 0.1 * gradient)


class InputGradientHook(Flat):
    """Changes the gradient of inputs, which have none."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.hidden.register_full_backward_hook(lambda _module, _given, gradients: (0.1 * gradients[0],))


class PassingGradientHook(Flat):
    """Scales the gradient on its way to the body."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between.register_full_backward_hook(lambda _module, given, _gradients: (0.1 * given[0],))


class BatchBranch(Flat):
    """Decides for all inputs by what they are together."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(2 * images if images.mean() > 0 else images)


class FarBranch(Flat):
    """The same at a value that few batches reach."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / 255 if images.max() > 100 else images)


class FarBranchWithoutPython(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(torch.where((images > 100).any(), images / 255, images))


class BatchScale(Flat):
    """Divides by one number that Python reads."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / (1 + images.abs().max().item()))


class BatchSize(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images if len(images) > 1 else 2 * images)


class Squeezes(nn.Module):
    """Loses a batch of one."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(64, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.flatten(1)).squeeze()


class ChangesInputsHidden(Flat):
    """Changes its inputs where torch does not count."""

    def forward(self, images: Tensor) -> Tensor:
        images.data.mul_(0.5)
        return super().forward(images)


class ClampsInputsHidden(Flat):
    """The same where the tried values stay."""

    def forward(self, images: Tensor) -> Tensor:
        images.data.clamp_(-9, 9)
        return super().forward(images)


class ChangesInputsByNumpy(Flat):
    def forward(self, images: Tensor) -> Tensor:
        images.numpy()[...] *= 0.5
        return super().forward(images)


class ChangesInputsInEvaluation(Flat):
    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            images.mul_(0.5)
        return super().forward(images)


class CountsInEvaluation(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            self.calls += 1
        return super().forward(images)


class MovingAverage(Flat):
    """Of its inputs, which are zero at first."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.register_buffer("average", torch.zeros(64))

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            self.average.mul_(0.9).add_(0.1 * images.flatten(1).mean(0).detach())
        return super().forward(images)


class PlainList(Flat):
    """Parameters that torch does not see."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scales = [nn.Parameter(torch.ones(WIDTH))]

    def forward(self, images: Tensor) -> Tensor:
        return self.head((self.hidden(images.flatten(1)) * self.scales[0]).tanh())


class ClosedForward(Flat):
    """Its forward holds the network that it was made in."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.forward = lambda images: self.head(self.hidden(images.flatten(1)).tanh())


class ClosedHook(Flat):
    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scale = nn.Parameter(torch.ones(WIDTH))
        self.hidden.register_forward_hook(lambda _module, _given, found: found * self.scale)


class CopiesToItself(Flat):
    def __deepcopy__(self, _memo: Any) -> "CopiesToItself":
        return self


class SharedMemory(Tied):
    """One weight under two names, of which one is not trained."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.second.weight = nn.Parameter(self.first.weight.data, requires_grad=False)


def scripted(outputs: int) -> nn.Module:
    return torch.jit.script(Flat(outputs))


def quantised(outputs: int) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(Flat(outputs), {nn.Linear})


class Half(Flat):
    """Keeps its weights in half precision."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.half()

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.half()).float()


class OnCuda(Flat):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images + torch.ones(1, device="cuda:7"))


class PlainTensor(Flat):
    """A constant that does not follow the network to its device."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scale = torch.linspace(0, 1, 64)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1) * self.scale.to(images.dtype))


class FollowsInputs(Flat):
    """A constant made where the inputs are."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1) * torch.linspace(0, 1, 64, device=images.device, dtype=images.dtype))


class KeepsEvaluation(Flat):
    """Its train() leaves the body as it is."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.between = nn.Sequential(nn.Tanh(), nn.Dropout(0.3))

    def train(self, mode: bool = True) -> "KeepsEvaluation":
        super().train(mode)
        self.between.eval()
        return self


class KeepsNorms(Norm1d):
    """Its train() leaves its norms' statistics as they are."""

    def train(self, mode: bool = True) -> "KeepsNorms":
        super().train(mode)
        self.between[0].eval()
        return self


class GradientsOff(Flat):
    def forward(self, images: Tensor) -> Tensor:
        torch.set_grad_enabled(False)
        return super().forward(images)


class KeywordOnly(Flat):
    def forward(self, *, images: Tensor) -> Tensor:
        return super().forward(images)


class OwnGenerator(Flat):
    """Draws from a generator that it keeps."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.random = torch.Generator().manual_seed(0)

    def forward(self, images: Tensor) -> Tensor:
        noise = torch.randn(64, generator=self.random) if self.training else 0
        return super().forward(images.flatten(1) + noise)


class ExtraState(Flat):
    """Keeps something that is not a tensor in its state."""

    def get_extra_state(self) -> dict[str, int]:
        return {"version": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        assert state["version"] == 3


class Scalar(Flat):
    """A parameter without dimensions, one without values, and one with a name in another script."""

    def __init__(self, outputs: int) -> None:
        super().__init__(outputs)
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.nothing = nn.Parameter(torch.zeros(0))
        self.register_parameter("größe", nn.Parameter(torch.ones(WIDTH)))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.scale * self.hidden(images.flatten(1)).tanh() * self.größe + self.nothing.sum())


class GetsParameter(Flat):
    """Asks for a parameter by a function that knows no other tensors."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.get_parameter("head.bias")


class ZerosOnly(Flat):
    def forward(self, images: Tensor) -> Tensor:
        assert not images.any(), "only zeros"
        return super().forward(images)


class Autocast(Flat):
    """Computes its body in bfloat16."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = self.hidden(images.flatten(1))
        return self.head(hidden.to(images.dtype).tanh())


class Partial(Flat):
    def __init__(self, outputs: int, width: int) -> None:
        super().__init__(outputs)
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, outputs)


partial = functools.partial(Partial, width=4)
