"""Parameters as a name → tensor dictionary (what the learners compute with) and as one flat vector (what workers exchange)."""

import hashlib
from collections.abc import Collection

import torch
from torch import Tensor, nn

from distmeta.errors import ConfigError

Params = dict[str, Tensor]


def initial_params(model: nn.Module, seed: int) -> Params:
    """Fresh parameters of `model`, drawn by its own modules' initialisation from `seed` alone.

    Every submodule with `reset_parameters` draws anew; the global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def warm_start(fresh: Params, given: Params, origin: str, optional: Collection[str] = ()) -> Params:
    """`fresh` with the values of `given` wherever name and shape agree: the network's body must, its head and all else may.

    What a learner learns beside the network (inner_lr.…, temperature) and the names in `optional` stay fresh where `given` lacks them.
    Raises ConfigError naming the first parameter of the body that does not fit; `origin` says where `given` comes from.
    """
    for name, value in fresh.items():
        free = name.startswith(("head.", "inner_lr.")) or name == "temperature" or name in optional
        there = given.get(name)
        if not free and (there is None or there.shape != value.shape):
            found = "lacks it" if there is None else f"has {tuple(there.shape)}"
            raise ConfigError(
                f"this network has {name} {tuple(value.shape)}; init_from={origin} {found}",
                "set model.* as in the run that made that model",
            )
    return {name: given[name].to(value) if name in given and given[name].shape == value.shape else value for name, value in fresh.items()}


def persistent_buffers(model: nn.Module) -> Params:
    """The buffers that belong to what is trained (running statistics), not to one support set."""
    held = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name in held}


def leaves(params: Params) -> Params:
    """The same values, to differentiate by."""
    return {name: value.detach().requires_grad_() for name, value in params.items()}


def detached(params: Params) -> Params:
    return {name: value.detach() for name, value in params.items()}


def flatten(params: Params) -> Tensor:
    """All values as one vector (P,), in the dictionary's order."""
    return torch.cat([value.reshape(-1) for value in params.values()])


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of `flatten`: views of `vector` (P,) with the names and shapes of `like`."""
    sizes = [value.numel() for value in like.values()]
    return {name: part.view(like[name].shape) for name, part in zip(like, vector.split(sizes), strict=True)}


def weights_sha256(params: Params) -> str:
    """SHA-256 over names, shapes, types and bytes, in name order."""
    digest = hashlib.sha256()
    for name in sorted(params):
        value = params[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()
