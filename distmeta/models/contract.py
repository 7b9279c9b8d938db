"""Checks of the rules for networks, on example inputs before a run starts. docs/extending.md states the rules for users."""

from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorDeviceMismatchError, FakeTensorMode

from distmeta.errors import ConfigError, DistmetaError
from distmeta.models.call import Map, call, outputs_of, places, twice_differentiable
from distmeta.models.convert import set_training
from distmeta.models.dropblock import DropBlock
from distmeta.models.dropout import SeededDropout
from distmeta.models.function import close
from distmeta.models.head import features, is_head


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
    _check_answer(name, answer, (len(inputs), outputs))
    _check_registered(name, model, answer)
    changed = [key for key, buffer in model.named_buffers() if not torch.equal(buffer, before[key])]
    if changed:
        raise ConfigError(
            f"the forward of model.name={name} changes its buffer {changed[0]} while training, so a step could not be repeated",
            "remove the layer that changes it (such as spectral norm), or keep that buffer constant",
        )


def _check_answer(name: str, answer: Any, wanted: tuple[int, int]) -> None:
    """Raises ConfigError unless a forward gave float rows of the `wanted` shape, finite and with a gradient."""
    if not isinstance(answer, Tensor):
        raise ConfigError(
            f"model.name={name} returns a {type(answer).__name__}; a tensor of outputs is needed", "let its forward return only the tensor"
        )
    if tuple(answer.shape) != wanted:
        raise ConfigError(
            f"model.name={name} gives {tuple(answer.shape)} for {wanted[0]} inputs; {wanted} is needed: a row of {wanted[1]} for each",
            "make its last layer as wide as `outputs`, or name a linear last layer by model.head, which is then replaced",
        )
    if not answer.is_floating_point():
        raise ConfigError(f"model.name={name} returns {answer.dtype}; floating point is needed", "return scores, not the predicted classes")
    if (answer.isnan() | answer.isposinf()).any():
        raise ConfigError(
            f"model.name={name} gives NaN or infinity with its initial values", "check its initial values and the divisions in its forward"
        )
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        raise ConfigError(
            f"the forward of model.name={name} turns gradients off for all that follows",
            "write `with torch.no_grad():` around what needs none",
        )
    if not answer.requires_grad:
        raise ConfigError(
            f"the outputs of model.name={name} do not depend on a trainable parameter",
            "remove detach and no_grad from its forward, and keep requires_grad=True for some parameters",
        )


def _check_registered(name: str, model: nn.Module, outputs: Tensor) -> None:
    """Raises ConfigError if `outputs` depend on a parameter that the network does not hold, or whose gradient a hook changes."""
    known, waiting, seen = {id(parameter): key for key, parameter in model.named_parameters()}, [outputs.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [other for other, _ in node.next_functions]
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            raise ConfigError(
                f"model.name={name} computes with a parameter {tuple(leaf.shape)} that is not registered, so it would never be trained",
                "assign it as an attribute of a module, or hold it in nn.ParameterList; hold modules in nn.ModuleList",
            )
        if leaf is not None and leaf._backward_hooks:
            raise ConfigError(
                f"{known[id(leaf)]} of model.name={name} has a hook that changes its gradient, which would be left out",
                "choose what is trained by outer.train and learner.adapt instead, or scale the parameter in the forward",
            )


def check_device(name: str, model: nn.Module, inputs: Tensor, device: str) -> None:
    """Raises ConfigError if the forward uses tensors that stay on the CPU when the network and inputs (M, …) are on `device`. That need not
    exist here.
    """
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # tensors of any device, without values
            moved = {
                key: torch.empty_like(value, device=device)
                for key, value in (dict(model.named_buffers()) | dict(model.named_parameters())).items()
            }
            call(model, places(model), moved, outputs_of, torch.empty_like(inputs, device=device))
    except FakeTensorDeviceMismatchError as error:
        raise ConfigError(
            f"the forward of model.name={name} uses tensors on two devices: {' '.join(str(error).split())[:200]}",
            "register constant tensors by register_buffer, create others with device=x.device; or set train.device=cpu",
        ) from error
    except Exception:  # such as a forward that asks for values, which these tensors lack
        return


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
            given = {name: value.requires_grad_() for name, value in trainable.items()}
            looped = call(model, held, given, map_, inputs)
            of_loop = torch.autograd.grad(looped.square().sum(), list(given.values()), allow_unused=True)
    except Exception as error:  # torch.vmap raises exceptions of many types
        return f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    finally:
        set_training(model, False)
    pairs = [(mapped, looped), *((of_all, of_one) for of_all, of_one in zip(first, of_loop, strict=True) if of_one is not None)]
    alike = all(of_all is not None and close(of_all[0], of_one) for of_all, of_one in pairs)
    return None if alike else "it gives other outputs or gradients than one task after another"
