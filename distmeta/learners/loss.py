"""What a task's outputs cost. Integer targets are classes (cross-entropy), real ones are values (squared error)."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy


def task_losses(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean loss of each task (T,), from outputs (T, M, N) and targets (T, M) of class numbers or (T, M, N) of values.

    Cross-entropy for classes, squared error for values: means over the M examples (and N values), so that inner_lr does not depend on M.
    """
    if targets.is_floating_point():
        return (outputs - targets).square().flatten(1).mean(1)
    return cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape).mean(1)


def correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """How many examples of each task are classified right (T,), int64; zero in regression."""
    if targets.is_floating_point():
        return torch.zeros(len(targets), dtype=torch.int64, device=targets.device)
    return (outputs.argmax(-1) == targets).sum(1)
