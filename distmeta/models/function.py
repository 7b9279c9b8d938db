"""Checks that a user's network is a function of its parameters, inputs and torch's generator. docs/extending.md states the rules."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distmeta.errors import ConfigError, DistmetaError
from distmeta.models.call import call, outputs_of, places, twice_differentiable
from distmeta.models.construct import seeded
from distmeta.models.convert import batch_norms, set_training
from distmeta.models.watch import Watch

_DECISIONS = 24  # maximum number of a forward's decisions that are tried the other way


def check_function(name: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError unless `model`, a user's network, is a function of its parameters, inputs (M, …) and torch's generator.

    That is: it leaves inputs, parameters and buffers as they are, gives the same when it is called again, draws nothing in evaluation,
    where each row depends on its own input alone, and has the right gradient when it is called with other parameters than its own.
    Integer inputs are tried as they are; others only give the shape.
    """
    subject, unlike = f"the forward of model.name={name}", inputs
    if inputs.is_floating_point():
        random = torch.Generator().manual_seed(0)
        inputs = torch.rand(inputs.shape, generator=random).to(inputs)
        unlike = torch.stack([inputs[0], -3 * inputs[1], torch.randn(inputs.shape[1:], generator=random).to(inputs)])
    try:
        with twice_differentiable():
            _check_left_alone(subject, model, inputs)
            _check_repeats(subject, model, inputs)
            _check_rows(subject, model, unlike)
            _check_called(subject, model, inputs)
            _check_copied(name, model, inputs)
    except DistmetaError:
        raise
    except Exception as error:  # whatever the user's own forward raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"{subject} fails for some inputs of shape {tuple(inputs.shape)}: {reason}", "let it take any values") from error
    finally:
        set_training(model, False)


