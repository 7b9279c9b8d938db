"""Conv-4: the four-block network of Vinyals et al. 2016 (arXiv:1606.04080) and of MAML (arXiv:1703.03400, section 5.2)."""

from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from distmeta.bounds import Positive, PositiveFloat
from distmeta.models import native
from distmeta.models.layers import XavierConv2d, XavierLinear, image_shape
from distmeta.models.norm import has_bias, make_norm


class Conv4(nn.Module):
    """Four blocks of 3×3 convolution, norm and ReLU, each halving the image, then a linear head.

    `downsample` is the way a block halves it: "max-pool" 2×2 (as MAML does for miniImageNet) or "stride" 2 in the convolution (for
    Omniglot, rounding up). `filters` are 64 in most papers, 32 in MAML for miniImageNet, 48 in some. `pooling`: the last block's h×w pixels
    are the features unchanged ("flatten") or averaged ("mean", as MAML's code does for Omniglot). `init`: distribution of initial weights,
    "torch" (torch's default) or "xavier" (TensorFlow's default). `norm_epsilon` is added to the norms' variances. Input (B, C, H, W),
    features (B, filters·h·w) or, averaged, (B, filters), output (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        norm: str = "batch",
        filters: Positive = 64,
        downsample: Literal["max-pool", "stride"] = "max-pool",
        pooling: Literal["flatten", "mean"] = "flatten",
        init: Literal["torch", "xavier"] = "torch",
        norm_epsilon: PositiveFloat = 1e-5,
    ) -> None:
        super().__init__()
        strided = downsample == "stride"
        channels, height, width = image_shape("conv4", input_shape, halvings=0 if strided else 4)
        block = StridedBlock if strided else PooledBlock
        widths = [channels, filters, filters, filters, filters]
        conv, linear = (XavierConv2d, XavierLinear) if init == "xavier" else (nn.Conv2d, nn.Linear)
        self.pooling = pooling
        self.blocks = nn.Sequential(*(block(ins, outs, norm, conv, norm_epsilon) for ins, outs in pairwise(widths)))
        for _ in range(4):
            height, width = ((height + strided) // 2, (width + strided) // 2)
        self.head = linear(filters if pooling == "mean" else filters * height * width, outputs)

    def features(self, images: Tensor) -> Tensor:
        last = self.blocks(images)
        return last.mean((2, 3)) if self.pooling == "mean" else last.flatten(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class PooledBlock(nn.Module):
    library: native.Library | None = None
    """Native kernels for this block: see `distmeta.models.native.use`."""

    def __init__(self, inputs: int, outputs: int, norm: str, conv: type[nn.Conv2d] = nn.Conv2d, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel_size=3, padding=1, bias=has_bias(norm))
        self.norm = make_norm(norm, outputs, epsilon)
        self.pool = nn.MaxPool2d(2)

    def fits(self) -> bool:
        """Whether native kernels can compute this block."""
        return native.layers_fit(self.conv, self.norm, self.pool)

    def forward(self, images: Tensor) -> Tensor:
        if self.library is not None and native.applies(self.library, images, self.conv, self.norm, self.pool):
            return native.compute(self.library, images, self.conv, self.norm)
        # Pooling first is the same function (ReLU is monotone) on a quarter of the elements.
        return self.pool(self.norm(self.conv(images))).relu()


class StridedBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str, conv: type[nn.Conv2d] = nn.Conv2d, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.conv = conv(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=has_bias(norm))
        self.norm = make_norm(norm, outputs, epsilon)

    def forward(self, images: Tensor) -> Tensor:
        return self.norm(self.conv(images)).relu()
