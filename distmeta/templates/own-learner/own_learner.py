"""An algorithm to edit. docs/extending.md says what a learner defines."""

import distmeta


class BothEnds(distmeta.LEARNERS["maml"]):
    """MAML whose meta-loss also counts the query loss before adapting, with a share `before`."""

    def __init__(self, model, before: float = 0.5, **maml):
        super().__init__(model, **maml)
        self.before = before

    def loss_weights(self, step):
        weights = super().loss_weights(step)
        return [self.before, *weights[1:-1], weights[-1] - self.before]
