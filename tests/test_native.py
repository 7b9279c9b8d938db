"""The native blocks: the same functions as torch's layers to second order, in float64 to rounding, in float32 as exact as torch's."""

import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from distmeta.data.episodes import EpisodeBatch, LabelledBatch
from distmeta.learners import LEARNERS, build_learner, settings_of
from distmeta.learners.forward import support_statistics
from distmeta.learners.learner import Batch, Learner
from distmeta.learners.memory import predicted_bytes
from distmeta.models import build_model, native
from distmeta.models.conv4 import PooledBlock
from distmeta.models.convert import batch_norms
from distmeta.models.layers import KaimingConv2d
from distmeta.models.native.library import KernelsUnavailable, Library, Precision, library
from distmeta.models.norm import RunningBatchNorm2d

CLOSE = 1e-10
WAY = 3


def available(precision: Precision = "float64") -> Library:
    try:
        return library(precision)
    except KernelsUnavailable as error:
        pytest.skip(error.message)


def block(inputs: int, filters: int, norm: str = "batch", dtype: torch.dtype = torch.float64, seed: int = 0) -> PooledBlock:
    """One with a scale and a shift of either sign, so that pooling takes minima as well as maxima."""
    torch.manual_seed(seed)
    made = PooledBlock(inputs, filters, norm)
    with torch.no_grad():
        made.norm.weight.normal_()
        made.norm.bias.normal_()
    return made.to(dtype, memory_format=torch.channels_last)


def images(n: int, channels: int, height: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, height, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def derivatives(made: PooledBlock, x: Tensor, seen: Tensor | None = None) -> dict[str, Tensor]:
    """The output and its first and second derivatives along fixed directions, by name; `seen` weighs the outputs' gradients."""
    x = x.detach().requires_grad_(x.shape[1] not in native.COLOURS)
    wanted = dict(made.named_parameters()) | ({"images": x} if x.requires_grad else {})
    output = made(x)
    random = torch.Generator().manual_seed(1)

    def direction(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=random, dtype=torch.float64).to(like)

    gradient = (direction(output) * (1 if seen is None else seen)).requires_grad_()
    first = torch.autograd.grad(output, list(wanted.values()), gradient, create_graph=True)
    cotangents = [direction(value) for value in first]
    second = torch.autograd.grad(first, [*wanted.values(), gradient], cotangents, allow_unused=True)
    names = [*wanted, "output's gradient"]
    found = {"output": output} | {f"gradient by {name}": value for name, value in zip(wanted, first, strict=True)}
    return found | {f"second by {name}": value for name, value in zip(names, second, strict=True) if value is not None}


def difference(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-30)).item()


def by_both(made: PooledBlock, x: Tensor, kernels: Library) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every derivative by name, native's and torch's."""
    expected = derivatives(made, x)
    native.use(made, kernels)
    assert native.applies(kernels, x, made.conv, made.norm, made.pool)
    found = derivatives(made, x)
    assert found.keys() == expected.keys()
    return ((name, found[name], expected[name]) for name in expected)


@settings(max_examples=40)
@given(
    n=st.integers(1, 80),
    height=st.integers(2, 13),
    width=st.integers(2, 13),
    channels=st.sampled_from([1, 3, 16, 32, 48]),
    filters=st.sampled_from([16, 32, 48]),
    norm=st.sampled_from(["batch", "running"]),
    channels_last=st.booleans(),
)
def test_a_block_is_torchs_in_every_derivative(
    n: int, height: int, width: int, channels: int, filters: int, norm: str, channels_last: bool
) -> None:
    """Odd and even sizes, 1 to 80 images, one to three groups of filters, in either layout."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = images(n, channels, height, width).contiguous(memory_format=layout)
    for name, found, expected in by_both(block(channels, filters, norm), x, available()):
        assert difference(found, expected) < CLOSE, name


