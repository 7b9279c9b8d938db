"""The memory order of images, feature maps and the weights of convolutions."""

import torch
from torch import Tensor, nn

from distmeta.models.convert import set_training


def in_fastest_layout(model: nn.Module) -> nn.Module:
    """`model` with the channels of its 2-D convolutions innermost in memory: a CPU's fastest layout (`Device.place` changes it)."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    return model


def in_readable_layout(model: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """The same for a user's network for inputs (C, H, W), unless its forward needs the channels outermost.

    `images.view(len(images), -1)` does. Such a network is also given its inputs in that order, by a hook.
    """
    in_fastest_layout(model)
    if _needs_channels_outermost(model, input_shape):
        model.register_forward_pre_hook(lambda _model, given: (_channels_outermost(given[0]), *given[1:]))
        for parameter in model.parameters():
            parameter.data = _channels_outermost(parameter.data)
    return model


def _needs_channels_outermost(model: nn.Module, input_shape: tuple[int, ...]) -> bool:
    images = torch.zeros(2, *input_shape).to(memory_format=torch.channels_last)
    set_training(model, False)
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            model(images)
    except Exception as error:  # other errors of a user's forward are reported when it is tried out
        return "view size is not compatible" in str(error)
    finally:
        set_training(model, True)
    return False


def _channels_outermost(values: Tensor) -> Tensor:
    return values.clone(memory_format=torch.contiguous_format)  # contiguous() would leave the strides of a single channel
