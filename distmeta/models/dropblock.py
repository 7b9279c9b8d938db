"""DropBlock (Ghiasi et al. 2018, arXiv:1810.12890) whose masks are a function of a seed and indices, so that a step can be repeated."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad

from distmeta.errors import ConfigError
from distmeta.seeds import torch_seed


class DropBlock(nn.Module):
    """Sets squares of `side` pixels to zero, independently in every channel of every image, and scales the rest up (algorithm 1).

    On average a share of `rate` is dropped, or somewhat less if squares overlap. Squares are inside the image; in an image smaller than
    `side` they have the image's size. `side` 1 is dropout. Active in training mode with `noise` set, as `set_noise` does. Shapes: (N, C, H,
    W).
    """

    def __init__(self, rate: float, side: int) -> None:
        super().__init__()
        self.rate = rate
        self.side = side
        self.noise: tuple[int, ...] | None = None

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and self.rate and self.noise is not None):
            return images
        if torch._C._functorch.is_batchedtensor(images):  # torch has no public function for this
            raise ConfigError(
                "model.drop_rate draws one mask for each task, which tasks batched by vmap cannot have",
                "compute tasks one after another, or set model.drop_rate=0",
            )
        kept = self.mask(images.shape).to(images)
        return images * kept * (kept.numel() / kept.sum().clamp_min(1))

    def mask(self, shape: torch.Size) -> Tensor:
        """1 where a feature is kept, 0 where dropped: (N, C, H, W) on the CPU, a function of `noise`, rate, side and shape alone."""
        assert self.noise is not None
        height, width = (min(self.side, size) for size in shape[2:])
        places = (shape[2] - height + 1) * (shape[3] - width + 1)
        seed, *indices = self.noise
        random = torch.Generator().manual_seed(torch_seed(seed, "dropblock", *indices))
        corners = torch.rand(*shape[:2], shape[2] - height + 1, shape[3] - width + 1, generator=random)
        # The paper's γ: each place is a square's corner so often that rate·H·W features would be dropped if none overlapped.
        corners = (corners < self.rate * shape[2] * shape[3] / (height * width * places)).float()
        return 1 - max_pool2d(pad(corners, (width - 1, width - 1, height - 1, height - 1)), (height, width), stride=1)


def set_noise(model: nn.Module, seed: int | None, *indices: int) -> None:
    """Let every DropBlock layer of `model` draw its masks from (seed, its number in the model, *indices). With None the layers are
    inactive.
    """
    layers = [module for module in model.modules() if isinstance(module, DropBlock)]
    for number, layer in enumerate(layers):
        layer.noise = None if seed is None else (seed, number, *indices)
