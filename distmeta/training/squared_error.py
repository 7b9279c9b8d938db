"""The metric of regression."""

from typing import Any

import torch
from torch import Tensor

from distmeta.data.episodes import EpisodeBatch
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.training.measurement import Measurement
from distmeta.training.metric import Metric

_LARGEST = 2.0**30


class SquaredErrorByStep(Metric):
    """Mean squared error over an episode's queries after 0, 1, … inner steps. A diverged error is recorded as 2^30."""

    name = "squared error"
    more_is_better = False

    def score(self, learner: Learner, meta_params: Params, episode: EpisodeBatch) -> Tensor:
        queries, targets = episode.query_images[0], episode.query_labels[0]
        outputs = [learner.predict(adapted, queries).inductive for adapted in learner.adaptation(meta_params, episode)]
        errors = torch.stack([(output - targets).square().mean() for output in outputs]).double()
        return errors.nan_to_num(_LARGEST, _LARGEST).clamp(max=_LARGEST)

    def keys(self, measurement: Measurement) -> dict[str, Any]:
        by_step = dict(zip(measurement.columns, measurement.values, strict=True))
        return {"mse_by_step": by_step, "ci95_by_step": dict(zip(measurement.columns, measurement.ci95, strict=True))}
