"""Learning in context: the network reads the support set as a sequence and answers a query, without an inner loop."""

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from distmeta.data.episodes import EpisodeBatch
from distmeta.errors import ConfigError
from distmeta.learners.forward import Forward
from distmeta.learners.inner import MetaGradients, gradients_of
from distmeta.learners.learner import Learner
from distmeta.learners.objective import Supervised
from distmeta.learners.params import Params
from distmeta.models.head import head_name, head_of

_EXAMPLES = "examples"  # keys of the adapted support set among the parameters


class InContext(Learner):
    """A network trained on episodes to answer one query from the given examples.

    (Santoro et al. 2016, arXiv:1605.06065; Garg et al. 2022, arXiv:2208.01066.) It needs a network of sequences with a linear `head`, such
    as `transformer` or `lstm`. A sequence is the support set and one query, an element each: the input's values, the target (one-hot for a
    class), and 1 for an example or 0 for the query, whose target is left at zero. Every query has a separate sequence, so an answer does
    not depend on the other queries.
    """

    def __init__(self, model: nn.Module, **common: Any) -> None:
        super().__init__(model, **common)
        if not isinstance(self.objective, Supervised):
            raise ConfigError("learner in-context reads examples with targets, which this domain does not have", "choose maml or reptile")

        head = head_of(model)
        if not isinstance(head, nn.Linear):
            problem = f"{head_name(model)} is {type(head).__name__}"
            raise ConfigError(f"learner in-context needs a linear head; {problem}", "choose another network, such as transformer")
        self._targets = head.out_features

    @classmethod
    def network_shape(cls, input_shape: tuple[int, ...], outputs: int) -> tuple[int, ...]:
        return (1, prod(input_shape) + outputs + 1)

    @torch.no_grad()
    def check_network(self, inputs: Tensor) -> None:
        try:
            self.model(torch.cat([inputs, inputs], 1))
        except Exception as error:  # a network that reads only one length may raise anything
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"learner in-context needs a network that reads sequences of any length: {reason}", "set model.name=transformer or lstm"
            ) from None

    def task_gradients(self, params: Params, forward: Forward, batch: EpisodeBatch) -> MetaGradients:
        assert isinstance(self.objective, Supervised)
        shown = examples(batch.support_images, batch.support_labels, self._targets)
        outputs = forward(params, sequences(shown, batch.query_images), outer=True)
        losses, scores = self.objective.cost(outputs, batch.query_labels)
        return MetaGradients(gradients_of(losses, self.trained(params)), losses, scores)

    def adaptation(self, meta_params: Params, episode: EpisodeBatch, steps: int | None = None) -> Iterator[Params]:
        yield meta_params | {_EXAMPLES: examples(episode.support_images, episode.support_labels, self._targets)[0]}

    def with_statistics(self, adapted: Params, inputs: Tensor) -> Params:
        return adapted  # the networks of sequences have no batch norm

    def outputs(self, adapted: Params, queries: Tensor) -> Tensor:
        return self.forward()(adapted, sequences(adapted[_EXAMPLES][None], queries[None]))[0]


def examples(inputs: Tensor, targets: Tensor, outputs: int) -> Tensor:
    """Elements (T, M, D + outputs + 1) of examples: inputs (T, M, …) of D values, targets (T, M, outputs) or class numbers (T, M)."""
    shown = targets if targets.is_floating_point() else one_hot(targets, outputs)
    flat = inputs.flatten(2)
    return torch.cat([flat, shown.to(flat.dtype), flat.new_ones(*flat.shape[:2], 1)], 2)


def sequences(shown: Tensor, queries: Tensor) -> Tensor:
    """The sequence of each query (T, Q, M + 1, E): the examples (T, M, E), then the query (T, Q, …) with a target of zeros."""
    flat = queries.flatten(2)
    tasks, count, values = flat.shape
    query = torch.cat([flat, flat.new_zeros(tasks, count, shown.shape[2] - values)], 2)
    return torch.cat([shown[:, None].expand(tasks, count, *shown.shape[1:]), query[:, :, None]], 2)
