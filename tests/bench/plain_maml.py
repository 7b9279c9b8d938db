"""MAML as forty lines of plain torch, on the data of a config and in the same time as its run: what distmeta's machinery is worth.

    python tests/bench/plain_maml.py configs/omniglot_5way_1shot_maml.yaml --minutes 12 [--seed 0] [--threads 2]

Between the two rulers stands what somebody writes who needs one run on one machine: torch's own layers and functional_call, second order
by create_graph, one process. The config gives dataset, way, shot, queries, filters, rates, inner steps and meta-batch; episodes come from
distmeta's streams, so that both see the same images, and the test is the config's own. Compare its transductive accuracy with that of
`distmeta train` with the same config in as many minutes (`tests/bench/steps.py` says how many steps these are).
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, cast

import torch
import typer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from distmeta.assembly.run import Run
from distmeta.config import Config, load_config
from distmeta.data.episodes import EpisodeBatch
from distmeta.training.intervals import mean_and_ci95

# ---------------------------------------------------------------------------------------------------------------------------------------


class Network(nn.Module):
    def __init__(self, channels: int, filters: int, side: int, way: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs in (channels, filters, filters, filters):
            norm = nn.BatchNorm2d(filters, track_running_stats=False)
            layers += [nn.Conv2d(inputs, filters, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(filters * (side // 16) ** 2, way))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def adapted(
    network: nn.Module, params: dict[str, Tensor], images: Tensor, labels: Tensor, lr: float, steps: int, graph: bool
) -> dict[str, Tensor]:
    for _ in range(steps):
        loss = cross_entropy(functional_call(network, params, (images,)), labels)
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=graph)
        params = {name: value - lr * gradient for (name, value), gradient in zip(params.items(), gradients, strict=True)}
    return params


def train(network: nn.Module, batches: Iterator[EpisodeBatch], lr: float, steps: int, outer_lr: float, seconds: float) -> int:
    optimizer = torch.optim.Adam(network.parameters(), outer_lr)
    begin, count = time.monotonic(), 0
    while (elapsed := time.monotonic() - begin) < seconds:
        optimizer.param_groups[0]["lr"] = outer_lr * (1 + torch.cos(torch.tensor(torch.pi * elapsed / seconds)).item()) / 2
        batch = next(batches)
        optimizer.zero_grad()
        for images, labels, queries, answers in zip(
            batch.support_images, batch.support_labels, batch.query_images, batch.query_labels, strict=True
        ):
            params = adapted(network, dict(network.named_parameters()), images, labels, lr, steps, graph=True)
            (cross_entropy(functional_call(network, params, (queries,)), answers) / len(batch)).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 10)
        optimizer.step()
        count += 1
    return count


# ---------------------------------------------------------------------------------------------------------------------------------------


def test(network: nn.Module, config: Config, this: Run) -> tuple[float | None, float | None]:
    """Transductive accuracy on the config's test episodes, as papers quote it."""
    learner, accuracies = this.learner, []
    for batch in this.domain.evaluation("test").evaluation(list(range(config.data.eval.episodes))):
        for episode in cast(EpisodeBatch, batch).each():
            images, labels = episode.support_images[0], episode.support_labels[0]
            lr, steps = config.learner.settings["inner_lr"], learner.inner_steps_eval
            params = adapted(network, dict(network.named_parameters()), images, labels, lr, steps, graph=False)
            with torch.no_grad():
                answers = functional_call(network, params, (episode.query_images[0],)).argmax(1)
            accuracies.append((answers == episode.query_labels[0]).double().mean().item())
    return mean_and_ci95(accuracies)


def main(
    config: Path,
    minutes: Annotated[float, typer.Option(help="Training time.")] = 12.0,
    seed: int = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    sets: Annotated[list[str] | None, typer.Option("--set", help="As for distmeta train.")] = None,
) -> None:
    made = load_config(config, [*(sets or []), f"seed={seed}"])
    if (made.model.name, made.learner.name) != ("conv4", "maml"):
        raise typer.BadParameter(f"{config} does not train Conv-4 by maml; give a config that does")
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    this = Run.of(made)
    batches = cast(Iterator[EpisodeBatch], this.domain.training(range(made.outer.meta_batch_size), 0))  # of a packed dataset
    channels, side = next(batches).support_images.shape[2:4]
    network = Network(channels, made.model.own.get("filters", 64), side, made.data.way)
    own = made.learner.settings
    count = train(network, batches, own["inner_lr"], own.get("inner_steps", 5), made.outer.lr, 60 * minutes)
    mean, ci95 = test(network, made, this)
    print(f"{count} steps in {minutes:g} min on {threads} threads; test, transductive: {100 * (mean or 0):.2f} ± {100 * (ci95 or 0):.2f} %")


if __name__ == "__main__":
    typer.run(main)
