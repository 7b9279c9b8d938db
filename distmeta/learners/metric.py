"""Learners that classify by distance to class centroids in feature space: no inner loop, and any number of classes."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from distmeta.bounds import Positive, PositiveFloat
from distmeta.data.episodes import EpisodeBatch, LabelledBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward, Method, frozen
from distmeta.learners.inner import MetaGradients, gradients_of
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Cost, Supervised
from distmeta.learners.params import Params, floating_parameter
from distmeta.models.head import head_of, is_head

IMAGES_PER_SLOT = 32  # default temperature of Classifier-Baseline
_CENTROIDS = "centroids"


class MetricLearner(Learner):
    """Queries are compared with the mean support features of each class. Features are the inputs of the network's head, which is not
    used.
    """

    any_way = True
    method: ClassVar[Method] = "features"

    def __init__(self, model: nn.Module, **common: Any) -> None:
        super().__init__(model, **common)
        head_of(model)

    def initial_params(self) -> Params:
        return {name: value for name, value in super().initial_params().items() if not is_head(self.model, name)}

    def check_names(self) -> None:
        super().check_names()
        if any(name == _CENTROIDS for name, _ in (*self.model.named_parameters(), *self.model.named_buffers())):
            raise ConfigError(f"the network's {_CENTROIDS} has the name of what {type(self).__name__} adapts", "rename it")

    @abstractmethod
    def logits(self, params: Params, features: Tensor, centroids: Tensor) -> Tensor:
        """(T, M, N) for features (T, M, D) and centroids (T, N, D)."""

    def cost(self, outputs: Tensor, targets: Tensor) -> Cost:
        assert isinstance(self.objective, Supervised)  # only classification has centroids
        return self.objective.cost(outputs, targets)

    @torch.no_grad()
    def adaptation(self, meta_params: Params, episode: EpisodeBatch, steps: int | None = None) -> Iterator[Params]:
        with frozen(self.model, running_only=True):
            features = self.forward()(meta_params, episode.support_images, method="features")
        centroids, _ = class_means(features, episode.support_labels, int(episode.support_labels.max()) + 1)
        yield meta_params | {_CENTROIDS: centroids[0]}

    def outputs(self, adapted: Params, queries: Tensor) -> Tensor:
        features = self.forward()(adapted, queries[None], method="features")
        return self.logits(adapted, features, adapted[_CENTROIDS][None])[0]


def class_means(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean feature of each class (T, classes, D), from features (T, M, D) and labels (T, M), and which classes have any (T, classes)."""
    members = one_hot(labels, classes).to(features.dtype).transpose(1, 2)
    counts = members.sum(2, keepdim=True)
    return members @ features / counts.clamp_min(1), counts.squeeze(2) > 0


def cosine(features: Tensor, centroids: Tensor) -> Tensor:
    """Cosine of the angle between each feature and each centroid (T, M, N)."""
    return nn.functional.normalize(features, dim=-1) @ nn.functional.normalize(centroids, dim=-1).transpose(1, 2)


class EpisodicMetricLearner(MetricLearner):
    """Training is like prediction: the queries of an episode are classified by its support set. `normalisation`: in training, support set
    and queries are normalised separately ("separate"), or together by the statistics of all images of the episode ("joint", as in the
    authors' code). Evaluation does not depend on it.
    """

    def __init__(self, model: nn.Module, normalisation: Literal["separate", "joint"] = "separate", **common: Any) -> None:
        super().__init__(model, **common)
        self.normalisation = normalisation

    def training_features(self, params: Params, forward: Forward, batch: EpisodeBatch) -> tuple[Tensor, Tensor]:
        """Features of the support set and of the queries, (T, M, D) each."""
        if self.normalisation == "joint":
            images = torch.cat([batch.support_images, batch.query_images], 1)
            support = batch.support_images.shape[1]
            features = forward(params, images, 0, "features", outer=True)
            return features[:, :support], features[:, support:]
        support_features = forward(params, batch.support_images, 0, "features", outer=True)
        return support_features, forward(params, batch.query_images, 1, "features", outer=True)

    def task_gradients(self, params: Params, forward: Forward, batch: EpisodeBatch) -> MetaGradients:
        # One place per support image. Counting the classes instead would wait for a GPU.
        places = batch.support_labels.shape[1]
        support, queries = self.training_features(params, forward, batch)
        centroids, present = class_means(support, batch.support_labels, places)
        outputs = self.logits(params, queries, centroids)
        outputs = outputs.masked_fill(~present.unsqueeze(1), float("-inf"))
        losses, scores = self.cost(outputs, batch.query_labels)
        return MetaGradients(gradients_of(losses, self.trained(params)), losses, scores)


class ProtoNet(EpisodicMetricLearner):
    """Prototypical networks: logits are negative squared Euclidean distances (Snell et al. 2017, arXiv:1703.05175, equation 2)."""

    def logits(self, params: Params, features: Tensor, centroids: Tensor) -> Tensor:
        squares = features.square().sum(2, keepdim=True) + centroids.square().sum(2).unsqueeze(1)
        return 2 * features @ centroids.transpose(1, 2) - squares


class MetaBaseline(EpisodicMetricLearner):
    """Meta-Baseline: cosine logits times a temperature learned with the features (Chen et al. 2021, arXiv:2003.04390, equation 3).

    It is meant to start from a Classifier-Baseline (init_from). `temperature` is the initial scale; the paper uses 10.
    """

    def __init__(self, model: nn.Module, temperature: PositiveFloat = 10.0, **common: Any) -> None:
        super().__init__(model, **common)
        self.temperature = temperature

    def initial_params(self) -> Params:
        like = floating_parameter(self.model)
        return super().initial_params() | {"temperature": like.new_tensor(self.temperature)}

    def logits(self, params: Params, features: Tensor, centroids: Tensor) -> Tensor:
        return params["temperature"].view(-1, 1, 1) * cosine(features, centroids)


class ClassifierBaseline(MetricLearner):
    """Classifier-Baseline: supervised on all training classes. For new classes the head is dropped, and the nearest centroid by cosine is
    chosen.

    (Chen et al. 2021, arXiv:2003.04390, section 3.1.) Trains on labelled batches: a slot is `images_per_slot` images of any classes,
    normalised separately from other slots. The width of the network's head is the number of training classes.
    """

    trains_on: ClassVar = "labelled batches"
    method: ClassVar[Method] = "forward"
    _SCALE = 10.0  # it changes only probabilities, not the order of classes

    def __init__(self, model: nn.Module, images_per_slot: Positive = IMAGES_PER_SLOT, **common: Any) -> None:
        super().__init__(model, **common)
        self.images_per_slot = images_per_slot

    def initial_params(self) -> Params:
        return Learner.initial_params(self)

    def task_gradients(self, params: Params, forward: Forward, batch: LabelledBatch) -> MetaGradients:
        losses, scores = self.cost(forward(params, batch.images, outer=True), batch.labels)
        return MetaGradients(gradients_of(losses, self.trained(params)), losses, scores)

    def logits(self, params: Params, features: Tensor, centroids: Tensor) -> Tensor:
        return self._SCALE * cosine(features, centroids)
