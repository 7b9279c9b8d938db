"""ResNet-12 of the few-shot literature: TADAM (arXiv:1805.10123), in MetaOptNet's widths and dropout (arXiv:1904.03758, section 4.1)."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, max_pool2d

from distmeta.bounds import Positive
from distmeta.models.dropblock import DropBlock
from distmeta.models.layers import KaimingConv2d, image_shape
from distmeta.models.norm import has_bias, make_norm

SLOPE = 0.1


class ResNet12(nn.Module):
    """Four residual blocks of three 3×3 convolutions, each halving the image (rounding down), global average pooling, a linear head.

    `widths` are the blocks' channels: 64-160-320-640 (MetaOptNet) or 64-128-256-512 (TADAM). `drop_rate` is the share of features that
    training drops after each block: single features after the first two blocks, squares of side `drop_block` after the others, as
    MetaOptNet does, at a constant rate; it needs `distmeta.models.dropblock.set_noise`. Input (B, C, H, W), features (B, widths[3]), output
    (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        norm: str = "batch",
        widths: tuple[Positive, Positive, Positive, Positive] = (64, 160, 320, 640),
        drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        drop_block: Positive = 5,
    ) -> None:
        super().__init__()
        channels, _, _ = image_shape("resnet12", input_shape, halvings=4)
        sides = [1, 1, drop_block, drop_block]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(ResidualBlock(ins, outs, norm), DropBlock(drop_rate, side))
                for (ins, outs), side in zip(pairwise([channels, *widths]), sides, strict=True)
            )
        )
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, images: Tensor) -> Tensor:
        return self.blocks(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class ResidualBlock(nn.Module):
    """max-pool(leaky ReLU(convolutions(x) + 1×1 convolution(x))), every convolution followed by a norm. (B, I, H, W) → (B, O, H/2, W/2)."""

    def __init__(self, inputs: int, outputs: int, norm: str) -> None:
        super().__init__()
        bias = has_bias(norm)

        def convolution(ins: int, side: int) -> nn.Sequential:
            return nn.Sequential(KaimingConv2d(ins, outputs, side, padding=side // 2, bias=bias), make_norm(norm, outputs))

        self.first, self.second, self.third = convolution(inputs, 3), convolution(outputs, 3), convolution(outputs, 3)
        self.shortcut = convolution(inputs, 1)

    def forward(self, images: Tensor) -> Tensor:
        hidden = leaky_relu(self.first(images), SLOPE)
        hidden = leaky_relu(self.second(hidden), SLOPE)
        # Pooling first is the same function (leaky ReLU is monotone) on a quarter of the elements.
        return leaky_relu(max_pool2d(self.third(hidden) + self.shortcut(images), 2), SLOPE)
