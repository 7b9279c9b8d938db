"""A small transformer encoder over sequences of vectors, with attention in plain operations, so that it can be differentiated twice on
every device.
"""

import math

import torch
from torch import Tensor, nn

from distmeta.bounds import Positive
from distmeta.errors import ConfigError
from distmeta.models.lstm import sequence_shape

_LONGEST_WAVE = 1000.0


class Transformer(nn.Module):
    """`depth` pre-norm blocks of attention and a two-layer perceptron (Vaswani et al. 2017, arXiv:1706.03762; pre-norm as in 2002.04745).

    Features are those of the last element: the continuation of a sequence, or the answer to the query after a support set. `positions` adds
    the sinusoids of section 3.5; without them the order of earlier elements does not matter. Any length L is read. Input (B, L, D),
    features (B, width), output (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        width: Positive = 32,
        depth: Positive = 2,
        heads: Positive = 4,
        positions: bool = True,
        expansion: Positive = 2,
    ) -> None:
        super().__init__()
        _, inputs = sequence_shape("transformer", input_shape)
        if width % math.lcm(heads, 2):
            raise ConfigError(
                f"model.width={width} must be even and a multiple of model.heads={heads}", f"set model.width={math.lcm(heads, 2) * 4}"
            )
        self.positions = positions
        self.embedding = nn.Linear(inputs, width)
        self.blocks = nn.Sequential(*(Block(width, heads, expansion) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def features(self, sequences: Tensor) -> Tensor:
        embedded = self.embedding(sequences)
        if self.positions:
            embedded = embedded + sinusoids(embedded.shape[1], embedded)
        return self.norm(self.blocks(embedded)[:, -1])

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.features(sequences))


class Block(nn.Module):
    def __init__(self, width: int, heads: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.to_attention = nn.Linear(width, 3 * width)
        self.from_attention = nn.Linear(width, width)
        self.perceptron = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, expansion * width), nn.GELU(), nn.Linear(expansion * width, width)
        )

    def forward(self, embedded: Tensor) -> Tensor:
        embedded = embedded + self.attend(self.attention_norm(embedded))
        return embedded + self.perceptron(embedded)

    def attend(self, embedded: Tensor) -> Tensor:
        """softmax(Q Kᵀ / √d) V for each head (equation 1): (B, L, width) → (B, L, width)."""
        queries, keys, values = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.to_attention(embedded).chunk(3, 2))
        scores = queries @ keys.transpose(2, 3) / math.sqrt(queries.shape[3])
        return self.from_attention((scores.softmax(3) @ values).transpose(1, 2).flatten(2))


def sinusoids(length: int, like: Tensor) -> Tensor:
    """The fixed position code (length, width) of Vaswani et al. 2017, section 3.5, in the type and on the device of `like` (…, width)."""
    width = like.shape[-1]
    positions = torch.arange(length, device=like.device, dtype=like.dtype)[:, None]
    frequencies = _LONGEST_WAVE ** -(torch.arange(0, width, 2, device=like.device, dtype=like.dtype) / width)
    return torch.cat([(positions * frequencies).sin(), (positions * frequencies).cos()], 1)
