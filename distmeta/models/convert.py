"""Replaces layers of a network by distmeta's: batch norms with statistics of an episode, and dropout with masks of a slot.

Only these exact types are replaced, because a subclass may contain more, such as an activation.
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrizations
from torch.nn.utils.weight_norm import WeightNorm

from distmeta.errors import ConfigError
from distmeta.models.dropout import SeededDropout
from distmeta.models.norm import BatchNorm2d, FrozenBatchNorm, RunningBatchNorm2d

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_OURS: dict[str, type[BatchNorm2d | FrozenBatchNorm]] = {"batch": BatchNorm2d, "running": RunningBatchNorm2d, "frozen": FrozenBatchNorm}


def convert_norms(model: nn.Module, norm: str) -> list[str]:
    """Replace torch's batch norms by those of kind `norm` (batch, running, frozen), keeping their values. Returns the replaced layers.

    Raises ConfigError, naming the layer, if that is not possible: for another `norm`, for a subclass unless its statistics are frozen, and
    for a frozen layer without statistics.
    """
    layers = [name for name, module in model.named_modules() if type(module) in _BATCH_NORMS]
    if layers and norm not in _OURS:
        raise ConfigError(
            f"model.norm={norm}, but {layers[0]} of {type(model).__name__} is a {type(model.get_submodule(layers[0])).__name__}",
            "set model.norm to batch, running or frozen",
        )
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm) or name in layers:
            continue
        module.eval()
        if norm != "frozen":
            raise ConfigError(
                f"model.norm={norm}, but {name} of {type(model).__name__} is a {type(module).__name__}, a subclass of batch norm",
                "set model.norm=frozen, or use torch's own BatchNorm1d, BatchNorm2d or BatchNorm3d",
            )
    _replace(model, {id(model.get_submodule(name)): _norm_for(model, name, norm) for name in layers})
    return layers


def _norm_for(model: nn.Module, name: str, norm: str) -> nn.Module:
    given = model.get_submodule(name)
    assert isinstance(given, _BatchNorm)
    if norm == "frozen" and given.running_mean is None:
        raise ConfigError(
            f"model.norm=frozen, but {name} of {type(model).__name__} keeps no statistics", "set model.norm to batch or running"
        )
    made = _OURS[norm](given.num_features, given.eps, given.affine)
    if given.affine:
        made.weight, made.bias = given.weight, given.bias
    if given.running_mean is not None and given.running_var is not None:
        made.running_mean, made.running_var = given.running_mean, given.running_var
    return made


def check_train(model: nn.Module, norm: str) -> None:
    """Raises ConfigError if a layer's own `train` keeps layers in evaluation mode, which distmeta does not call."""
    for name, module in model.named_modules():
        if type(module).train is nn.Module.train:
            continue
        module.train(True)
        for kept, layer in module.named_modules():
            if layer.training or (isinstance(layer, _BatchNorm) and norm == "frozen"):
                continue
            where = f"{name}.{kept}".strip(".") or "the network"
            raise ConfigError(
                f"train() of {type(module).__name__} keeps {where} in evaluation mode, but distmeta sets modes layer by layer",
                "set model.norm=frozen and leave that method out"
                if isinstance(layer, _BatchNorm)
                else "leave that method out; leave dropout out of layers that are to stay as they are",
            )


def convert_dropout(model: nn.Module) -> list[str]:
    """Replace torch's dropout layers by `SeededDropout`. Returns the replaced layers."""
    makers = {
        nn.Dropout: lambda rate: SeededDropout(rate),
        nn.Dropout1d: lambda rate: SeededDropout(rate, whole=2),
        nn.Dropout2d: lambda rate: SeededDropout(rate, whole=2),
        nn.Dropout3d: lambda rate: SeededDropout(rate, whole=2),
        nn.AlphaDropout: lambda rate: SeededDropout(rate, alpha=True),
        nn.FeatureAlphaDropout: lambda rate: SeededDropout(rate, whole=2, alpha=True),
    }
    layers = {name: module for name, module in model.named_modules() if type(module) in makers}
    made: dict[int, nn.Module] = {}
    for module in layers.values():
        assert isinstance(module, _DropoutNd)
        made[id(module)] = makers[type(module)](module.p)
    _replace(model, made)
    return list(layers)


def convert_weight_norm(model: nn.Module) -> None:
    """Let weight normalisation compute by plain operations, because the second derivative of torch's kernel by the direction v is wrong.
    Raises ConfigError for the older torch.nn.utils.weight_norm, which uses a hook.
    """
    for name, module in model.named_modules():
        if type(module) is parametrizations._WeightNorm:
            module.__class__ = PlainWeightNorm
        if any(isinstance(hook, WeightNorm) for hook in module._forward_pre_hooks.values()):
            raise ConfigError(
                f"{name} of {type(model).__name__} has torch.nn.utils.weight_norm, whose second derivative is wrong",
                "use torch.nn.utils.parametrizations.weight_norm instead",
            )


class PlainWeightNorm(parametrizations._WeightNorm):
    """w = g v / ‖v‖ (Salimans & Kingma 2016, arXiv:1602.07868, equation 2), the norm over all dimensions but `dim`."""

    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        others = [dimension for dimension in range(weight_v.dim()) if dimension != self.dim]
        return weight_g * weight_v / weight_v.square().sum(others, keepdim=True).sqrt()


def _replace(model: nn.Module, made: dict[int, nn.Module]) -> None:
    """Replace every use of `module` by made[id(module)]; a module may be used in several places."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and id(child) in made:
                parent._modules[name] = made[id(child)]


def set_training(model: nn.Module, training: bool) -> None:
    """Put every layer except batch norms into training or evaluation mode. Our batch norms have a separate mode; torch's always use their
    statistics.
    """
    if model.training == training:
        return
    for module in model.modules():
        if not isinstance(module, BatchNorm2d):
            module.training = training and not isinstance(module, _BatchNorm)


def batch_norms(model: nn.Module) -> dict[str, BatchNorm2d]:
    """distmeta's batch norms that may take statistics from a batch, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, BatchNorm2d)}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    """The running statistics that training moves, by name."""
    running = [(name, module) for name, module in batch_norms(model).items() if isinstance(module, RunningBatchNorm2d)]
    return {f"{name}.{part}": getattr(module, part) for name, module in running for part in ("running_mean", "running_var")}
