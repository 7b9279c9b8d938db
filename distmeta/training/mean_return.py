"""The metric of reinforcement learning."""

import torch
from torch import Tensor

from distmeta.envs.stream import TaskBatch
from distmeta.learners.finetune import FineTuning
from distmeta.learners.forward import Forward, Network
from distmeta.learners.learner import Learner
from distmeta.learners.params import Params
from distmeta.learners.policy_gradient import PolicyGradient
from distmeta.learners.trajectories import Trajectories
from distmeta.training.metric import Metric

_TOGETHER = 20  # tasks played at once. A rollout of twenty tasks takes three times as long as one of a single task.


class MeanReturn(Metric):
    """A task's undiscounted return after 0, 1, … inner steps: the mean over the trajectories that the next step learns from."""

    name = "return"
    digits = 2
    more_is_better = True

    def score(self, learner: Learner, meta_params: Params, episode: TaskBatch) -> Tensor:
        return self.scores(learner, meta_params, episode)[0]

    def scores(self, learner: Learner, meta_params: Params, batch: TaskBatch) -> Tensor:  # type: ignore[override]
        scores = []
        for chunk, places in batch.chunks(_TOGETHER):
            returns = [played.returns.mean(1) for played in after_each_step(learner, meta_params, chunk)]
            scores.append(torch.stack(returns, 1).double()[places])
        return torch.cat(scores)


def after_each_step(learner: Learner, meta_params: Params, batch: TaskBatch) -> list[Trajectories]:
    """The trajectories in T tasks after 0, 1, … inner steps. The next inner step learns from the same trajectories."""
    objective = learner.objective
    assert isinstance(objective, PolicyGradient)
    assert isinstance(learner, FineTuning)
    forward = Forward(learner.model, batched=True)
    params = {name: value.detach().expand(len(batch), *value.shape).clone() for name, value in learner.with_fixed(meta_params).items()}
    return [
        objective.trajectories(Network(forward, adapted), batch, step)
        for step, adapted in enumerate(learner.adaptations(forward, params, batch))
    ]
