"""Networks as users write them: each case of the contract in docs/extending.md, alone and combined."""

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
