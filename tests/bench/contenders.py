"""The same meta-gradient computed by distmeta and by its peers, each as its users write it.

Run as a program it is one contender in a process of its own: for each line on standard input it takes a step and says how long it took.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners import build_learner
from distmeta.learners.learner import Learner
from distmeta.learners.objective import CrossEntropy, SquaredError
from distmeta.learners.params import Params, flatten
from distmeta.models import build_model, native
from distmeta.models.native.library import library

Step = Callable[[], Tensor]
"""Computes the mean meta-gradient over the tasks, (P,) in the order of the network's parameters."""


@dataclass(frozen=True)
class Work:
    """What is computed: tasks × (inner_steps on the support set, then the queries), exact second order, by a Conv-4 or another network.

    `own` are arguments of distmeta's network, `settings` those of its learner. A sinusoid's `shot` and `queries` are points.
    """

    network: str = "conv4"
    own: dict[str, Any] = field(default_factory=lambda: {"filters": 32})
    size: int = 84  # pixels
    way: int = 5
    shot: int = 1
    queries: int = 15
    inner_steps: int = 5
    tasks: int = 4
    dtype: str = "float32"
    settings: dict[str, Any] = field(default_factory=dict)
    kernels: str = "native"  # of distmeta, where its network has blocks for them; or "torch"
    learner: str = "maml"

    @property
    def regression(self) -> bool:
        return self.network == "mlp"


W = Work()
SINUSOID = Work("mlp", {"widths": [40, 40]}, way=1, shot=10, queries=10, inner_steps=1, tasks=25)
INNER_LR = 0.01


def learner_of(work: Work) -> Learner:
    shape, outputs, norm = ((1,), 1, "none") if work.regression else ((3, work.size, work.size), work.way, "batch")
    torch.manual_seed(0)  # networks draw their weights as they are built
    model = build_model(work.network, shape, outputs, norm, **work.own).to(getattr(torch, work.dtype))
    objective = SquaredError() if work.regression else CrossEntropy()
    if work.kernels == "native" and native.serves(model):
        native.use(model, library(work.dtype))
    return build_learner(work.learner, model, objective=objective, inner_lr=INNER_LR, inner_steps=work.inner_steps, **work.settings)


def episodes(work: Work) -> EpisodeBatch:
    random = torch.Generator().manual_seed(0)

    def images(each: int) -> tuple[Tensor, Tensor]:
        shape = (1,) if work.regression else (3, work.size, work.size)
        drawn = torch.randn(work.tasks, work.way * each, *shape, generator=random, dtype=torch.float64).to(getattr(torch, work.dtype))
        return drawn, drawn.sin() if work.regression else torch.arange(work.way).repeat_interleave(each).expand(work.tasks, -1)

    return EpisodeBatch(0, list(range(work.tasks)), *images(work.shot), *images(work.queries))


def ours(work: Work) -> Step:
    learner, batch = learner_of(work), episodes(work)
    meta_params = learner.initial_params()
    return lambda: learner.slot_gradients(meta_params, batch)[0].mean(0)


def tasks_of(work: Work) -> Iterator[tuple[Tensor, ...]]:
    """(support inputs, support targets, query inputs, query targets) of each task."""
    batch = episodes(work)
    return zip(batch.support_images, batch.support_labels, batch.query_images, batch.query_labels, strict=True)


