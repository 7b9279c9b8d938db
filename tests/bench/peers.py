"""Peers' networks with peers' weights: our evaluation gives their evaluation's answer on the same episodes.

    git clone https://github.com/yinboc/few-shot-meta-baseline
    git clone https://github.com/jakesnell/prototypical-networks
    python tests/bench/peers.py few-shot-meta-baseline ./few-shot-meta-baseline [--weights FILE] [--packed FOLDER]
    python tests/bench/peers.py prototypical-networks ./prototypical-networks [--weights FILE] [--packed FOLDER]

The network, its forward pass, distances and accuracy are the clone's code; ours are `build_model`, the learner and `evaluate`, as a run
tests. Weights are a file that the peer saved (of few-shot-meta-baseline also a Classifier-Baseline; of prototypical-networks a state dict)
or, without one, drawn at random and run over images until their running statistics mean something. Episodes come from the test split of a
packed dataset or, without one, from classes of noise. Both compute in float64, where equal mathematics agrees to rounding. Exit code 1
unless every episode's accuracy is equal and the logits differ by less than 1e-9 of their size.
"""

import importlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
import typer
from torch import Tensor, nn

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.data.shards import Dataset
from distmeta.data.stream import EpisodeStream
from distmeta.learners import build_learner
from distmeta.learners.params import Params
from distmeta.models import build_model
from distmeta.training.accuracy import Accuracy
from distmeta.training.evaluate import evaluate
from distmeta.training.intervals import mean_and_ci95

TOLERANCE = 1e-9
SETTLING = 4  # batches that give random weights their running statistics


class Peer(NamedTuple):
    """`make` builds their network from a weights file or none; `answer` is their evaluation: logits (M, N) and accuracy of one episode."""

    commit: str
    image: tuple[int, int, int]  # C, H, W
    model: dict[str, Any]
    learner: str
    make: Callable[[Path | None], nn.Module]
    answer: Callable[[nn.Module, EpisodeBatch, Task], tuple[Tensor, float]]
    names: list[tuple[str, str]]  # regular expressions of parts of their parameters' names, and what they are in ours


def meta_baseline(weights: Path | None) -> nn.Module:
    models = importlib.import_module("models")
    if weights is None:
        return models.make("meta-baseline", encoder="resnet12")
    saved = torch.load(weights, map_location="cpu", weights_only=True)
    if saved["model"] == "meta-baseline":
        return models.load(saved)
    whole = models.make("meta-baseline", encoder=None)
    whole.encoder = models.load(saved).encoder
    return whole


def meta_baseline_answer(network: nn.Module, episode: EpisodeBatch, task: Task) -> tuple[Tensor, float]:
    """The loop of their test_few_shot.py, whose data are the images of class after class."""
    utils, few_shot = importlib.import_module("utils"), importlib.import_module("utils.few_shot")
    images = torch.cat([by_class(episode.support_images, task), by_class(episode.query_images, task)], 1)
    support, queries = few_shot.split_shot_query(images.flatten(0, 1), task.way, task.shot, task.queries)
    logits = network(support, queries).view(-1, task.way)
    return logits, utils.compute_acc(logits, few_shot.make_nk_label(task.way, task.queries))


def prototypical(weights: Path | None) -> nn.Module:
    network = importlib.import_module("protonets.models").get_model("protonet_conv", {"x_dim": [1, 28, 28], "hid_dim": 64, "z_dim": 64})
    if weights is not None:
        network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return network


def prototypical_answer(network: nn.Module, episode: EpisodeBatch, task: Task) -> tuple[Tensor, float]:
    """Their Protonet.loss, as scripts/predict/few_shot/eval.py calls it; logits by their distances."""
    sample = {"xs": by_class(episode.support_images, task), "xq": by_class(episode.query_images, task)}
    _, result = network.loss(sample)  # type: ignore[operator]
    distance = importlib.import_module("protonets.models.utils").euclidean_dist
    encoder: Any = network.encoder
    centroids = encoder(sample["xs"].flatten(0, 1)).view(task.way, task.shot, -1).mean(1)
    return -distance(encoder(sample["xq"].flatten(0, 1)), centroids), result["acc"]


def by_class(images: Tensor, task: Task) -> Tensor:
    """(1, N*M, C, H, W), class after class, as (N, M, C, H, W)."""
    return images.view(task.way, -1, *images.shape[2:])


PEERS = {
    "few-shot-meta-baseline": Peer(
        "779fae39dad3537e7c801049c858923e2a352dfe",
        (3, 80, 80),
        {"name": "resnet12", "norm": "running", "widths": [64, 128, 256, 512]},
        "meta-baseline",
        meta_baseline,
        meta_baseline_answer,
        [
            (r"^temp$", "temperature"),
            *((rf"^encoder\.layer{number + 1}\.", f"blocks.{number}.0.") for number in range(4)),
            (r"\.downsample\.", ".shortcut."),
            *((rf"\.conv{number}\.", f".{name}.0.") for number, name in enumerate(("first", "second", "third"), 1)),
            *((rf"\.bn{number}\.", f".{name}.1.") for number, name in enumerate(("first", "second", "third"), 1)),
        ],
    ),
    "prototypical-networks": Peer(
        "c9bb4d258267c11cb6e23f0a19242d24ca98ad8a",
        (1, 28, 28),
        {"name": "conv4", "norm": "running", "filters": 64},
        "protonet",
        prototypical,
        prototypical_answer,
        [(r"^encoder\.(\d)\.0\.", r"blocks.\1.conv."), (r"^encoder\.(\d)\.1\.", r"blocks.\1.norm.")],
    ),
}


