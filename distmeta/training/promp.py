"""ProMP: several clipped updates of the same trajectories (Rothfuss et al. 2019, arXiv:1810.06784, algorithm 1)."""

from typing import Any

from distmeta.data.episodes import Batch
from distmeta.learners.learner import Learner
from distmeta.learners.maml import MAML
from distmeta.learners.trust_region import hold
from distmeta.training.metrics_folder import Record
from distmeta.training.outer import OuterUpdate
from distmeta.training.reduce import Mean, Reduced


class ProMP(OuterUpdate):
    """A step draws trajectories once and learns from them in `epochs` optimiser updates, each with a new meta-gradient.

    The objective clips the ratio of likelihoods (`PolicyGradient.clip_ratio`). The paper's penalty on the divergence is omitted: with its
    coefficient of 0.0005 it is negligible compared with the clipping.
    """

    def __init__(self, epochs: int, **optimizer: Any) -> None:
        super().__init__(**optimizer)
        self.epochs = epochs

    def prepare(self, learner: Learner, batch: Batch) -> Batch:
        assert isinstance(learner, MAML)
        return hold(learner, self.meta_params, batch)

    def step(self, learner: Learner, batch: Batch, mean: Mean, step: int) -> tuple[Reduced, Record]:
        """Ends early as a failed step if a meta-gradient is not finite. Otherwise returns the first epoch's result."""
        first, figures = super().step(learner, batch, mean, step)
        last = first
        for _ in range(self.epochs - 1):
            if last.meta_gradient is None:
                return last, {}
            last, _ = super().step(learner, batch, mean, step)
        return (first, figures) if last.meta_gradient is not None else (last, {})