def plain_network(work: Work) -> nn.Module:
    """The work's network in torch's own modules, contiguous, with the values that distmeta's has."""
    if work.regression:
        layers: list[nn.Module] = [layer for ins, outs in pairwise([1, *work.own["widths"]]) for layer in (nn.Linear(ins, outs), nn.ReLU())]
        network = nn.Sequential(*layers, nn.Linear(work.own["widths"][-1], 1))
    else:
        filters = work.own["filters"]
        layers = []
        for ins in [3, filters, filters, filters]:
            # No bias, which batch norm would subtract again: the meta-gradients have to be comparable.
            layers += [nn.Conv2d(ins, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters, track_running_stats=False)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * (work.size // 16) ** 2, work.way))
    network = network.to(getattr(torch, work.dtype))
    with torch.no_grad():
        for parameter, value in zip(network.parameters(), learner_of(work).initial_params().values(), strict=True):
            parameter.copy_(value)
    return network


def loss_of(work: Work) -> Callable[[Tensor, Tensor], Tensor]:
    return mse_loss if work.regression else cross_entropy


def _gathered(network: nn.Module, work: Work) -> Tensor:
    """The mean of what `backward` has added up in the parameters' grad over the tasks."""
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    found = torch.cat([gradient.flatten() for gradient in gradients]) / work.tasks
    network.zero_grad()
    return found


def by_higher(work: Work) -> Step:
    """As in higher's own example of MAML (examples/maml-omniglot.py)."""
    import higher

    network, loss = plain_network(work), loss_of(work)
    optimizer = torch.optim.SGD(network.parameters(), lr=INNER_LR)
    tasks = list(tasks_of(work))

    def step() -> Tensor:
        for support, targets, queries, query_targets in tasks:
            with higher.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (fast, inner):
                for _ in range(work.inner_steps):
                    inner.step(loss(fast(support), targets))
                loss(fast(queries), query_targets).backward()
        return _gathered(network, work)

    return step


def by_torchopt(work: Work) -> Step:
    """As in TorchOpt's own example (examples/few-shot/maml_omniglot.py), but with one task's graph at a time, which is faster."""
    import torchopt

    network, loss = plain_network(work), loss_of(work)
    inner = torchopt.MetaSGD(network, lr=INNER_LR)
    own = list(network.parameters())
    tasks = list(tasks_of(work))

    def step() -> Tensor:
        before = torchopt.extract_state_dict(network, by="reference"), torchopt.extract_state_dict(inner, by="reference")
        for support, targets, queries, query_targets in tasks:
            for _ in range(work.inner_steps):
                inner.step(loss(network(support), targets))
            loss(network(queries), query_targets).backward()
            torchopt.recover_state_dict(network, before[0])
            torchopt.recover_state_dict(inner, before[1])
        assert all(now is then for now, then in zip(network.parameters(), own, strict=True))
        return _gathered(network, work)

    return step


def by_torch_func(work: Work) -> Step:
    """Gradient of a function that takes gradients, as in torch's own tutorial of `torch.func`."""
    network, loss = plain_network(work), loss_of(work)
    params = {name: value.detach() for name, value in network.named_parameters()}
    tasks = list(tasks_of(work))

    def loss_at(params: Params, inputs: Tensor, targets: Tensor) -> Tensor:
        return loss(torch.func.functional_call(network, params, (inputs,)), targets)

    def meta_loss(params: Params, support: Tensor, targets: Tensor, queries: Tensor, query_targets: Tensor) -> Tensor:
        for _ in range(work.inner_steps):
            gradients = torch.func.grad(loss_at)(params, support, targets)
            params = {name: value - INNER_LR * gradients[name] for name, value in params.items()}
        return loss_at(params, queries, query_targets)

    return lambda: torch.stack([flatten(torch.func.grad(meta_loss)(params, *task)) for task in tasks]).mean(0)


CONTENDERS: dict[str, Callable[[Work], Step]] = {
    "distmeta": ours,
    "higher": by_higher,
    "torchopt": by_torchopt,
    "torch.func": by_torch_func,
}


def serve(name: str, work: Work, threads: int) -> None:
    """Answer each line with a step's seconds, its seconds of processor time, and this process's peak resident bytes so far."""
    torch.set_num_threads(threads)
    step = CONTENDERS[name](work)
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        step()
        seconds, used = time.perf_counter() - start, time.process_time() - used
        print(seconds, used, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)


if __name__ == "__main__":
    import json

    serve(sys.argv[1], Work(**json.loads(sys.argv[2])), int(sys.argv[3]))
