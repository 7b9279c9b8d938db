"""Adapting a published model and asking it, beside the same computation in bare torch.

    python tests/bench/adapt.py [--repeats 15] [--threads 1]

5-way 5-shot at 84 px, five inner steps, then 75 queries, each classified by itself with the support set's statistics. Both begin with uint8
pixels, take turns in one process with the allocator settings that workers have, and must agree on what each query is.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from distmeta.inference.model import Model, build
from distmeta.learners.allocator import ALLOCATOR
from distmeta.learners.params import Params
from distmeta.models import build_model

WAY, SHOT, QUERIES, SIZE, STEPS, LR = 5, 5, 75, 84, 5, 0.05
MEAN, STD = [0.48, 0.46, 0.41], [0.26, 0.26, 0.27]


def description(filters: int) -> dict[str, Any]:
    return {
        "model": {"name": "conv4", "input_shape": [3, SIZE, SIZE], "outputs": WAY, "filters": filters},
        "learner": {"name": "maml", "inner_lr": LR, "inner_steps": STEPS},
        "preprocessing": {"image_size": SIZE, "channels": 3, "resize": "squash", "mean": MEAN, "std": STD},
        "task": {"way": WAY, "shot": SHOT, "queries": QUERIES // WAY},
    }


def network(filters: int, params: Params) -> nn.Module:
    """Conv-4 as anybody writes it, with our values. Its batch norm remembers the statistics of the last batch alone."""
    layers: list[nn.Module] = []
    for channels in (3, filters, filters, filters):
        norm = nn.BatchNorm2d(filters, momentum=1.0)
        layers += [nn.Conv2d(channels, filters, 3, padding=1, bias=False), norm, nn.ReLU(), nn.MaxPool2d(2)]
    bare = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * (SIZE // 16) ** 2, WAY))
    bare.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.no_grad():
        for parameter, value in zip(bare.parameters(), params.values(), strict=True):
            parameter.copy_(value)
    return bare


def bare_torch(filters: int, params: Params, support: np.ndarray, labels: Tensor, queries: np.ndarray) -> Tensor:
    model = network(filters, params)
    optimizer = torch.optim.SGD(model.parameters(), LR)
    for _ in range(STEPS):
        optimizer.zero_grad()
        functional.cross_entropy(model(floats(support)), labels).backward()
        optimizer.step()
    with torch.no_grad():
        model(floats(support))  # the adapted network's statistics
        return model.eval()(floats(queries)).softmax(1)


def floats(pixels: np.ndarray) -> Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255)
    return images.sub_(torch.tensor(MEAN)[:, None, None]).div_(torch.tensor(STD)[:, None, None])


def seconds(call: Callable[[], object]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if not os.environ.keys() >= ALLOCATOR.keys():  # as workers have it, and before the process starts
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ALLOCATOR)
    torch.set_num_threads(arguments.threads)
    random = np.random.default_rng(0)
    classes = random.integers(0, 256, (WAY, SIZE, SIZE, 3))
    support, queries = (
        np.concatenate([(classes[label] + random.integers(0, 256, (count, SIZE, SIZE, 3))) // 2 for label in range(WAY)]).astype(np.uint8)
        for count in (SHOT, QUERIES // WAY)
    )
    labels = torch.arange(WAY).repeat_interleave(SHOT)
    for filters in (32, 64):
        about = description(filters)
        learner = build(about, build_model(**about["model"]).state_dict())
        model = Model("bench", about, learner, learner.initial_params())

        def ours(model: Model = model) -> Tensor:
            return model.adapt(support, labels).predict(queries)

        def theirs(filters: int = filters, params: Params = model.meta_params) -> Tensor:
            return bare_torch(filters, params, support, labels, queries)

        agree = (ours().argmax(1) == theirs().argmax(1)).float().mean().item()
        if agree < 0.95:
            sys.exit(f"the two agree on {100 * agree:.0f} % of the queries only: nothing to compare")
        turns = [(seconds(ours), seconds(theirs)) for _ in range(arguments.repeats)]
        low, middle, high = statistics.quantiles([mine / other for mine, other in turns], n=4, method="inclusive")
        mine, other = (1000 * statistics.median(column) for column in zip(*turns, strict=True))
        print(
            f"Conv-4, {filters} filters: {mine:.0f} ms, bare torch {other:.0f} ms: {middle:.2f} times ({low:.2f} to {high:.2f}), goal ≤ 1.2"
        )


if __name__ == "__main__":
    main()
