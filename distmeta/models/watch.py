"""Watches a forward at the level of torch's operations: which tensors it writes into, and what it decides by values of its inputs.

Nothing hides here: `x.data`, `no_grad` and views are the same memory, and a decision is a value whoever reads it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

_ALL, _ANY, _ITEM = torch.ops.aten.all, torch.ops.aten.any, torch.ops.aten._local_scalar_dense


class Watch(TorchDispatchMode):
    """While active, `written` collects the names of the tensors of `held` that operations write into, and `decisions` counts the single
    values that derive from `inputs` and that a forward may branch by: truth values, and numbers that Python reads.

    The decision of number `turned` is turned around: a truth value is negated, a number is changed. `all` and `any` are turned only to the
    value for which a forward must compute everything, because it may skip what all inputs do without.
    """

    def __init__(self, inputs: Tensor, held: Mapping[str, Tensor] | None = None, turned: int | None = None) -> None:
        super().__init__()
        self.written: list[str] = []
        self.decisions = 0
        self._turned = turned
        self._names = {_memory(value): name for name, value in (held or {}).items()}
        self._derived = {_memory(inputs)}
        self._decided: set[int] = set()
        self._alive: list[Tensor] = []  # memory that is freed may be another tensor's next

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for name in _written(func, args, kwargs):
            if (known := self._names.get(name)) is not None and known not in self.written:
                self.written.append(known)
        result = func(*args, **kwargs)
        read = [tensor for tensor in _tensors((*args, *kwargs.values())) if _memory(tensor) in self._derived]
        if not read:
            return result
        if func.overloadpacket is _ITEM:
            return result if _memory(read[0]) in self._decided else self._number(result)
        if _decides(func, result):
            result = self._truth(func, result)
            self._decided.add(_memory(result))
        for tensor in _tensors((result,)):
            self._derived.add(_memory(tensor))
            self._alive.append(tensor)
        return result

    def _number(self, value: Any) -> Any:
        if not self._next():
            return value
        return not value if isinstance(value, bool) else value + 1 + abs(value)

    def _truth(self, func: Any, value: Tensor) -> Tensor:
        if func.overloadpacket in (_ALL, _ANY) and bool(value) is not (func.overloadpacket is _ALL):
            return value
        return value.logical_not() if self._next() else value

    def _next(self) -> bool:
        """Count a decision; whether it is the one to turn around."""
        self.decisions += 1
        return self.decisions - 1 == self._turned


def _decides(func: Any, result: Any) -> bool:
    """Whether an operation gives one new truth value."""
    if not (isinstance(result, Tensor) and result.dtype is torch.bool and result.numel() == 1):
        return False
    return all(argument.alias_info is None for argument in (*func._schema.arguments, *func._schema.returns))


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[int]:
    """The memory that an operation writes into."""
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = args[number] if number < len(args) else kwargs.get(argument.name)
            yield from map(_memory, _tensors((given,)))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _memory(tensor: Tensor) -> int:
    """What views of the same values have in common."""
    return tensor.untyped_storage()._cdata if tensor.layout is torch.strided else id(tensor)
