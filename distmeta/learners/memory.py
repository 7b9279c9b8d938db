"""Predicts the memory of a step by running the learner on tensors that have shapes but no values."""

import weakref
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from distmeta.data.episodes import Batch
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params


class _Peak(TorchDispatchMode):
    """Counts the bytes of all live storages that operations allocate."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._seen: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, size)

    def _gone(self, size: int) -> None:
        self.now -= size


def predicted_bytes(learner: Learner, meta_params: Params, batch: Batch) -> int:
    """Peak bytes of tensors while `learner` computes the meta-gradients of `batch`, besides meta_params and the batch. Scratch memory
    inside operations is not counted. Raises the same errors as slot_gradients, so it also tests the network.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_params: Params = {name: mode.from_tensor(value) for name, value in meta_params.items()}
        fake_batch = batch.map(mode.from_tensor)
        with _Peak() as peak:
            learner.slot_gradients(fake_params, fake_batch)
    return peak.peak
