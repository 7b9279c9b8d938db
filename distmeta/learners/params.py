"""Parameters as a name → tensor dictionary (what the learners compute with) and as one flat vector (what workers exchange)."""

import hashlib

import torch
from torch import Tensor, nn

Params = dict[str, Tensor]

_LARGEST = 1e8  # larger weights squared, times an image's sums, approach the limit of float32


def trainable(model: nn.Module) -> Params:
    """Copies of the parameters of `model` that are not frozen."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def constants(model: nn.Module, moved: Params) -> Params:
    """The constants of a prediction by `model`: frozen parameters, and persistent buffers that are not in `moved`."""
    learned = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in state(model).items() if name not in learned and name not in moved}


def unusable(params: Params) -> str:
    """Why parameters are unusable: a value that is not finite, or so large that outputs overflow. Empty if they are usable."""
    for name, value in params.items():
        if not value.is_floating_point() or not value.numel():
            continue
        if not torch.isfinite(value).all():
            return f"{name} holds values that are not finite (NaN or infinity)"
        largest = float(value.abs().max())
        if largest > _LARGEST:
            return f"{name} holds a value of size {largest:.3g}; trained weights are below {_LARGEST:g}"
    return ""


def state(model: nn.Module) -> Params:
    """All parameters and persistent buffers, each under one name: of tied tensors `state_dict` gives every name."""
    held = model.state_dict()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in held}
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | buffers


def fill(model: nn.Module, values: Params) -> None:
    """Copy `values` into the parameters and buffers of `model` with the same names, in place."""
    places = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name in places.keys() & values.keys():
            places[name].copy_(values[name])


def difference(held: Params, wanted: Params) -> str:
    """The first name in which `held` is not what is `wanted`, or whose shape differs, with both. Empty if they agree."""
    for name, value in wanted.items():
        if name not in held:
            return f"{name} {tuple(value.shape)} is missing"
        if held[name].shape != value.shape:
            return f"{name} is {tuple(held[name].shape)} instead of {tuple(value.shape)}"
    return "".join(f"{name} {tuple(held[name].shape)} is left over" for name in list(held.keys() - wanted.keys())[:1])


def floating(params: Params) -> Tensor:
    """The first floating-point entry of `params`, whose device and type inputs must have. A network's buffers may hold integers."""
    return next(value for value in params.values() if value.is_floating_point())


def floating_parameter(model: nn.Module) -> Tensor:
    """The same for the parameters of `model`; frozen ones may hold integers."""
    return floating(dict(model.named_parameters()))


def leaves(params: Params) -> Params:
    """The same values as leaves for differentiation."""
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
