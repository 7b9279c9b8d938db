"""The network as a function of its parameters, for one task or several at once, and the statistics of its norms."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from distmeta.learners.kept import KeptFeatures
from distmeta.learners.params import Params
from distmeta.models.call import call, outputs_of, places, twice_differentiable
from distmeta.models.convert import batch_norms, set_training
from distmeta.models.dropblock import set_noise
from distmeta.models.dropout import dropouts, keys
from distmeta.models.head import features, head_name, head_of
from distmeta.models.norm import BatchNorm2d, RunningBatchNorm2d, pooled
from distmeta.seeds import torch_seed

Method = Literal["forward", "features"]


class Noise(NamedTuple):
    """The key of training forwards' random numbers: (seed, step) and the slot of each of the T tasks."""

    seed: int
    step: int
    slots: Sequence[int]


class Forward:
    """(params, inputs (T, M, …)) → outputs (T, M, N), or features (T, M, D). Entries of `params` that are not network parameters or buffers
    are ignored. `batched`: params also have the leading T, {name: (T, …)}, and tasks are computed together; otherwise T is 1 and params
    have no such dimension. Parameters missing in params, such as frozen ones, are taken from the network. With `noise` the network is in
    training mode. `noise` and `phase` (the call's number in the task) determine dropout and all other random numbers of the forward.
    Without it the network is in evaluation mode, without dropout. With `kept` the features of an image are computed once. The caller must
    keep the body's parameters unchanged and, if `batched`, leave them out of params. `bfloat16` lets torch's autocast compute outer passes
    in that type; outputs have the inputs' type. `statistics` holds the running norms' batch statistics in the last phase of training mode:
    {name: (T, C)}, or (C,) if not batched.
    """

    def __init__(
        self, model: nn.Module, batched: bool, noise: Noise | None = None, bfloat16: bool = False, kept: KeptFeatures | None = None
    ) -> None:
        self.model = model
        self.kept = kept
        self.batched = batched
        self.noise = noise
        self.bfloat16 = bfloat16
        self.statistics: Params = {}
        self._last_phase = 0
        self._places = places(model)
        self._running = {name: norm for name, norm in batch_norms(model).items() if isinstance(norm, RunningBatchNorm2d)}
        self._dropouts = dropouts(model)

    def __call__(self, params: Params, inputs: Tensor, phase: int = 0, method: Method = "forward", outer: bool = False) -> Tensor:
        """`outer` means that no inner step depends on the outputs, so this pass may be computed in bfloat16."""
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=self.bfloat16 and outer), twice_differentiable():
            outputs = self._call(params, inputs, phase, method)
        return outputs.to(inputs.dtype) if inputs.is_floating_point() else outputs

    def _call(self, params: Params, inputs: Tensor, phase: int, method: Method) -> Tensor:
        set_training(self.model, self.noise is not None)
        drawn = self._draw(phase, len(inputs), inputs.device)
        if self.kept is not None and method == "features":
            body = {} if self.batched else params
            rows = self.kept(lambda some: self._one_task(body, some, drawn[0], method)[0], inputs.flatten(0, 1))
            return rows.unflatten(0, inputs.shape[:2])
        if self.batched:
            outputs, statistics = torch.vmap(lambda one, of, key: self._one_task(one, of, key, method))(params, inputs, drawn)
        else:
            with self._seeded(phase, inputs.device):
                outputs, statistics = self._one_task(params, inputs[0], drawn[0], method)
            outputs = outputs[None]
        if phase >= self._last_phase:
            self.statistics, self._last_phase = statistics, phase
        return outputs

    def _draw(self, phase: int, tasks: int, device: torch.device) -> Tensor:
        """int64 (T, layers): the key of each dropout layer. It also sets DropBlock's noise, which works only in a loop over tasks."""
        if self.noise is None:
            set_noise(self.model, None)
        else:
            set_noise(self.model, self.noise.seed, self.noise.step, self.noise.slots[0], phase)
        if self.noise is None or not self._dropouts:  # nothing is copied to a GPU, so that it need not wait
            return torch.zeros(tasks, 0, dtype=torch.int64, device=device)
        return keys(*self.noise, phase, len(self._dropouts)).to(device)

    @contextmanager
    def _seeded(self, phase: int, device: torch.device) -> Iterator[None]:
        """Seed torch's global generator from the noise, so that a training forward's draws from it are repeatable."""
        if self.noise is None:
            yield
            return
        seed, step, slots = self.noise
        seed = torch_seed(seed, "forward", step, slots[0], phase)
        if device.type == "cuda":
            with torch.random.fork_rng(devices=[device]):
                torch.manual_seed(seed)
                yield
            return
        # torch.manual_seed records a traceback for every missing kind of device, which takes longer than a small block.
        held = torch.random.get_rng_state()
        torch.random.default_generator.manual_seed(seed)
        try:
            yield
        finally:
            torch.random.set_rng_state(held)

    def _one_task(self, params: Params, inputs: Tensor, drawn: Tensor, method: Method) -> tuple[Tensor, Params]:
        self._hand_out(drawn)
        for norm in self._running.values():
            norm.seen = []
        return call(self.model, self._places, params, features if method == "features" else outputs_of, inputs), _seen(self._running)

    def _hand_out(self, drawn: Tensor) -> None:
        for number, layer in enumerate(self._dropouts):
            layer.take_key(drawn[number] if len(drawn) else None)


