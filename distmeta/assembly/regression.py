"""Regression: episodes of points from a family of functions."""

from collections.abc import Iterator, Sequence

from distmeta.assembly.domain import Domain
from distmeta.config import AugmentConfig, Config
from distmeta.data import functions
from distmeta.data.episodes import Batch
from distmeta.data.splits import Split
from distmeta.errors import ConfigError
from distmeta.learners.objective import SquaredError
from distmeta.training.evaluate import Stream
from distmeta.training.squared_error import SquaredErrorByStep


class Regression(Domain):
    """Episodes of points from a family of functions."""

    outputs = 1
    objective = SquaredError()
    metric = SquaredErrorByStep()

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.data.functions is None:
            raise ConfigError("data.domain=regression learns functions, but data.functions is not set", "add data.functions")
        self.name = config.data.functions
        self.fingerprint = functions.fingerprint(self.name)
        self.input_shape: tuple[int, ...] = functions.FAMILIES[self.name].shape

    def check(self) -> None:
        """Raises ConfigError if the learner classifies, or a key of images is set."""
        super().check()
        data = self.config.data
        if data.image_size is not None or data.class_rotations or data.augment != AugmentConfig():
            raise ConfigError(f"data.functions={self.name} has no images", "remove data.image_size, data.class_rotations and data.augment")

    def training(self, slots: Sequence[int], start_step: int) -> Iterator[Batch]:
        return functions.FunctionStream(self.name, "train", self.train_task, self.config.seed).training(slots, start_step)

    def example(self, slots: int) -> Batch:
        stream = functions.FunctionStream(self.name, "train", self.train_task, self.config.seed)
        return next(stream.training(range(slots)))

    def describe(self, step: int, slot: int) -> str:
        return f"a {self.name}"

    def evaluation(self, split: Split) -> Stream:
        return functions.FunctionStream(self.name, split, self.eval_task, self.config.data.eval.seed)
