"""Every backbone: its shapes, its size, its derivatives to second order, tasks batched by vmap, and what it refuses."""

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.errors import ConfigError
from distmeta.learners.params import Params, trainable, weights_sha256
from distmeta.models import MODELS, build_model, redraw
from distmeta.models.dropblock import DropBlock, set_noise
from distmeta.models.norm import NORMS
from distmeta.seeds import torch_seed

OUTPUTS = 3
# One small instance of every backbone, and two of Conv-4.
SMALL: dict[str, dict[str, Any]] = {
    "conv4 max-pool": {"name": "conv4", "input_shape": (2, 17, 16), "filters": 4},
    "conv4 stride": {"name": "conv4", "input_shape": (1, 9, 7), "filters": 4, "downsample": "stride"},
    "resnet12": {"name": "resnet12", "input_shape": (2, 16, 17), "widths": [3, 4, 5, 6]},
    "vgg": {"name": "vgg", "input_shape": (2, 5, 6), "convolutions": [1, 2], "widths": [4, 6]},
    "mlp": {"name": "mlp", "input_shape": (3,), "widths": [5, 4], "activation": "tanh"},
    "spiking_conv4": {"name": "spiking_conv4", "input_shape": (2, 17, 16), "filters": 4, "steps": 3},
    "lstm": {"name": "lstm", "input_shape": (4, 2), "width": 5},
    "transformer": {"name": "transformer", "input_shape": (4, 2), "width": 8, "heads": 2},
}
IMAGES = [name for name, small in SMALL.items() if len(small["input_shape"]) == 3]
EVERY = pytest.mark.parametrize(("small", "norm"), list(product(SMALL, NORMS)))
# A spike has no finite differences: tests/test_spiking.py has its derivatives.
SMOOTH = pytest.mark.parametrize(("small", "norm"), [case for case in product(SMALL, NORMS) if case[0] != "spiking_conv4"])


def build(small: str, norm: str = "batch", **changes: Any) -> nn.Module:
    return build_model(**SMALL[small] | {"outputs": OUTPUTS, "norm": norm} | changes)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameters_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def net_and_inputs(small: str, norm: str, tasks: int, images: int = 6) -> tuple[nn.Module, Params, Tensor]:
    """A network in float64, `tasks` sets of its parameters stacked, each moved a little from initialisation, and inputs for them."""
    model = build(small, norm).double()
    params = trainable(redraw(model, 1))
    stacked = {name: value + 0.1 * drawn(tasks, *value.shape, seed=number) for number, (name, value) in enumerate(params.items())}
    return model, stacked, drawn(tasks, images, *SMALL[small]["input_shape"], seed=99)


@EVERY
def test_features_and_head(small: str, norm: str) -> None:
    """forward = head(features), and the head's parameters, the last ones, are called head.*"""
    model, stacked, inputs = net_and_inputs(small, norm, tasks=1)
    features = model.features(inputs[0])
    assert features.shape == (len(inputs[0]), model.head.in_features)
    assert torch.equal(model(inputs[0]), model.head(features))
    assert model(inputs[0]).shape == (len(inputs[0]), OUTPUTS)
    assert [name for name in stacked if name.startswith("head.")] == list(stacked)[-2:] == ["head.weight", "head.bias"]


@settings(max_examples=25)
@given(
    st.sampled_from(IMAGES), st.sampled_from(list(NORMS)), st.integers(1, 4), st.integers(16, 40), st.integers(16, 40), st.integers(1, 7)
)
def test_any_image_that_is_large_enough(small: str, norm: str, channels: int, height: int, width: int, outputs: int) -> None:
    model = build(small, norm, input_shape=(channels, height, width), outputs=outputs)
    with torch.no_grad():
        assert model(torch.zeros(2, channels, height, width)).shape == (2, outputs)


