"""The closed-form batch norm is torch's own to second order, and its second derivative is right."""

import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.nn.functional import batch_norm

from distmeta.models.norm import BatchNorm2d


def closed_form(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.func.functional_call(BatchNorm2d(3), {"weight": weight, "bias": bias}, (x,))


def inputs(layout: torch.memory_format) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, 3, dtype=torch.float64)
    return tuple(t.clone().requires_grad_() for t in (x, weight, bias))


def test_first_and_second_derivative_against_finite_differences() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        assert gradcheck(closed_form, inputs(layout))
        assert gradgradcheck(closed_form, inputs(layout))


def test_second_derivative_equals_torchs_own() -> None:
    def hessian_vector(norm: object) -> tuple[torch.Tensor, ...]:
        x, weight, bias = inputs(torch.channels_last)
        y = norm(x, weight, bias)  # type: ignore[operator]
        gradients = torch.autograd.grad((y**3).sum(), (x, weight, bias), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in gradients), (x, weight, bias))  # type: ignore[return-value]

    ours = hessian_vector(closed_form)
    torchs = hessian_vector(lambda x, w, b: batch_norm(x, None, None, w, b, training=True))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
