"""Checks of the rules for networks, on example inputs before a run starts. docs/extending.md states the rules for users."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from distmeta.errors import ConfigError, DistmetaError
from distmeta.models.call import Map, call, places, twice_differentiable
from distmeta.models.construct import seeded
from distmeta.models.convert import batch_norms, set_training
from distmeta.models.dropblock import DropBlock
from distmeta.models.dropout import SeededDropout
from distmeta.models.head import features, is_head


def outputs_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """The network's forward as a `Map`. The other Map is `distmeta.models.head.features`."""
    return model(inputs)


def check_forward(name: str, model: nn.Module, inputs: Tensor, outputs: int) -> None:
    """Raises ConfigError unless `model` maps inputs (M, …) to float rows (M, outputs) that depend on its parameters, without changing a
    buffer.
    """
    shape = ", ".join(map(str, inputs.shape))
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    try:
        set_training(model, False)  # first, because a constructor may have left some layers in evaluation mode
        set_training(model, True)
        with torch.random.fork_rng(devices=[]):
            answer: Any = model(inputs)
    except DistmetaError:
        raise
    except Exception as error:  # a user's forward may raise anything
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"model.name={name} does not take inputs of shape ({shape}): {type(error).__name__}: {reason}",
            "fix its forward, or choose another network",
        ) from error
    finally:
        set_training(model, False)
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"model.name={name} returns a {type(answer).__name__}; a tensor of outputs is needed", "let its forward return only the tensor"
        )
    wanted = (len(inputs), outputs)
    if tuple(answer.shape) != wanted:
        raise ConfigError(
            f"model.name={name} gives {tuple(answer.shape)} for {len(inputs)} inputs; {wanted} is needed: a row of {outputs} for each",
            "make its last layer as wide as `outputs`, or name a linear last layer by model.head, which is then replaced",
        )
    if not answer.is_floating_point():
        raise ConfigError(f"model.name={name} returns {answer.dtype}; floating point is needed", "return scores, not the predicted classes")
    if (answer.isnan() | answer.isposinf()).any():
        raise ConfigError(
            f"model.name={name} gives NaN or infinity with its initial values", "check its initial values and the divisions in its forward"
        )
    if not answer.requires_grad:
        raise ConfigError(
            f"the outputs of model.name={name} do not depend on a trainable parameter",
            "remove detach and no_grad from its forward, and keep requires_grad=True for some parameters",
        )
    changed = [key for key, buffer in model.named_buffers() if not torch.equal(buffer, before[key])]
    if changed:
        raise ConfigError(
            f"the forward of model.name={name} changes its buffer {changed[0]} while training, so a step could not be repeated",
            "remove the layer that changes it (such as spectral norm), or keep that buffer constant",
        )


