"""Conv-4: the four-block network of Vinyals et al. 2016 (arXiv:1606.04080) and of MAML (arXiv:1703.03400, section 5.2)."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from distmeta.models.norm import BatchNorm2d


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, batch norm and ReLU, each halving the image, then a linear head.

    `downsample` is how a block halves it: "max-pool" 2×2 (as MAML does for miniImageNet) or "stride" 2 in the convolution (for Omniglot).
    Input (B, channels, image_size, image_size), output logits (B, way).
    """

    def __init__(
        self, way: int, channels: int, image_size: int, filters: int = 64, downsample: Literal["max-pool", "stride"] = "max-pool"
    ) -> None:
        super().__init__()
        block = StridedBlock if downsample == "stride" else PooledBlock
        widths = [channels, filters, filters, filters, filters]
        self.blocks = nn.Sequential(*(block(inputs, outputs) for inputs, outputs in pairwise(widths)))
        size = image_size
        for _ in range(4):
            size = (size + 1) // 2 if downsample == "stride" else size // 2
        self.head = nn.Linear(filters * size**2, way)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.blocks(images).flatten(1))


class PooledBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # No bias: the batch norm behind it would subtract it again.
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        self.norm = BatchNorm2d(outputs)
        self.pool = nn.MaxPool2d(2)

    def forward(self, images: Tensor) -> Tensor:
        # Pooling first is the same function (ReLU is monotone) on a quarter of the elements.
        return self.pool(self.norm(self.conv(images))).relu()


class StridedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = BatchNorm2d(outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu()
