"""The closed-form batch norm is torch's own to second order, alone and with tasks batched by vmap, and no norm says more than it knows."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.functional import batch_norm

from distmeta.errors import ConfigError
from distmeta.models.norm import NORMS, BatchNorm2d, RunningBatchNorm2d, has_bias, make_norm

TASKS = 2
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def closed_form(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional_call(BatchNorm2d(3), {"weight": weight, "bias": bias}, (x,))


def inputs(layout: torch.memory_format = torch.contiguous_format, height: int = 5, width: int = 6) -> tuple[Tensor, ...]:
    torch.manual_seed(0)
    x = torch.randn(4, 3, height, width, dtype=torch.float64).contiguous(memory_format=layout)
    weight, bias = torch.randn(2, 3, dtype=torch.float64)
    return tuple(t.clone().requires_grad_() for t in (x, weight, bias))


def inputs_of_tasks(in_dims: tuple[int | None, ...]) -> tuple[Tensor, ...]:
    """x, weight and bias with the task dimension at in_dims, or without one."""
    torch.manual_seed(1)
    shapes = ((4, 3, 2, 3), (3,), (3,))
    stacked = (
        torch.randn(TASKS if dim is not None else 1, *shape, dtype=torch.float64) for shape, dim in zip(shapes, in_dims, strict=True)
    )
    return tuple((x.movedim(0, dim) if dim is not None else x[0]).clone().requires_grad_() for x, dim in zip(stacked, in_dims, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_first_and_second_derivative_against_finite_differences(layout: torch.memory_format) -> None:
    assert gradcheck(closed_form, inputs(layout))
    assert gradgradcheck(closed_form, inputs(layout))


def test_vectors_are_images_of_one_pixel() -> None:
    assert gradcheck(closed_form, inputs(height=1, width=1))
    assert gradgradcheck(closed_form, inputs(height=1, width=1))
    x, weight, bias = inputs(height=1, width=1)
    torch.testing.assert_close(closed_form(x, weight, bias)[:, :, 0, 0], batch_norm(x[:, :, 0, 0], None, None, weight, bias, training=True))


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (1, 0, 1), (0, None, None), (None, 0, 0), (3, None, 0)])
def test_tasks_batched_by_vmap(in_dims: tuple[int | None, ...]) -> None:
    """Equal to a loop over tasks, and right to second order against finite differences, whatever is mapped and where."""
    batched = torch.vmap(closed_form, in_dims)
    tensors = inputs_of_tasks(in_dims)
    loop = [
        closed_form(*(t if dim is None else t.select(dim, task) for t, dim in zip(tensors, in_dims, strict=True))) for task in range(TASKS)
    ]
    torch.testing.assert_close(batched(*tensors), torch.stack(loop), rtol=0, atol=1e-12)
    assert gradcheck(batched, tensors)
    assert gradgradcheck(batched, tensors)


def test_second_derivative_equals_torchs_own() -> None:
    def hessian_vector(norm: object) -> tuple[Tensor, ...]:
        x, weight, bias = inputs(torch.channels_last)
        y = norm(x, weight, bias)  # type: ignore[operator]
        gradients = torch.autograd.grad((y**3).sum(), (x, weight, bias), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in gradients), (x, weight, bias))  # type: ignore[return-value]

    ours = hessian_vector(closed_form)
    torchs = hessian_vector(lambda x, w, b: batch_norm(x, None, None, w, b, training=True))
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mapped", [False, True])
def test_a_third_derivative_is_refused(mapped: bool) -> None:
    """It would be silently wrong: the second derivative takes the saved statistics for constants."""
    x, weight, bias = inputs_of_tasks((0, 0, 0)) if mapped else inputs()
    y = (torch.vmap(closed_form) if mapped else closed_form)(x, weight, bias)
    (first,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first**3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad((second**3).sum(), x)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4), st.floats(-3, 3), st.sampled_from([0.0, 1e-3, 1.0, 30.0]), st.booleans())
def test_running_tells_the_statistics_it_used(n: int, c: int, side: int, mean: float, scale: float, mapped: bool) -> None:
    """The mean and the biased variance are those of the images, tasks batched or not, and no forward changes a buffer."""
    images = mean + scale * torch.randn(TASKS, n, c, side, side, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
    norm = RunningBatchNorm2d(c).double()
    before = {name: value.clone() for name, value in norm.state_dict().items()}

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        norm.seen = []
        norm(x)
        return norm.seen[0].mean, norm.seen[0].var

    found = torch.vmap(statistics)(images) if mapped else statistics(images[0])
    images = images if mapped else images[0]
    assert not any(value.requires_grad for value in found)
    torch.testing.assert_close(found[0], images.mean((-4, -2, -1)), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], images.var((-4, -2, -1), correction=0), rtol=1e-9, atol=1e-12)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])


def test_running_and_batch_are_one_norm_in_training() -> None:
    x, weight, bias = inputs()
    running = functional_call(RunningBatchNorm2d(3).double(), {"weight": weight, "bias": bias}, (x,))
    assert torch.equal(running, closed_form(x, weight, bias))


def test_running_buffers_are_part_of_the_state_and_batch_ones_are_not() -> None:
    assert {"running_mean", "running_var"} <= set(RunningBatchNorm2d(3).state_dict())
    assert set(BatchNorm2d(3).state_dict()) == {"weight", "bias"}


@pytest.mark.parametrize("name", ["batch", "running"])
def test_evaluation_uses_the_buffers_alone(name: str) -> None:
    """With the training images' own statistics in the buffers, evaluation repeats training, image by image."""
    x = inputs()[0].detach()
    norm = make_norm(name, 3).double()
    together = norm(x)
    norm.running_mean.copy_(x.mean((0, 2, 3)))
    norm.running_var.copy_(x.var((0, 2, 3), correction=0))
    norm.eval()
    torch.testing.assert_close(torch.cat([norm(image[None]) for image in x]), together)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["batch", "running"])