def translated(theirs: dict[str, Tensor], names: list[tuple[str, str]]) -> Params:
    """Their state under our names. Our convolutions have no bias before a norm: one moves the running mean."""
    ours = {}
    for name, value in theirs.items():
        for pattern, ours_name in names:
            name = re.sub(pattern, ours_name, name)
        ours[name] = value.clone()
    for name in [name for name in ours if name.endswith(".conv.bias")]:
        ours[name.replace(".conv.bias", ".norm.running_mean")] -= ours.pop(name)
    return {name: value for name, value in ours.items() if not name.endswith("num_batches_tracked")}


class Noise:
    """Episodes whose classes are smooth pictures drawn at random, and whose images are these under noise."""

    seed = 0

    def __init__(self, task: Task, image: tuple[int, int, int]) -> None:
        self.task, self.image = task, image

    def evaluation(self, indices: list[int]) -> Iterator[EpisodeBatch]:
        way, shot, queries = self.task.way, self.task.shot, self.task.queries
        for index in indices:
            random = torch.Generator().manual_seed(index)
            channels, *size = self.image
            classes = nn.functional.interpolate(torch.randn(way, channels, 4, 4, generator=random), size, mode="bilinear")[:, None]
            images = classes + torch.randn(way, shot + queries, *self.image, generator=random)
            labels = torch.arange(way)
            yield EpisodeBatch(
                step=0,
                slots=[index],
                support_images=images[:, :shot].flatten(0, 1)[None],
                support_labels=labels.repeat_interleave(shot)[None],
                query_images=images[:, shot:].flatten(0, 1)[None],
                query_labels=labels.repeat_interleave(queries)[None],
            )


class Recorded:
    """A stream that keeps the episodes that it gave, so that a peer can be asked about the same."""

    def __init__(self, stream: Noise | EpisodeStream) -> None:
        self.task, self.seed, self.stream = stream.task, stream.seed, stream
        self.episodes: list[EpisodeBatch] = []

    def evaluation(self, indices: list[int]) -> Iterator[EpisodeBatch]:
        for batch in self.stream.evaluation(indices):
            self.episodes += [episode.like(torch.zeros((), dtype=torch.float64)) for episode in batch.each()]
            yield batch


def settled(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Give the norms of a network with random weights the running statistics of images."""
    network.train()
    for images in batches:
        network.encoder(images)  # type: ignore[operator]


def difference(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference of logits, as a share of the largest one; ours may differ from theirs by a constant for each query."""
    centred = [logits - logits.mean(1, keepdim=True) for logits in (ours, theirs)]
    return ((centred[0] - centred[1]).abs().max() / centred[1].abs().max()).item()


def check_commit(clone: Path, wanted: str) -> None:
    command = ["git", "-C", str(clone), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    if found != wanted:
        print(f"{clone} is at {found or 'no commit'}; the script was written for {wanted}", file=sys.stderr)


def main(
    name: Annotated[str, typer.Argument(help=f"One of {', '.join(PEERS)}.")],
    clone: Annotated[Path, typer.Argument(help="Clone of the peer's repository.", exists=True, file_okay=False)],
    weights: Annotated[Path | None, typer.Option(help="Weights that the peer's code saved (default: random ones).")] = None,
    packed: Annotated[Path | None, typer.Option(help="Packed dataset (default: noise).")] = None,
    shot: int = 1,
    episodes: int = 20,
) -> None:
    if name not in PEERS:
        raise typer.BadParameter(f"{name} is not a known peer; give one of {', '.join(PEERS)}")
    peer, task = PEERS[name], Task(way=5, shot=shot, queries=15)
    check_commit(clone, peer.commit)
    sys.path.insert(0, str(clone))
    torch.manual_seed(0)
    network = peer.make(weights).double()
    plain = EpisodeStream(Dataset(str(packed)), "test", task, seed=0, image_size=peer.image[-1]) if packed else Noise(task, peer.image)
    if weights is None:
        settled(network, (batch.query_images[0].double() for batch in plain.evaluation(list(range(episodes, episodes + SETTLING)))))
    network.eval()
    stream = Recorded(plain)
    learner = build_learner(name=peer.learner, model=build_model(**peer.model, input_shape=peer.image, outputs=task.way, seed=0).double())
    params, _ = learner.start_from(translated(network.state_dict(), peer.names), str(clone))
    ours = evaluate(Accuracy(), learner, params, stream, episodes, "running").headline
    order = [episode.slots[0] for episode in stream.episodes]
    worst, theirs = 0.0, torch.zeros_like(ours)
    with torch.no_grad():
        for index, episode in zip(order, stream.episodes, strict=True):
            logits, theirs[index] = peer.answer(network, episode, task)
            answer = learner.predict(learner.adapt(params, episode), episode.query_images[0])
            worst = max(worst, difference(answer.inductive, logits))
    print(f"{name}, {episodes} episodes of 5-way {shot}-shot, float64")
    for who, accuracies in (("theirs", theirs), ("ours", ours)):
        mean, ci95 = mean_and_ci95(accuracies.numpy())
        print(f"{who:8} {100 * (mean or 0):.4f} ± {100 * (ci95 or 0):.4f} %")
    unequal = int(((ours - theirs).abs() > 1e-6).sum())  # their accuracy is a float32
    print(f"episodes with another accuracy: {unequal}; largest difference of logits: {worst:.1e} of their size")
    if unequal or worst > TOLERANCE:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
