"""Parameters as a name → tensor dictionary (what the learners compute with) and as one flat vector (what workers exchange)."""

import hashlib

import torch
from torch import Tensor, nn

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