def test_a_single_image_keeps_its_memory_order(name: str, layout: torch.memory_format) -> None:
    """torch tells it by the strides, that of the image included. `predict` gives single images, whose pooling was 14 times slower."""
    image = torch.randn(1, 8, 6, 6).contiguous(memory_format=layout)
    norm = make_norm(name, 8)
    assert norm(image).stride() == norm.eval()(image).stride() == image.stride()


@pytest.mark.parametrize("name", ["batch", "running"])
def test_evaluation_with_tasks_batched_by_vmap(name: str) -> None:
    x, mean, weight = (value.detach() for value in inputs_of_tasks((0, 0, 0)))
    norm = make_norm(name, 3).double().eval()
    state = {"weight": weight, "bias": mean + 1, "running_mean": mean, "running_var": weight**2}
    batched = torch.vmap(lambda values, images: functional_call(norm, values, (images,)))(state, x)
    loop = [functional_call(norm, {key: value[task] for key, value in state.items()}, (x[task],)) for task in range(TASKS)]
    torch.testing.assert_close(batched, torch.stack(loop), rtol=0, atol=1e-12)


@given(st.integers(1, 700))
def test_groups_are_whole_and_no_smaller_than_16_channels(channels: int) -> None:
    norm = make_norm("group", channels)
    assert isinstance(norm, nn.GroupNorm)
    assert channels % norm.num_groups == 0
    assert norm.num_groups == 1 or channels // norm.num_groups >= 16
    assert make_norm("group", 16 * channels).num_groups == channels


@pytest.mark.parametrize("name", ["batch", "running", "group"])
def test_a_norm_does_not_see_the_scale_of_an_image(name: str) -> None:
    x = 100 * inputs()[0].detach()
    norm = make_norm(name, 3).double()
    torch.testing.assert_close(norm(7 * x), norm(x), rtol=1e-6, atol=1e-6)


def test_none_is_the_identity_and_alone_needs_a_bias() -> None:
    x = inputs()[0]
    assert make_norm("none", 3)(x) is x
    assert [name for name in NORMS if has_bias(name)] == ["none"]


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.norm='layer' is not a norm\nchoose one of batch, running, group, none"):
        make_norm("layer", 3)