class Network(NamedTuple):
    """The network under one set of parameters: inputs (T, M, …) → outputs (T, M, N), or features (T, M, D).

    `params` are bare if `forward` computes one task, else {name: (T, …)}; `phase` and `outer` are those of `Forward`.
    """

    forward: Forward
    params: Params
    phase: int = 0
    outer: bool = False

    def __call__(self, inputs: Tensor, method: Method = "forward") -> Tensor:
        return self.forward(self.params, inputs, self.phase, method, self.outer)


class Head(Forward):
    """The same for only the network's head: features (T, M, D) → outputs (T, M, N). Parameters keep their names in the network."""

    def _one_task(self, params: Params, inputs: Tensor, drawn: Tensor, method: Method) -> tuple[Tensor, Params]:
        prefix = f"{head_name(self.model)}."
        own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
        self._hand_out(drawn)
        return functional_call(head_of(self.model), own, (inputs,)), {}


@contextmanager
def frozen(model: nn.Module, running_only: bool = False) -> Iterator[None]:
    """Let norms take their statistics from buffers instead of their inputs. With `running_only`, only norms with running statistics."""
    norms = [norm for norm in batch_norms(model).values() if isinstance(norm, RunningBatchNorm2d) or not running_only]
    for norm in norms:
        norm.eval()
    try:
        yield
    finally:
        for norm in norms:
            norm.train()


@torch.no_grad()
def support_statistics(forward: Forward, adapted: Params, inputs: Tensor) -> Params:
    """The batch-norm statistics of a support set, inputs (M, …), under `adapted`: {"….running_mean": (C,), "….running_var": (C,)}.

    With them a network in evaluation mode classifies every query independently of the others (inductive prediction). A norm that is called
    several times pools the statistics of its calls.
    """
    norms = {name: norm for name, norm in batch_norms(forward.model).items() if not isinstance(norm, RunningBatchNorm2d)}
    if not norms:
        return {}
    for norm in norms.values():
        norm.seen = []
    try:
        forward(adapted, inputs[None])
        return _seen(norms)
    finally:
        for norm in norms.values():
            norm.seen = None


def _seen(norms: Mapping[str, BatchNorm2d]) -> Params:
    """The statistics of each norm that normalised by its batch, over all its calls in the last forward."""
    statistics = {name: pooled(norm.seen) for name, norm in norms.items() if norm.seen}
    means = {f"{name}.running_mean": statistic.mean for name, statistic in statistics.items()}
    return means | {f"{name}.running_var": statistic.var for name, statistic in statistics.items()}
