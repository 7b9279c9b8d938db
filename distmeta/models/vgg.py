"""VGG: the convolutional part of Simonyan & Zisserman 2015 (arXiv:1409.1556, table 1), with norms, for few-shot heads."""

from itertools import pairwise

from torch import Tensor, nn

from distmeta.errors import ConfigError
from distmeta.models.layers import KaimingConv2d, Widths, image_shape
from distmeta.models.norm import has_bias, make_norm


class VGG(nn.Module):
    """Stages of 3×3 convolutions, norm and ReLU, each stage ending in a 2×2 max-pool, then global average pooling and a linear head.

    `convolutions` is the number of convolutions in each stage, `widths` their channels: [2, 2, 2, 2, 2] is VGG-13 (configuration B),
    [1, 1, 2, 2, 2] VGG-11, [2, 2, 3, 3, 3] VGG-16. The paper flattens 7×7 pixels into three hidden layers; global average pooling
    keeps the head small and independent of the image's size.
    Input (B, C, H, W), features (B, widths[-1]), output (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        norm: str = "batch",
        convolutions: Widths = (2, 2, 2, 2, 2),
        widths: Widths = (64, 128, 256, 512, 512),
    ) -> None:
        super().__init__()
        if len(convolutions) != len(widths):
            raise ConfigError(
                f"model.convolutions={convolutions} has {len(convolutions)} stages and model.widths={widths} has {len(widths)}",
                "give both one number for each stage",
            )
        channels, _, _ = image_shape("vgg", input_shape, halvings=len(widths))
        stages = zip(pairwise([channels, *widths]), convolutions, strict=True)
        self.stages = nn.Sequential(*(_stage(ins, outs, count, norm) for (ins, outs), count in stages))
        self.head = nn.Linear(widths[-1], outputs)

    def features(self, images: Tensor) -> Tensor:
        return self.stages(images).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


def _stage(inputs: int, outputs: int, convolutions: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for ins, outs in pairwise([inputs] + [outputs] * convolutions):
        layers += [KaimingConv2d(ins, outs, kernel_size=3, padding=1, bias=has_bias(norm)), make_norm(norm, outs), nn.ReLU()]
    # Pooling before the last ReLU is the same function (ReLU is monotone) on a quarter of the elements.
    layers.insert(-1, nn.MaxPool2d(2))
    return nn.Sequential(*layers)