@given(st.lists(st.integers(1, 9), max_size=3), st.lists(st.integers(1, 4), min_size=1, max_size=3))
def test_an_mlp_of_any_widths_reads_any_shape(widths: list[int], shape: list[int]) -> None:
    model = build("mlp", "none", input_shape=tuple(shape), widths=widths)
    assert model(torch.zeros(2, *shape)).shape == (2, OUTPUTS)
    assert len(list(model.layers)) == len(widths)


@pytest.mark.parametrize("small", IMAGES)
def test_image_models_lie_channels_last(small: str) -> None:
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in build(small).parameters() if p.dim() == 4)


def test_sizes_are_the_published_ones() -> None:
    """Published counts of Conv-4 and VGG include a bias for each convolution, which the norm behind it makes useless and we leave out."""
    assert parameters_of(build_model("conv4", (3, 84, 84), 5)) == 121_093 - 4 * 64
    assert parameters_of(build_model("conv4", (3, 84, 84), 5, "none")) == 121_093 - 4 * 2 * 64
    resnet = build_model("resnet12", (3, 84, 84), 5)
    assert parameters_of(resnet) - parameters_of(resnet.head) == 12_424_320  # MetaOptNet's without its head
    vgg13, vgg16 = (build_model("vgg", (3, 32, 32), 5, convolutions=counts) for counts in ([2, 2, 2, 2, 2], [2, 2, 3, 3, 3]))
    classifier = 25_089 * 4096 + 4097 * 4096 + 4097 * 1000
    assert parameters_of(vgg13) - parameters_of(vgg13.head) == 133_053_736 - classifier - (2 * 64 + 2 * 128 + 2 * 256 + 4 * 512)
    assert parameters_of(vgg16) - parameters_of(vgg16.head) == 138_365_992 - classifier - (2 * 64 + 2 * 128 + 3 * 256 + 6 * 512)
    assert parameters_of(build_model("mlp", (1,), 1, "none")) == (1 + 1) * 40 + (40 + 1) * 40 + 41  # MAML's for sinusoids


def test_features_are_as_wide_as_published() -> None:
    assert build_model("conv4", (3, 84, 84), 5).head.in_features == 1600
    assert build_model("conv4", (1, 28, 28), 5, downsample="stride").head.in_features == 64 * 2 * 2
    assert build_model("resnet12", (3, 84, 84), 5).head.in_features == 640


def test_every_stage_halves_its_image() -> None:
    assert build("vgg", input_shape=(2, 13, 9)).stages(torch.zeros(2, 2, 13, 9)).shape[2:] == (3, 2)
    assert build("resnet12", input_shape=(2, 84, 50)).blocks(torch.zeros(2, 2, 84, 50)).shape[2:] == (5, 3)


def test_the_linear_sigmoid_network() -> None:
    model = build("mlp", "none", widths=[], output_activation="sigmoid").double()
    inputs = drawn(4, 3)
    linear = model.head[0]
    torch.testing.assert_close(model(inputs), torch.sigmoid(inputs @ linear.weight.T + linear.bias))


@pytest.mark.parametrize("seed", [None, 0, 1], ids=lambda seed: "as constructed" if seed is None else f"drawn from {seed}")
def test_a_policys_weights_fill_their_bounds_and_its_biases_are_zero(seed: int | None) -> None:
    """A run draws the weights anew from its seed: that, too, follows the rule."""
    model = build_model("mlp", (3,), 5, norm="none", widths=[200, 100], weights="policy", seed=seed)
    for linear in (module for module in model.modules() if isinstance(module, nn.Linear)):
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5 * (0.1 if linear is model.head else 1.0)
        assert 0.9 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()