def check_function(name: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError unless `model`, a user's network, is a function of its parameters, inputs (M, …) and torch's generator.

    The forward must not change inputs or parameters, and a second call must return the same. In evaluation it must draw nothing, and each
    row must depend on its own input alone. Its gradient must be right when it is called with other parameters.
    """
    subject = f"the forward of model.name={name}"
    if inputs.is_floating_point():
        inputs = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)).to(inputs)
    try:
        copy.deepcopy(model)
    except Exception as error:  # whatever refuses to be copied
        raise ConfigError(
            f"model.name={name} cannot be copied, as adapting does: {type(error).__name__}: {error}",
            "keep locks, files and generators out of the module, or define __deepcopy__",
        ) from error
    try:
        with twice_differentiable():
            _check_left_alone(subject, model, inputs)
            _check_repeats(subject, model, inputs)
            _check_rows(subject, model, inputs)
            _check_called(subject, model, inputs)
    finally:
        set_training(model, False)


def _check_left_alone(subject: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError if the network writes into its inputs or parameters."""
    given = inputs.clone()
    given_version, versions = given._version, {key: parameter._version for key, parameter in model.named_parameters()}
    set_training(model, True)
    with seeded(0), torch.no_grad():
        model(given)
    if given._version != given_version:  # also where the values happen to stay
        raise ConfigError(f"{subject} changes its inputs in place", "let it compute new tensors, such as x = x - 0.5 instead of x -= 0.5")
    changed = [key for key, parameter in model.named_parameters() if parameter._version != versions[key]]
    if changed:
        raise ConfigError(
            f"{subject} changes its parameter {changed[0]} in place",
            "let it compute with a changed copy (nn.Embedding: leave max_norm out)",
        )


def _check_repeats(subject: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError if the network gives something else when it is called again."""
    for training, seeds in ((True, (0, 0)), (False, (0, 1))):
        set_training(model, training)
        answers = []
        for number, seed in enumerate(seeds):
            with seeded(number), torch.no_grad():  # Python's and numpy's generators are others each time
                torch.manual_seed(seed)
                answers.append(model(inputs))
        if torch.allclose(answers[0], answers[1], rtol=0, atol=0, equal_nan=True):
            continue
        if training:
            raise ConfigError(
                f"{subject} gives other outputs when it is called again in training with torch seeded alike",
                "draw from torch's global generator alone, and keep nothing from one call to the next",
            )
        raise ConfigError(
            f"{subject} gives other outputs each time in evaluation",
            "draw random numbers in training only: nn.functional.dropout takes training=self.training",
        )


def _check_rows(subject: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError if what the network gives for an input in evaluation depends on the others, or it cannot take one alone."""
    norms = [norm for norm in batch_norms(model).values() if norm.training]
    remedy = "compute each row from its own input; let statistics of a batch be taken by torch's BatchNorm layers, which model.norm governs"
    set_training(model, False)
    for norm in norms:
        norm.eval()
    try:
        with torch.no_grad():
            together, alone = model(inputs), torch.cat([model(one) for one in inputs.split(1)])
    except Exception as error:  # whatever the user's own forward raises
        raise ConfigError(f"{subject} does not take one input alone: {type(error).__name__}: {str(error)[:200]}", remedy) from error
    finally:
        for norm in norms:
            norm.train()
    if together.isfinite().all() and not _close(alone, together):
        raise ConfigError(f"{subject} gives other outputs for an input with others beside it than for the input alone", remedy)


def _check_called(subject: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError unless a call with other parameters has the outputs and gradients of a network that holds them."""
    own = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.numel()}
    kept, others = {key: parameter.detach().clone() for key, parameter in own.items()}, elsewhere(model)
    given = {key: value.clone().requires_grad_() for key, value in others.items()}
    set_training(model, True)
    try:
        with seeded(0):
            called = _with_gradients(call(model, places(model), given, outputs_of, inputs), given)
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(others[key])
        with seeded(0):
            held = _with_gradients(model(inputs), own)
    except RuntimeError as error:
        raise ConfigError(f"{subject} has no gradient: {' '.join(str(error).split())[:200]}", _NO_CHECKPOINTS) from error
    finally:
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(kept[key])
    if any(gradient.layout is not torch.strided for gradient in called):
        raise ConfigError(f"{subject} has a sparse gradient, which is not supported", "leave sparse=True out of nn.Embedding")
    if not all(_close(one, other) for one, other in zip(called, held, strict=True) if other.isfinite().all()):
        raise ConfigError(f"{subject} computes with other values than the parameters that it is called with", _NO_CHECKPOINTS)


def elsewhere(model: nn.Module) -> dict[str, Tensor]:
    """Values a little away from those of the trainable parameters, by name."""
    random = torch.Generator().manual_seed(0)
    own = {key: parameter.detach() for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.numel()}
    return {key: value + 0.1 * value.abs().mean() * torch.randn(value.shape, generator=random).to(value) for key, value in own.items()}


_NO_CHECKPOINTS = (
    "read each parameter from its module in every forward; leave torch.utils.checkpoint out, which computes again when the parameters are"
    " others (learner.gradient=checkpointed saves memory instead)"
)


def _with_gradients(outputs: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs, and the gradient of their squares' sum by each parameter."""
    return [outputs, *torch.autograd.grad(outputs.square().sum(), list(params.values()), allow_unused=True, materialize_grads=True)]


def _close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.to(other.dtype), other, rtol=1e-3, atol=1e-4 * (1 + other.abs().max().item() if other.numel() else 1))


def freeze_unreached(model: nn.Module, inputs: Tensor, map_: Map) -> list[str]:
    """Freeze the parameters that do not influence the result of `map_`, such as an unused pooler. Returns their names."""
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.random.fork_rng(devices=[]):
        outputs = map_(model, inputs)
    gradients = torch.autograd.grad(outputs.sum(), list(trainable.values()), allow_unused=True)
    unreached = [name for (name, _), gradient in zip(trainable.items(), gradients, strict=True) if gradient is None]
    for name in unreached:
        trainable[name].requires_grad_(False)
    return unreached


def draws(model: nn.Module, inputs: Tensor) -> bool:
    """Whether the features of inputs (M, …) depend on random numbers in training."""
    layers = [module for name, module in model.named_modules() if not is_head(model, f"{name}.")]
    if any(isinstance(layer, SeededDropout | DropBlock) and layer.rate for layer in layers):
        return True
    set_training(model, True)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            before = torch.random.get_rng_state()
            features(model, inputs)
            return not torch.equal(torch.random.get_rng_state(), before)
    finally:
        set_training(model, False)


def no_vmap(model: nn.Module, inputs: Tensor, map_: Map) -> str | None:
    """Why `torch.vmap` cannot batch this network's tasks, or None if it can and its results equal those of a loop."""
    trainable = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    stacked = {name: torch.stack([value, value]).requires_grad_() for name, value in trainable.items()}

    held = places(model)

    def one(params: dict[str, Tensor], given: Tensor) -> Tensor:
        return call(model, held, params, map_, given)

    try:
        with twice_differentiable():
            set_training(model, True)
            with torch.random.fork_rng(devices=[]):
                torch.vmap(one)(stacked, torch.stack([inputs, inputs]))
            set_training(model, False)
            mapped = torch.vmap(one)(stacked, torch.stack([inputs, inputs]))
            first = torch.autograd.grad(mapped.square().sum(), list(stacked.values()), create_graph=True, allow_unused=True)
            squares = [gradient.square().sum() for gradient in first if gradient is not None and gradient.requires_grad]
            torch.autograd.grad(squares, list(stacked.values()), allow_unused=True)
            looped = map_(model, inputs)
    except Exception as error:  # torch.vmap raises exceptions of many types
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    finally:
        set_training(model, False)
    return None if _close(mapped[0], looped) else "it gives other outputs than one task after another"
