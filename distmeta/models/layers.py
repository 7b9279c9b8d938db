"""Parts of several backbones: types of arguments, convolutions with Kaiming's and Glorot's initialisation, and the final size of an
image.
"""

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from distmeta.bounds import Positive
from distmeta.errors import ConfigError
from distmeta.models import native
from distmeta.models.native.blocks import convolved

Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]


class KaimingConv2d(nn.Conv2d):
    """A convolution whose weights are drawn from N(0, 2 / fan_out), fan_out counting its outputs times kernel pixels; the initial bias is
    zero. He et al. 2015 (arXiv:1502.01852), equation 14, with ReLU's gain for leaky ReLUs as well, as the few-shot ResNet-12s do.
    """

    library: native.Library | None = None
    """Native kernels for this layer: see `distmeta.models.native.use`."""

    def fits(self) -> bool:
        """Whether native kernels can compute this layer."""
        return native.convolution_fits(self)

    def forward(self, images: Tensor) -> Tensor:
        if self.library is not None and native.convolves(self.library, images, self):
            return convolved(images, self.weight, self.library)
        return super().forward(images)

    def reset_parameters(self) -> None:
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class XavierConv2d(nn.Conv2d):
    """A convolution whose weights are uniform between ±√(6 / (fan_in + fan_out)); the initial bias is zero. Glorot & Bengio 2010
    (AISTATS), equation 16: the default of TensorFlow 1, in which many few-shot papers were written.
    """

    def reset_parameters(self) -> None:
        _xavier(self)


class XavierLinear(nn.Linear):
    """A linear layer drawn by the same rule."""

    def reset_parameters(self) -> None:
        _xavier(self)


def _xavier(layer: nn.Conv2d | nn.Linear) -> None:
    nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def image_shape(name: str, input_shape: tuple[int, ...], halvings: int) -> tuple[int, int, int]:
    """(C, H, W) from a backbone's input_shape. Raises ConfigError unless it is an image that can be halved `halvings` times, rounding
    down.
    """
    if len(input_shape) != 3:
        raise ConfigError(f"model.name={name} reads images (C, H, W), not shape {input_shape}", "choose model.name=mlp for vectors")
    channels, height, width = input_shape
    if min(height, width) < 2**halvings:
        raise ConfigError(
            f"model.name={name} halves images {halvings} times; {height}×{width} pixels are fewer than {2**halvings}×{2**halvings}",
            f"set data.image_size to {2**halvings} or more, or choose another backbone",
        )
    return channels, height, width