@settings(max_examples=40)
@given(
    n=st.integers(1, 20),
    height=st.integers(2, 13),
    width=st.integers(2, 13),
    channels=st.sampled_from([1, 3, 16, 32, 48]),
    filters=st.sampled_from([16, 32, 48]),
    channels_last=st.booleans(),
)
@torch.no_grad()
def test_a_block_in_evaluation_mode_is_torchs(n: int, height: int, width: int, channels: int, filters: int, channels_last: bool) -> None:
    """Each image by itself, too: the same bits whatever stands beside it."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, made, kernels = images(n, channels, height, width).contiguous(memory_format=layout), block(channels, filters).eval(), available()
    made.norm.running_mean.normal_()
    made.norm.running_var.uniform_(0, 2)
    expected = made(x)
    native.use(made, kernels)
    assert native.applies(kernels, x, made.conv, made.norm, made.pool)
    found = made(x)
    assert difference(found, expected) < CLOSE
    assert torch.equal(torch.cat([made(image) for image in x.split(1)]), found)


@pytest.mark.parametrize(("channels", "side"), [(1, 28), (3, 84), (32, 42), (64, 21)])
def test_a_block_of_the_usual_sizes_is_torchs(channels: int, side: int) -> None:
    for name, found, expected in by_both(block(channels, 64 if channels == 64 else 32), images(5, channels, side, side), available()):
        assert difference(found, expected) < CLOSE, name


def test_images_may_be_a_view_with_any_strides() -> None:
    x = images(4, 3, 30, 20)[::2, :, 3:25:2].transpose(2, 3)
    for name, found, expected in by_both(block(3, 16), x, available()):
        assert difference(found, expected) < CLOSE, name


def test_running_statistics_are_torchs() -> None:
    kernels, made, x = available(), block(16, 32, "running"), images(3, 16, 7, 6)
    assert isinstance(made.norm, RunningBatchNorm2d)
    made.norm.seen = []
    made(x)
    native.use(made, kernels)
    made(x)
    expected, found = made.norm.seen
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("channels", [3, 16])
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_torch(channels: int) -> None:
    """The variance is not the difference of two large squares where activations are stored."""
    made, x = block(channels, 16, dtype=torch.float32), images(5, channels, 12, 12, torch.float32) + (100 if channels == 16 else 3)
    truth = derivatives(block(channels, 16), x.double())["output"]
    expected = difference(made(x).double(), truth)
    native.use(made, available("float32"))
    assert difference(made(x).double(), truth) < 4 * expected


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("place", [0, 77])
def test_nan_goes_where_torchs_goes(channels: int, place: int) -> None:
    """One NaN pixel makes its channels NaN: through norm, pool and ReLU, and in the gradients."""
    kernels, made, x = available(), block(channels, 16), images(2, channels, 8, 8)
    x.view(-1)[place] = float("nan")
    expected = derivatives(made, x)
    native.use(made, kernels)
    for name, found in derivatives(made, x).items():
        assert torch.equal(found.isnan(), expected[name].isnan()), name


def test_of_equal_values_the_first_is_pooled_and_zero_has_no_gradient() -> None:
    """A filter scaled by zero makes all values equal; ReLU at zero passes nothing on."""
    kernels, made = available(), block(16, 16)
    with torch.no_grad():
        made.norm.weight.zero_()
        made.norm.bias.copy_(torch.arange(-8.0, 8.0))
    for name, found, expected in by_both(made, images(3, 16, 6, 6), kernels):
        torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE, msg=name)


def clear_windows(made: PooledBlock, x: Tensor, margin: float = 1e-4) -> Tensor:
    """1 where rounding in float32 cannot decide which value is pooled, nor on which side of zero it lies; float64."""
    values = made.norm(made.conv(x))
    largest = max_pool2d(values, 2)
    spread = largest.repeat_interleave(2, 2).repeat_interleave(2, 3)
    rest = values[:, :, : spread.shape[2], : spread.shape[3]].masked_fill(
        values[:, :, : spread.shape[2], : spread.shape[3]] == spread, -1e9
    )
    return ((largest - max_pool2d(rest, 2) > margin) & (largest.abs() > margin)).double().detach()


@pytest.mark.parametrize(("channels", "n", "side"), [(3, 5, 28), (32, 5, 21), (32, 25, 14)])
def test_float32_errs_no_more_than_torch(channels: int, n: int, side: int) -> None:
    """Against float64, where pooling is beyond doubt: the median over 20 seeds of native's error is at most 1.25 of torch's."""
    kernels, ratios = available("float32"), {}
    for seed in range(20):
        exact = block(channels, 32, seed=seed)
        single = block(channels, 32, dtype=torch.float32, seed=seed)
        x = images(n, channels, side, side, torch.float32, seed).contiguous(memory_format=torch.channels_last)
        seen = clear_windows(exact, x.double())
        truth = derivatives(exact, x.double(), seen)
        errors = []
        for library_or_none in (None, kernels):
            native.use(single, library_or_none)
            found = derivatives(single, x, seen.float())
            errors.append(
                {
                    name: difference(_seen(name, found[name].double(), seen), _seen(name, truth[name], seen))
                    for name in truth
                    if truth[name].any()
                }
            )
        for name, error in errors[1].items():
            ratios.setdefault(name, []).append(error / errors[0][name])
    assert {name: statistics.median(values) for name, values in ratios.items() if statistics.median(values) > 1.25} == {}


@settings(max_examples=30)
@given(
    n=st.integers(1, 6),
    height=st.integers(20, 23),
    width=st.integers(20, 23),
    channels=st.sampled_from([16, 32, 80]),
    filters=st.sampled_from([16, 48]),
    by_images=st.booleans(),
)
def test_a_convolution_is_torchs_in_every_derivative(n: int, height: int, width: int, channels: int, filters: int, by_images: bool) -> None:
    kernels, x = available(), images(n, channels, height, width)
    layer = KaimingConv2d(channels, filters, 3, padding=1, bias=False).double()
    expected = of_convolution(layer, x, by_images)
    native.use(layer, kernels)
    assert native.convolves(kernels, x, layer)
    for name, found in of_convolution(layer, x, by_images).items():
        assert difference(found, expected[name]) < CLOSE, name


def of_convolution(layer: nn.Module, x: Tensor, by_images: bool) -> dict[str, Tensor]:
    """The output and its first and second derivatives along fixed directions, by name."""
    x = x.detach().requires_grad_(by_images)
    random = torch.Generator().manual_seed(1)
    wanted = [x, layer.weight] if by_images else [layer.weight]
    output = layer(x)
    gradient = torch.randn(output.shape, generator=random, dtype=torch.float64).to(output).requires_grad_()
    first = torch.autograd.grad(output, wanted, gradient, create_graph=True)
    cotangents = [torch.randn(value.shape, generator=random, dtype=torch.float64).to(value) for value in first]
    second = torch.autograd.grad(first, [*wanted, gradient], cotangents, allow_unused=True, materialize_grads=True)
    names = ["images", "weight"] if by_images else ["weight"]
    found = {"output": output} | {f"gradient by {name}": value for name, value in zip(names, first, strict=True)}
    return found | {f"second by {name}": value for name, value in zip([*names, "output's gradient"], second, strict=True)}


@pytest.mark.parametrize(("channels", "filters", "side"), [(16, 32, 20), (64, 64, 21)])
def test_a_convolution_in_float32_errs_no_more_than_torch(channels: int, filters: int, side: int) -> None:
    """Against float64: the median over 20 seeds of native's error is at most 1.25 of torch's."""
    kernels, ratios = available("float32"), {}
    for seed in range(20):
        torch.manual_seed(seed)
        layer = KaimingConv2d(channels, filters, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
        x = images(5, channels, side, side, torch.float32, seed).contiguous(memory_format=torch.channels_last)
        by_torch = of_convolution(layer, x, by_images=True)
        native.use(layer, kernels)
        found = of_convolution(layer, x, by_images=True)
        native.use(layer, None)
        truth = of_convolution(layer.double(), x.double(), by_images=True)
        for name in truth:
            error, torchs = (difference(values[name].double(), truth[name]) for values in (found, by_torch))
            if torchs:
                ratios.setdefault(name, []).append(error / torchs)
    assert {name: statistics.median(values) for name, values in ratios.items() if statistics.median(values) > 1.25} == {}


def test_a_convolutions_bits_do_not_depend_on_the_other_images() -> None:
    kernels, x = available("float32"), images(4, 16, 21, 20, torch.float32)
    layer = KaimingConv2d(16, 32, 3, padding=1, bias=False)
    native.use(layer, kernels)
    with torch.no_grad():
        together = layer(x)
        assert all(torch.equal(layer(x[[number]])[0], together[number]) for number in range(4))


def test_which_convolutions_take_torch() -> None:
    kernels, x = available(), images(2, 16, 20, 20)

    def takes(x: Tensor = x, ins: int = 16, outs: int = 16, side: int = 3, **options: Any) -> bool:
        layer = KaimingConv2d(ins, outs, side, **({"padding": side // 2, "bias": False} | options)).double()
        return native.convolves(kernels, x, layer)

    assert takes()
    assert not takes(images(2, 16, 19, 21))  # small images
    assert not takes(images(2, 3, 20, 20), ins=3)
    assert not takes(outs=24)
    assert not takes(side=1)
    assert not takes(stride=2)
    assert not takes(padding=0)
    assert not takes(dilation=2)
    assert not takes(groups=4)
    assert not takes(bias=True)
    assert not takes(x.float())


@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed"])
@pytest.mark.parametrize(
    "model", [("resnet12", {"widths": (16, 16, 16, 16)}), ("vgg", {"convolutions": (2, 1), "widths": (16, 16)})], ids=["resnet12", "vgg"]
)
def test_a_deep_networks_meta_gradient_is_torchs(model: tuple[str, dict[str, Any]], gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, own = model
    kernels = available()
    made = learner("maml", build_model(name, (1, 40, 40), WAY, "batch", seed=1, **own).double(), gradient=gradient)
    theta, batch = made.initial_params(), batch_for("maml", side=40)
    expected = made.slot_gradients(theta, batch)[0]
    assert native.serves(made.model)
    native.use(made.model, kernels)
    calls = counted(kernels, monkeypatch)
    assert difference(made.slot_gradients(theta, batch)[0], expected) < CLOSE
    assert calls() > 0
    assert predicted_bytes(made, theta, batch) > 0


def _seen(name: str, value: Tensor, seen: Tensor) -> Tensor:
    return value * seen if "output" in name else value


def network(norm: str = "batch", dtype: torch.dtype = torch.float64, filters: int = 16, side: int = 20) -> nn.Module:
    return build_model("conv4", (1, side, side), WAY, norm, filters=filters, seed=1).to(dtype)


CONVOLVING = sorted(LEARNERS.keys() - {"in-context"})  # which reads sequences


def learner(name: str, model: nn.Module, **given: Any) -> Learner:
    own = {"inner_lr": 0.1, "inner_steps": 2, "multi_step_loss": 10, "inner_batch": 4, "images_per_slot": 6, "task_batching": "loop"}
    return build_learner(name, model, **{key: value for key, value in (own | given).items() if key in settings_of(name)})


def batch_for(name: str, slots: int = 2, dtype: torch.dtype = torch.float64, side: int = 20) -> Batch:
    drawn = images(slots * WAY * 4, 1, side, side, dtype).view(slots, WAY * 4, 1, side, side)
    labels = torch.arange(WAY).repeat(slots, 2)
    if LEARNERS[name].trains_on == "labelled batches":
        return LabelledBatch(0, list(range(slots)), drawn, labels.repeat(1, 2))
    half = 2 * WAY
    return EpisodeBatch(
        step=0,
        slots=list(range(slots)),
        support_images=drawn[:, :half],
        support_labels=labels,
        query_images=drawn[:, half:],
        query_labels=labels,
    )


def counted(kernels: Library, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often native functions were called."""
    calls: list[str] = []
    plain = Library.__call__
    monkeypatch.setattr(Library, "__call__", lambda self, name, *arguments: (calls.append(name), plain(self, name, *arguments))[1])
    return lambda: len(calls)