def test_resnet_is_its_formula() -> None:
    """One block written out with torch's own functions: three convolutions and a shortcut, norms, leaky ReLU 0.1, then the max-pool."""
    block = build("resnet12").double().blocks[0][0]
    images = drawn(3, 2, 16, 17)

    def convolved(x: Tensor, layer: nn.Sequential, padding: int) -> Tensor:
        return nn.functional.batch_norm(nn.functional.conv2d(x, layer[0].weight, padding=padding), None, None, training=True)

    hidden = images
    for layer in (block.first, block.second):
        hidden = nn.functional.leaky_relu(convolved(hidden, layer, 1), 0.1)
    added = convolved(hidden, block.third, 1) + convolved(images, block.shortcut, 0)
    torch.testing.assert_close(block(images), nn.functional.max_pool2d(nn.functional.leaky_relu(added, 0.1), 2))


@EVERY
def test_initialisation_comes_from_the_seed_alone(small: str, norm: str) -> None:
    """Also for a model that has been trained: every parameter is drawn at random."""
    model, other = build(small, norm), build(small, norm)
    expected = weights_sha256(trainable(redraw(model, 5)))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(7)
    assert weights_sha256(trainable(redraw(other, 5))) == expected
    assert weights_sha256(trainable(redraw(other, 6))) != expected


@pytest.mark.parametrize("small", ["resnet12", "vgg"])
def test_kaimings_variance(small: str) -> None:
    """Drawn by He's rule a convolution's weights have the variance 2 / (outputs · kernel pixels)."""
    widths = {"resnet12": [64, 64, 64, 64], "vgg": [64, 64]}[small]
    params = trainable(build(small, widths=widths, seed=0))
    kernels = [value for value in params.values() if value.dim() == 4 and value.numel() > 4000]
    assert kernels
    for kernel in kernels:
        fan_out = kernel.shape[0] * kernel[0, 0].numel()
        # The variance of a sample variance of n normal values is 2σ⁴ / n.
        assert abs(kernel.var().item() * fan_out / 2 - 1) < 4 * (2 / kernel.numel()) ** 0.5