def _check_left_alone(subject: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError if the network writes into its inputs, parameters or buffers, in training or in evaluation."""
    given = inputs.clone()
    held = dict(model.named_buffers()) | dict(model.named_parameters()) | {"": given}
    before = {name: value.detach().clone() for name, value in held.items()}
    written: list[str] = []
    for training in (True, False):
        set_training(model, training)
        with seeded(0), torch.no_grad(), Watch(given, held) as watch:
            model(given)
        written += watch.written
    written += [name for name, value in held.items() if not _same(value, before[name])]  # such as by numpy, which Watch does not see
    if "" in written:
        raise ConfigError(f"{subject} changes its inputs in place", "let it compute new tensors, such as x = x - 0.5 instead of x -= 0.5")
    for name in written:
        kind, remedy = "buffer", "keep it constant; a value that training learns is a parameter"
        if name in dict(model.named_parameters()):
            kind, remedy = "parameter", "let it compute with a changed copy (nn.Embedding: leave max_norm out)"
        raise ConfigError(f"{subject} changes its {kind} {name} in place", remedy)


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
    """Raises ConfigError if what the network gives for an input in evaluation depends on the others, or it cannot take one alone.

    Inputs that are unlike each other are computed together and alone. What these cannot show is tried as well: each decision that the
    forward makes by values of its inputs is turned around, which may change one row, as a decision about one input does, but not several.
    """
    norms = [norm for norm in batch_norms(model).values() if norm.training]
    remedy = "compute each row from its own input; let statistics of a batch be taken by torch's BatchNorm layers, which model.norm governs"
    set_training(model, False)
    for norm in norms:
        norm.eval()
    try:
        with torch.no_grad():
            try:
                with Watch(inputs) as watch:
                    together = model(inputs)
                alone = torch.cat([model(one) for one in inputs.split(1)])
            except Exception as error:  # whatever the user's own forward raises
                raise ConfigError(f"{subject} does not take one input alone: {type(error).__name__}: {str(error)[:200]}", remedy) from error
            shared = any(_turned_rows(model, inputs, together, number) > 1 for number in range(min(watch.decisions, _DECISIONS)))
    finally:
        for norm in norms:
            norm.train()
    if _rows_apart(alone, together):
        raise ConfigError(f"{subject} gives other outputs for an input with others beside it than for the input alone", remedy)
    if shared:
        raise ConfigError(
            f"{subject} branches by a value of several inputs together, so an input's outputs depend on the others",
            "decide for each input by its own values, such as torch.where(x.mean(1, keepdim=True) > 0, a, b)",
        )


def _turned_rows(model: nn.Module, inputs: Tensor, usual: Tensor, decision: int) -> int:
    """How many rows of `usual`, the outputs, change if the forward takes one of its decisions the other way."""
    try:
        with Watch(inputs, turned=decision):
            return _rows_apart(usual, model(inputs))
    except Exception:  # a check of the inputs, such as an assertion, which now fails
        return 0


def _rows_apart(one: Tensor, other: Tensor) -> int:
    """The number of rows that differ, among those that are finite in `one`."""
    if one.shape != other.shape:
        return len(one)
    return sum(not close(b, a) for a, b in zip(one, other, strict=True) if a.isfinite().all())


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
    except Exception as error:  # whatever the user's own forward raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ConfigError(f"{subject} cannot be differentiated with other parameters than its own: {reason}", _NO_CHECKPOINTS) from error
    finally:
        with torch.no_grad():
            for key, parameter in own.items():
                parameter.copy_(kept[key])
    if any(gradient.layout is not torch.strided for gradient in called):
        raise ConfigError(f"{subject} has a sparse gradient, which is not supported", "leave sparse=True out of nn.Embedding")
    if not all(close(one, other) for one, other in zip(called, held, strict=True) if other.isfinite().all()):
        raise ConfigError(f"{subject} computes with other values than the parameters that it is called with", _NO_CHECKPOINTS)


def _check_copied(name: str, model: nn.Module, inputs: Tensor) -> None:
    """Raises ConfigError unless a deep copy of the network, with other parameters, computes what a call with these computes."""
    try:
        copied = copy.deepcopy(model)
    except Exception as error:  # whatever refuses to be copied
        raise ConfigError(
            f"model.name={name} cannot be copied, as adapting does: {type(error).__name__}: {str(error)[:100]}",
            "keep locks, files and generators out of the module, detach tensors that a forward keeps, or define __deepcopy__",
        ) from error
    others = elsewhere(model)
    set_training(model, False)
    set_training(copied, False)
    with torch.no_grad(), seeded(0):
        for key, parameter in copied.named_parameters():
            if key in others:
                parameter.copy_(others[key])
        try:
            found, wanted = copied(inputs), call(model, places(model), others, outputs_of, inputs)
        except Exception as error:  # whatever the user's own forward raises
            raise ConfigError(
                f"a copy of model.name={name} lacks what it needs: {error}", "leave __slots__ out, or define __deepcopy__"
            ) from error
    if copied is model or not close(found, wanted):
        raise ConfigError(
            f"a copy of model.name={name} computes with the parameters of the network that it was copied from, but adapting copies it",
            "let forward and hooks reach parameters by self or the module that they are given, not by a function that holds the network",
        )


def elsewhere(model: nn.Module) -> dict[str, Tensor]:
    """Values a little away from those of the trainable parameters, by name."""
    random = torch.Generator().manual_seed(0)
    own = {key: parameter.detach() for key, parameter in model.named_parameters() if parameter.requires_grad and parameter.numel()}
    return {key: value + 0.1 * value.abs().mean() * torch.randn(value.shape, generator=random).to(value) for key, value in own.items()}


_NO_CHECKPOINTS = (
    "read each parameter from its module in every forward; leave out backward hooks, and torch.utils.checkpoint, which computes again when"
    " the parameters are others (learner.gradient=checkpointed saves memory instead)"
)


def _with_gradients(outputs: Tensor, params: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs, and the gradient of their squares' sum by each parameter."""
    return [outputs, *torch.autograd.grad(outputs.square().sum(), list(params.values()), allow_unused=True, materialize_grads=True)]


def close(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.to(other.dtype), other, rtol=1e-3, atol=1e-4 * (1 + other.abs().max().item() if other.numel() else 1))


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.detach(), other, rtol=0, atol=0, equal_nan=True)
