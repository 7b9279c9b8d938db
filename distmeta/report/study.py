"""The study of a report: test episodes adapted step by step, and errors between categories."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from distmeta.data.class_names import shown
from distmeta.data.episodes import EpisodeBatch
from distmeta.data.stream import EpisodeStream
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params, floating

_PICTURED = 3  # episodes
_QUERIES_PICTURED = 2  # of each class


class Pictured(NamedTuple):
    """One query of an episode: its image (C, H, W) as network input, its class, the predicted class and its probability."""

    image: Tensor
    truth: str
    said: str
    probability: float


class PicturedEpisode(NamedTuple):
    """support: (image, class) of each support image."""

    support: list[tuple[Tensor, str]]
    queries: list[Pictured]


class Study(NamedTuple):
    """Test episodes 0, 1, … adapted by the meta-trained network and by the same one at its random initialisation.

    trained, random_init: inductive accuracy (episodes, steps + 1) after 0, 1, … inner steps; confused[(a, b)]: queries of category a, in
    episodes with another class of category b: (number predicted as that class, number of queries).
    """

    trained: Tensor
    random_init: Tensor
    pictured: list[PicturedEpisode]
    confused: dict[tuple[str, str], tuple[int, int]]
    preprocessing_mean: list[float]
    preprocessing_std: list[float]


def study(learner: Learner, meta_params: Params, random_init: Params, stream: EpisodeStream, episodes: int) -> Study:
    """Adapt to the first `episodes` evaluation episodes of `stream`. Raises DataError if they cannot be read."""
    trained: list[Tensor] = []
    pictured: list[PicturedEpisode] = []
    taken: Counter[tuple[str, str]] = Counter()
    chances: Counter[tuple[str, str]] = Counter()
    for episode, probabilities in _adapted(learner, meta_params, stream, episodes):
        trained.append(_accuracies(probabilities, episode))
        names, categories = _names(stream, episode.slots[0])
        _count(probabilities[-1].argmax(1), episode.query_labels[0], categories, taken, chances)
        if len(pictured) < _PICTURED:
            pictured.append(_picture(episode, probabilities[-1], names))
    untrained = [_accuracies(probabilities, episode) for episode, probabilities in _adapted(learner, random_init, stream, episodes)]
    confused = {pair: (taken[pair], count) for pair, count in chances.items()}
    return Study(
        trained=torch.stack(trained),
        random_init=torch.stack(untrained),
        pictured=pictured,
        confused=confused,
        preprocessing_mean=stream.preprocessing.mean,
        preprocessing_std=stream.preprocessing.std,
    )


def _adapted(learner: Learner, params: Params, stream: EpisodeStream, episodes: int) -> Iterator[tuple[EpisodeBatch, list[Tensor]]]:
    """Each of the first `episodes` evaluation episodes, with its result of `_by_step`."""
    parameter = floating(params)
    with learner.keeping_features(params):
        for batch in stream.evaluation(list(range(episodes))):
            for episode in batch.like(parameter).each():
                yield episode, _by_step(learner, params, episode)


def _by_step(learner: Learner, params: Params, episode: EpisodeBatch) -> list[Tensor]:
    """Probabilities (M, N) of the queries, each by itself, after 0, 1, … inner steps."""
    return [
        learner.predict(learner.with_statistics(adapted, episode.support_images[0]), episode.query_images[0]).inductive.softmax(1)
        for adapted in learner.adaptation(params, episode)
    ]


def _accuracies(probabilities: list[Tensor], episode: EpisodeBatch) -> Tensor:
    return torch.stack([(row.argmax(1) == episode.query_labels[0]).double().mean() for row in probabilities]).cpu()


def _names(stream: EpisodeStream, index: int) -> tuple[list[str], list[str]]:
    """Names and categories of the episode's classes, by label."""
    dataset, ids = stream.dataset, stream.evaluation_episode(index).class_ids.tolist()
    categories = [dataset.manifest.classes[class_id].category for class_id in ids]
    return [dataset.shown(class_id) for class_id in ids], [shown(category, dataset.manifest.names) for category in categories]


def _count(said: Tensor, truth: Tensor, categories: list[str], taken: Counter, chances: Counter) -> None:
    for answer, label in zip(said.tolist(), truth.tolist(), strict=True):
        for other, category in enumerate(categories):
            if other != label:
                chances[categories[label], category] += 1
                taken[categories[label], category] += answer == other


def _picture(episode: EpisodeBatch, probabilities: Tensor, names: list[str]) -> PicturedEpisode:
    support = [(image, names[label]) for image, label in zip(episode.support_images[0], episode.support_labels[0].tolist(), strict=True)]
    shown: Counter[int] = Counter()
    queries = []
    for image, label, row in zip(episode.query_images[0], episode.query_labels[0].tolist(), probabilities, strict=True):
        shown[label] += 1
        if shown[label] <= _QUERIES_PICTURED:
            queries.append(Pictured(image, names[label], names[int(row.argmax())], row.max().item()))
    return PicturedEpisode(support, queries)
