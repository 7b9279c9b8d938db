"""The multilayer perceptron: MAML's network for sinusoids (arXiv:1703.03400, section 5.1) and the toy nets of papers on its theory."""

from itertools import pairwise
from math import prod
from typing import Literal

from torch import Tensor, nn

from distmeta.bounds import Positive
from distmeta.models.layers import XavierLinear
from distmeta.models.norm import has_bias, make_norm

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}

_POLICY_HEAD = 0.1


class MLP(nn.Module):
    """Hidden layers of `widths`, each linear, norm and activation, then a linear head; images are flattened.

    The default is MAML's for sinusoids, which has no norm. Without hidden layers (`widths: []`) it is a linear model; with
    `output_activation: sigmoid` after the head it is the linear-sigmoid network. Linear layers start as torch draws them or, with `weights:
    policy`, uniform in ±√(6 / (inputs + outputs)) with biases of 0 (Glorot & Bengio 2010, equation 16) and a head a tenth of that, so that
    initial actions hardly depend on observations (Andrychowicz et al. 2021, arXiv:2006.05990, section 3.2). Input (B, D) or (B, C, H, W),
    features (B, widths[-1]), output (B, outputs).
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        outputs: int,
        norm: str = "batch",
        widths: tuple[Positive, ...] = (40, 40),
        activation: Literal["relu", "tanh", "sigmoid"] = "relu",
        output_activation: Literal["none", "sigmoid"] = "none",
        weights: Literal["torch", "policy"] = "torch",
    ) -> None:
        super().__init__()
        sizes = [prod(input_shape), *widths]
        # A layer's initialisation is in reset_parameters, because a run draws the weights by calling it.
        hidden, last = (XavierLinear, _PolicyHead) if weights == "policy" else (nn.Linear, nn.Linear)
        self.layers = nn.Sequential(*(HiddenLayer(ins, outs, norm, activation, linear=hidden) for ins, outs in pairwise(sizes)))
        linear = last(sizes[-1], outputs)
        # In the head, so that it also applies if features and head are computed separately.
        self.head = linear if output_activation == "none" else nn.Sequential(linear, ACTIVATIONS[output_activation]())

    def features(self, inputs: Tensor) -> Tensor:
        return self.layers(inputs.flatten(1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.features(inputs))


class _PolicyHead(XavierLinear):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        self.weight.data.mul_(_POLICY_HEAD)


class HiddenLayer(nn.Module):
    def __init__(self, inputs: int, outputs: int, norm: str, activation: str, linear: type[nn.Linear]) -> None:
        super().__init__()
        self.linear = linear(inputs, outputs, bias=has_bias(norm))
        self.norm = make_norm(norm, outputs)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, inputs: Tensor) -> Tensor:
        # A vector is an image of one pixel.
        return self.activation(self.norm(self.linear(inputs)[:, :, None, None]).flatten(1))
