"""A small LSTM over sequences of vectors in plain operations, so that it has a second derivative and torch.vmap can batch tasks."""

import math

from torch import Tensor, nn

from distmeta.bounds import Positive
from distmeta.errors import ConfigError


def sequence_shape(name: str, input_shape: tuple[int, ...]) -> tuple[int, int]:
    """(length, width) of an input that is a sequence of vectors. Raises ConfigError for any other shape."""
    if len(input_shape) != 2:
        raise ConfigError(
            f"model.name={name} reads sequences (length, width), not shape {input_shape}",
            "choose a dataset of sequences, or another network",
        )
    length, width = input_shape
    return length, width


class LSTM(nn.Module):
    """One layer of long short-term memory (Hochreiter & Schmidhuber 1997; gates as in torch.nn.LSTM), then a linear head.

    torch.nn.LSTM calls a fused kernel that neither torch.vmap nor a second derivative can pass.
    Input (B, L, D), features (B, width) after the last element, output (B, outputs). Any length L is read.
    """

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: Positive = 40) -> None:
        super().__init__()
        _, inputs = sequence_shape("lstm", input_shape)
        self.cell = Cell(inputs, width)
        self.head = nn.Linear(width, outputs)

    def features(self, sequences: Tensor) -> Tensor:
        return self.cell(sequences)

    def forward(self, sequences: Tensor) -> Tensor:
        return self.head(self.features(sequences))


class Cell(nn.Module):
    """i, f, g, o = x W + h U + b;  c ← σ(f) c + σ(i) tanh(g);  h ← σ(o) tanh(c). Input (B, L, D), output the last h (B, width)."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.from_input = nn.Linear(inputs, 4 * width)
        self.from_state = nn.Linear(width, 4 * width, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in ±1/√width, as torch.nn.LSTM draws them."""
        bound = 1 / math.sqrt(self.width)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, sequences: Tensor) -> Tensor:
        state = memory = sequences.new_zeros(len(sequences), self.width)
        for given in self.from_input(sequences).unbind(1):
            enters, stays, new, shows = (given + self.from_state(state)).chunk(4, dim=1)
            memory = stays.sigmoid() * memory + enters.sigmoid() * new.tanh()
            state = shows.sigmoid() * memory.tanh()
        return state