def derivatives(outputs: Tensor, params: Params, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """First and second derivatives of a loss with respect to parameters and inputs, as MAML takes them."""
    wanted = [*params.values(), inputs]
    first = torch.autograd.grad((outputs.sin() ** 2).sum(), wanted, create_graph=True)
    return list(first), list(torch.autograd.grad(sum((g**2).sum() for g in first), wanted))


def test_xaviers_weights_are_spread_as_glorot_and_bengio_say() -> None:
    model = build_model("conv4", (1, 28, 28), 5, filters=64, init="xavier", seed=0)
    weight = model.blocks[2].conv.weight
    bound = (6 / (2 * 64 * 9)) ** 0.5
    assert weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert weight.std().item() == pytest.approx(0.042, abs=0.001), "as MAML's code begins"
    assert build_model("conv4", (1, 28, 28), 5, filters=64, seed=0).blocks[2].conv.weight.std().item() == pytest.approx(0.024, abs=0.001)


def test_averaged_features_are_the_means_of_the_last_maps() -> None:
    flat, averaged = (
        build_model("conv4", (1, 28, 28), 5, filters=8, downsample="stride", pooling=kind, seed=0) for kind in ("flatten", "mean")
    )
    images = torch.randn(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert averaged.features(images).shape == (3, 8)
    torch.testing.assert_close(averaged.features(images), flat.features(images).view(3, 8, -1).mean(2))
    assert averaged.head.in_features == 8


@pytest.mark.parametrize("norm", ["batch", "running", "group"])
def test_norms_epsilon_is_the_one_asked_for(norm: str) -> None:
    model = build_model("conv4", (1, 16, 16), 5, norm, filters=4, norm_epsilon=1e-3)
    assert [block.norm.eps for block in model.blocks] == [1e-3] * 4


@EVERY
def test_tasks_batched_by_vmap_are_a_loop_over_tasks(small: str, norm: str) -> None:
    model, stacked, inputs = net_and_inputs(small, norm, tasks=3)
    stacked = {name: value.requires_grad_() for name, value in stacked.items()}
    inputs.requires_grad_()
    batched = torch.vmap(lambda params, x: functional_call(model, params, (x,)))(stacked, inputs)
    loop = torch.stack([functional_call(model, {name: v[task] for name, v in stacked.items()}, (inputs[task],)) for task in range(3)])
    torch.testing.assert_close(batched, loop, rtol=1e-10, atol=1e-10)
    for ours, expected in zip(derivatives(batched, stacked, inputs), derivatives(loop, stacked, inputs), strict=True):
        for a, b in zip(ours, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@SMOOTH
def test_second_derivative_against_finite_differences(small: str, norm: str) -> None:
    """Hessian-vector products along a random direction, against central differences of the gradient."""
    model, stacked, inputs = net_and_inputs(small, norm, tasks=1)
    params, images = {name: value[0] for name, value in stacked.items()}, inputs[0]
    direction = [drawn(*value.shape, seed=50 + number) for number, value in enumerate([*params.values(), images])]

    def gradient(width: float) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        moved = [(v + width * d).requires_grad_() for v, d in zip([*params.values(), images], direction, strict=True)]
        outputs = functional_call(model, dict(zip(params, moved, strict=False)), (moved[-1],))
        return moved, torch.autograd.grad((outputs.sin() ** 2).sum(), moved, create_graph=True)

    moved, first = gradient(0.0)
    product = torch.autograd.grad(sum((g * d).sum() for g, d in zip(first, direction, strict=True)), moved)
    width = 1e-7  # so small that no ReLU and no max-pool changes sides
    for ours, up, down in zip(product, gradient(width)[1], gradient(-width)[1], strict=True):
        torch.testing.assert_close(ours, ((up - down) / (2 * width)).detach(), rtol=2e-5, atol=2e-5 * max(1.0, ours.abs().max().item()))


def test_predictions_by_buffers_do_not_depend_on_company() -> None:
    model = build("mlp", "running").eval()
    inputs = drawn(5, 3).float()
    torch.testing.assert_close(model(inputs), torch.cat([model(x[None]) for x in inputs]))


REFUSED = [
    ({"filter": 32}, r"model.filter is not an argument of conv4\nits arguments: filters, downsample, "),
    ({"filters": 0}, r"model.filters=0: input should be greater than or equal to 1\nfix model.filters"),
    ({"filters": "many"}, r"model.filters='many': input should be a valid integer"),
    ({"downsample": "mean"}, r"model.downsample='mean': input should be 'max-pool' or 'stride'"),
    ({"norm": "layer"}, r"model.norm='layer' is not a norm\nchoose one of batch, running, group, none"),
    ({"input_shape": (3, 15, 99)}, r"model.name=conv4 halves images 4 times; 15×99 pixels are fewer than 16×16\nset data.image_size to 16"),
    ({"input_shape": (1,)}, r"model.name=conv4 reads images \(C, H, W\), not shape \(1,\)\nchoose model.name=mlp"),
    ({"name": "resnet18"}, r"model.name='resnet18' is not a backbone of distmeta\nchoose one of conv4, resnet12, vgg, mlp"),
    ({"name": "resnet12", "widths": [64, 64]}, r"model.widths=\[64, 64\]: "),
    ({"name": "resnet12", "drop_rate": 1.0}, r"model.drop_rate=1.0: input should be less than 1"),
    ({"name": "vgg", "convolutions": [2, 2]}, r"model.convolutions=.* has 2 stages and model.widths=.* has 5"),
    ({"name": "vgg", "convolutions": [0, 1, 1, 1, 1]}, r"model.convolutions=\[0, 1, 1, 1, 1\]: input should be greater than"),
    ({"name": "vgg", "convolutions": []}, r"model.convolutions=\[\]: "),
    ({"name": "vgg"}, r"model.name=vgg halves images 5 times; 16×16 pixels are fewer than 32×32"),
    ({"name": "spiking_conv4", "beta": 1.5}, r"model.beta=1.5: input should be less than or equal to 1"),
    ({"name": "spiking_conv4", "steps": 0}, r"model.steps=0: input should be greater than or equal to 1"),
    ({"name": "lstm"}, r"model.name=lstm reads sequences \(length, width\), not shape \(3, 16, 16\)"),
    (
        {"name": "transformer", "input_shape": (4, 2), "width": 6},
        r"model.width=6 must be even and a multiple of model.heads=4\nset model.width=16",
    ),
    ({"name": "mlp", "activation": "gelu"}, r"model.activation='gelu': input should be 'relu', 'tanh' or 'sigmoid'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[str(changes) for changes, _ in REFUSED])
def test_bad_arguments_are_refused_with_value_rule_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(**{"name": "conv4", "input_shape": (3, 16, 16), "outputs": 5} | changes)


class Net(nn.Module):
    """A user's own network: takes a width of its own, and no norm."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int, width: int) -> None:
        super().__init__()
        if width < 0:
            raise ValueError("width below zero")
        self.body = nn.Conv2d(input_shape[0], width, 3)
        self.head = nn.Linear(width, outputs)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(images).mean((2, 3)))


def no_network() -> int:
    return 3


def own(name: str = f"{__name__}.Net", **arguments: Any) -> nn.Module:
    return build_model(name, (3, 8, 8), 5, allow_import=True, **arguments)


def test_a_class_of_the_users_own() -> None:
    model = own(width=4)
    assert isinstance(model, Net)
    assert model(torch.zeros(2, 3, 8, 8)).shape == (2, 5)
    assert model.body.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, r"model.width is missing: .*Net has no default for it\nadd it"),
        ({"width": 4, "depth": 2}, r"model.depth is not an argument of .*Net\nits arguments: width$"),
        ({"width": -1}, r"cannot be built from .*width=-1: ValueError\('width below zero'\)"),
        ({"name": f"{__name__}.Absent"}, r"Absent' cannot be imported: AttributeError"),
        ({"name": "no_such_package.Net"}, r"model.name='no_such_package.Net' cannot be imported: ModuleNotFoundError"),
        ({"name": f"{__name__}.OUTPUTS"}, r"OUTPUTS' is neither a subclass of torch.nn.Module nor a function"),
        ({"name": f"{__name__}.no_network"}, r"no_network' makes a int, not a torch.nn.Module"),
        ({"name": "Net"}, r"model.name='Net' is not a backbone of distmeta"),
    ],
)
def test_what_is_wrong_with_a_class_of_the_users_own_is_said(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own(**arguments)


def test_nothing_is_imported_without_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that came from elsewhere than the user's config must not run code; with leave the same name does, so the test can fail."""
    (tmp_path / "received_net.py").write_text("from distmeta.models.mlp import MLP as Net")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r"model.name='received_net.Net' is not a backbone of distmeta"):
        build_model("received_net.Net", (3,), 5)
    assert "received_net" not in sys.modules
    build_model("received_net.Net", (3,), 5, allow_import=True)
    assert "received_net" in sys.modules


def dropping(side: int, noise: tuple[int, ...] = (0, 0), rate: float = 0.2) -> DropBlock:
    layer = DropBlock(rate, side)
    layer.noise = noise
    return layer


def test_masks_are_a_function_of_seed_and_indices() -> None:
    model = build("resnet12", drop_rate=0.3, drop_block=2).double()
    images = drawn(4, 2, 16, 17)
    plain = model(images)

    def noisy(*noise: int) -> Tensor:
        set_noise(model, *noise)
        return model(images)

    first = noisy(7, 3, 1)
    torch.manual_seed(0)
    assert torch.equal(noisy(7, 3, 1), first)
    assert len({tuple(noisy(*noise).flatten().tolist()) for noise in ((7, 3, 1), (8, 3, 1), (7, 4, 1), (7, 3, 2), (7, 3))}) == 5
    assert not torch.equal(first, plain)
    set_noise(model, None)
    assert torch.equal(model(images), plain)


def test_resnet_drops_squares_in_its_last_two_blocks_only() -> None:
    model = build("resnet12", drop_rate=0.1, drop_block=4)
    assert [(block[1].side, block[1].rate) for block in model.blocks] == [(1, 0.1), (1, 0.1), (4, 0.1), (4, 0.1)]


def test_every_layer_has_its_own_mask() -> None:
    model = nn.Sequential(DropBlock(0.5, 1), nn.ReLU(), DropBlock(0.5, 1))
    set_noise(model, 0, 4)
    assert not torch.equal(model[0].mask(torch.Size((2, 3, 8, 8))), model[2].mask(torch.Size((2, 3, 8, 8))))


def test_masks_do_not_depend_on_the_type_of_the_images() -> None:
    layer, images = dropping(3), torch.ones(2, 3, 9, 9)
    assert torch.equal(layer(images) == 0, layer(images.double()) == 0)


@pytest.mark.parametrize(("side", "size"), [(1, 6), (3, 10), (5, 10), (5, 5), (5, 2)])
def test_the_share_of_features_dropped(side: int, size: int) -> None:
    """Without overlaps squares would drop `rate` on average; with them each feature survives with (1 - γ)^(squares that may cover it)."""
    rate, images = 0.2, 4000
    kept = dropping(side, rate=rate).mask(torch.Size((images, 1, size, size)))
    side = min(side, size)
    covers = nn.functional.conv_transpose2d(torch.ones(1, 1, size - side + 1, size - side + 1), torch.ones(1, 1, side, side))
    gamma = rate * size**2 / (side**2 * (size - side + 1) ** 2)
    assert gamma * covers.mean().item() == pytest.approx(rate)
    shares = kept.mean((1, 2, 3))
    expected = ((1 - gamma) ** covers).mean().item()
    assert abs(shares.mean().item() - expected) < 4 * shares.std().item() / images**0.5


def test_whole_squares_are_dropped() -> None:
    """Opening (eroding, then dilating) by a 3×3 square changes nothing: what is dropped is a union of such squares."""
    dropped = 1 - dropping(3).mask(torch.Size((20, 4, 9, 9)))
    eroded = -nn.functional.max_pool2d(-dropped, 3, stride=1)
    opened = nn.functional.max_pool2d(nn.functional.pad(eroded, (2, 2, 2, 2)), 3, stride=1)
    assert dropped.any()
    assert torch.equal(opened, dropped)


def test_the_sum_is_kept() -> None:
    images = torch.ones(20, 4, 9, 9)
    assert dropping(3)(images).mean().item() == pytest.approx(1)


def test_dropblock_is_idle_in_evaluation_and_without_rate_or_noise() -> None:
    images = torch.ones(2, 2, 5, 5)
    for idle in (dropping(3).eval(), DropBlock(0.5, 3), dropping(3, rate=0.0)):
        assert idle(images) is images
    assert dropping(3)(images) is not images


def test_dropblock_refuses_tasks_batched_by_vmap() -> None:
    with pytest.raises(ConfigError, match=r"model.drop_rate .* vmap .*\ncompute tasks one after another"):
        torch.vmap(dropping(3))(torch.ones(2, 2, 2, 5, 5))


def test_every_backbone_is_tested() -> None:
    assert {small["name"] for small in SMALL.values()} == set(MODELS)


@pytest.mark.parametrize(
    ("name", "norm", "own", "expected"),
    [
        ("conv4", "batch", {"filters": 32}, "d0aa2cf4a366"),
        ("resnet12", "batch", {"widths": [8, 8, 8, 8], "drop_rate": 0.1}, "51605f44c6c5"),
        ("mlp", "none", {}, "0d8de01e494b"),
    ],
)
def test_networks_start_as_they_did_in_version_0_1(name: str, norm: str, own: dict[str, Any], expected: str) -> None:
    """Whoever trained with distmeta 0.1 gets the same weights from the same seed."""
    model = build_model(name, (1, 28, 28), 5, norm, seed=torch_seed(0, "initial weights"), **own)
    assert weights_sha256(trainable(model)).startswith(expected)