@pytest.mark.parametrize("norm", ["batch", "running"])
@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed"])
@pytest.mark.parametrize("name", CONVOLVING)
def test_every_learners_meta_gradient_is_torchs(name: str, gradient: str, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if gradient == "checkpointed" and "gradient" not in settings_of(name):
        pytest.skip("one way to compute it")
    kernels, made = available(), learner(name, network(norm), gradient=gradient)
    theta = made.initial_params()
    expected, metrics = made.slot_gradients(theta, batch_for(name))
    native.use(made.model, kernels)
    calls = counted(kernels, monkeypatch)
    found, others = made.slot_gradients(theta, batch_for(name))
    assert calls() > 0
    assert difference(found, expected) < CLOSE
    torch.testing.assert_close(others.loss, metrics.loss, rtol=CLOSE, atol=CLOSE)


@pytest.mark.parametrize("name", CONVOLVING)
def test_adapting_and_predicting_is_torchs(name: str) -> None:
    kernels, made = available(), learner(name, network())
    theta, x = made.initial_params(), images(2 * WAY, 1, 20, 20)
    episode = EpisodeBatch.of_support(x, torch.arange(WAY).repeat(2))
    expected = made.predict(made.adapt(theta, episode), x)
    native.use(made.model, kernels)
    for found, wanted in zip(made.predict(made.adapt(theta, episode), x), expected, strict=True):
        assert difference(found, wanted) < CLOSE


@torch.no_grad()
def test_a_support_sets_statistics_are_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, made = available(), learner("maml", network())
    theta, x = made.initial_params(), images(2 * WAY, 1, 20, 20)
    expected = support_statistics(made.forward(), theta, x)
    convolved = torch.nn.functional.conv2d(x, theta["blocks.0.conv.weight"], padding=1)
    first = convolved.mean((0, 2, 3)), convolved.var((0, 2, 3), correction=0)
    torch.testing.assert_close(tuple(expected[f"blocks.0.norm.running_{name}"] for name in ("mean", "var")), first, rtol=1e-9, atol=1e-12)
    native.use(made.model, kernels)
    calls = counted(kernels, monkeypatch)
    found = support_statistics(made.forward(), theta, x)
    assert calls() == len(expected) / 2
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert not any(norm.seen for norm in batch_norms(made.model).values())


def test_repeating_gives_the_same_bits_and_so_does_another_process() -> None:
    kernels, made = available("float32"), learner("maml", network(dtype=torch.float32))
    native.use(made.model, kernels)
    theta, batch = made.initial_params(), batch_for("maml", dtype=torch.float32)
    once, again = (made.slot_gradients(theta, batch)[0] for _ in range(2))
    assert torch.equal(once, again)
    code = "from distmeta.models.native.library import library; print(library('float32').digest)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert other.stdout.strip() == kernels.digest


def test_predicted_memory_is_the_blocks_own() -> None:
    """Counted without values, as torch's layers are, and less: fewer arrays of full size are kept."""
    kernels, made = available("float32"), learner("maml", network(dtype=torch.float32))
    theta, batch = made.initial_params(), batch_for("maml", 1, torch.float32)
    by_torch = predicted_bytes(made, theta, batch)
    native.use(made.model, kernels)
    assert 0 < predicted_bytes(made, theta, batch) < by_torch


@pytest.mark.parametrize("channels", [3, 16])
def test_a_graph_of_the_second_derivative_is_refused(channels: int) -> None:
    """A third derivative would silently take the saved statistics for constants."""
    made, x = block(channels, 16), images(2, channels, 6, 6)
    native.use(made, available())
    weight = made.conv.weight
    (first,) = torch.autograd.grad((made(x) ** 2).sum(), weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad((first**2).sum(), weight, create_graph=True)


def test_what_is_not_eligible_takes_torch() -> None:
    kernels, x = available(), images(2, 16, 6, 6)

    def takes(made: PooledBlock, x: Tensor = x) -> bool:
        return native.applies(kernels, x, made.conv, made.norm, made.pool)

    assert takes(block(16, 16))
    assert not takes(block(16, 24))  # filters are no whole groups
    assert not takes(block(5, 16), images(2, 5, 6, 6))
    assert not takes(block(3, 16), images(2, 3, 6, 6).requires_grad_())
    assert not takes(block(16, 16, dtype=torch.float32), x.float())
    assert not takes(block(16, 16, "group"))
    assert not takes(block(16, 16).eval())  # in evaluation mode it has no gradient
    with torch.no_grad():
        assert takes(block(16, 16).eval())
    with torch.autocast("cpu", torch.bfloat16):
        assert not takes(block(16, 16))
    hooked = block(16, 16)
    hooked.norm.register_forward_hook(lambda *_: None)
    assert not takes(hooked)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert not takes(block(16, 16))
    finally:
        torch.set_num_threads(threads)


def test_tasks_batched_by_vmap_take_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, made = available(), learner("maml", network(), task_batching="vmap", tasks_per_chunk=2)
    theta = made.initial_params()
    expected = made.slot_gradients(theta, batch_for("maml"))[0]
    native.use(made.model, kernels)
    calls = counted(kernels, monkeypatch)
    assert torch.equal(made.slot_gradients(theta, batch_for("maml"))[0], expected)
    assert calls() == 0
