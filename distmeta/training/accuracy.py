"""The metric of classification."""

from typing import Any

import torch
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch, Task
from distmeta.learners.learner import Learner, Logits
from distmeta.learners.params import Params
from distmeta.training.measurement import Measurement
from distmeta.training.metric import Metric


class Accuracy(Metric):
    """Share of an episode's queries that are classified correctly: normalised together (transductive, as published), and each with the
    support set's statistics alone (inductive).
    """

    name = "accuracy"
    unit = "%"
    scale = 100.0
    digits = 1
    axis = None
    selected = 1
    headline = 0
    notes = ("an episode's queries normalised together, as papers publish", "each query by itself, as in use")

    def columns(self, learner: Learner) -> list[str]:
        return ["transductive", "inductive"]

    def score(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> Tensor:
        return accuracies(self.logits(learner, meta_params, episode), episode.query_labels[0])

    def logits(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> Logits:
        """What the network, adapted to the episode, answers to its queries."""
        return learner.predict(learner.adapt(meta_params, episode), episode.query_images[0])

    def chance(self, task: Task) -> float:
        return 1 / task.way

    def keys(self, measurement: Measurement) -> dict[str, Any]:
        (transductive, inductive), (ci95, ci95_inductive) = measurement.values, measurement.ci95
        return {"accuracy": transductive, "ci95": ci95, "accuracy_inductive": inductive, "ci95_inductive": ci95_inductive}


def accuracies(logits: Logits, labels: Tensor) -> Tensor:
    """The part of the queries, labelled (M,), that each kind of logits (M, N) gets right: (2,) in float64."""
    return torch.stack([(kind.argmax(1) == labels).double().mean() for kind in logits])
