"""Classification: episodes of images from the shards of a packed dataset."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distmeta.assembly.domain import Domain
from distmeta.config import AugmentConfig, Config
from distmeta.data.augment import augment
from distmeta.data.cache import ShardCache
from distmeta.data.episodes import Batch, EpisodeBatch, LabelledBatch
from distmeta.data.images import Preprocessing, channels_last
from distmeta.data.labelled import LabelledStream
from distmeta.data.location import Reading
from distmeta.data.shards import Dataset
from distmeta.data.splits import Split
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError
from distmeta.learners import learner_class
from distmeta.learners.learner import Learner
from distmeta.learners.metric import IMAGES_PER_SLOT
from distmeta.learners.objective import CrossEntropy
from distmeta.learners.params import Params
from distmeta.report.pictures import sections_of
from distmeta.report.section import Section
from distmeta.report.study import study
from distmeta.training.accuracy import Accuracy

_STUDIED = 50  # test episodes that a report draws and analyses


class Classification(Domain):
    """Episodes of images from the shards of a packed dataset.

    `outputs` is the width of the network's head: the classes of an episode, or those of the training split if it trains on labelled
    batches.
    """

    objective = CrossEntropy()
    metric = Accuracy()
    classes = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.dataset = open_dataset(config)
        self.name = self.dataset.manifest.dataset
        self.fingerprint = self.dataset.manifest.fingerprint
        self.preprocessing: Preprocessing = preprocessing_of(config, self.dataset.manifest.preprocessing)
        size = self.preprocessing.image_size
        self.input_shape: tuple[int, ...] = (self.preprocessing.channels, size, size)
        self._learner = learner_class(config.learner.name, allow_import=True)
        self.labelled = self._learner.trains_on == "labelled batches"
        self.outputs = len(self.dataset.class_ids("train")) if self.labelled else config.data.way

    def check(self) -> None:
        """Raises ConfigError if a split cannot serve its episodes, or if their number of classes is not the head's width."""
        super().check()
        data = self.config.data
        for key, way in (("data.way", data.way), ("data.eval.way", self.eval_task.way)):
            if way < 2:
                raise ConfigError(f"{key}={way}: a task needs at least two classes", f"set {key} to 2 or more")
        if not self.labelled and self.config.outer.steps:
            self.dataset.check_task("train", self.train_task)
        self.dataset.check_task("val", self.eval_task, "data.eval")
        self.dataset.check_task("test", self.eval_task, "data.eval")
        if self.eval_task.way != data.way and not self._learner.any_way:
            raise ConfigError(
                f"data.eval.way={data.eval.way} but data.way={data.way}: the network's head is as wide as data.way",
                "remove data.eval.way, or set both to the same number",
            )

    def training(self, slots: Sequence[int], start_step: int) -> Iterator[Batch]:
        """The slots' episodes, or labelled batches, from `start_step` on."""
        return self._training_stream().training(slots, start_step)

    def _training_stream(self) -> EpisodeStream | LabelledStream:
        config, data = self.config, self.config.data
        changes = None if data.augment == AugmentConfig() else partial(augment, **data.augment.model_dump())
        common: Any = {"augment": changes, "max_bad_fraction": data.max_bad_fraction, "preprocessing": self.preprocessing}
        if self.labelled:
            slots_per_step = config.outer.meta_batch_size
            return LabelledStream(
                dataset=self.dataset,
                split="train",
                images_per_slot=self._images_per_slot,
                slots_per_step=slots_per_step,
                seed=config.seed,
                image_size=data.image_size,
                **common,
            )
        return EpisodeStream(
            dataset=self.dataset, split="train", task=self.train_task, seed=config.seed, image_size=data.image_size, **common
        )

    def example(self, slots: int) -> Batch:
        """A batch of zeros with the shapes of `training`'s batches."""
        numbers, task = list(range(slots)), self.train_task
        if self.labelled:
            per_slot = self._images_per_slot
            return LabelledBatch(0, numbers, self._blank(slots, per_slot), torch.zeros(slots, per_slot, dtype=torch.int64))
        labels = torch.arange(task.way).expand(slots, task.way)
        support, queries = (self._blank(slots, task.way * images) for images in (task.shot, task.queries))
        return EpisodeBatch(
            step=0,
            slots=numbers,
            support_images=support,
            support_labels=labels.repeat_interleave(task.shot, 1),
            query_images=queries,
            query_labels=labels.repeat_interleave(task.queries, 1),
        )

    def _blank(self, slots: int, images: int) -> Tensor:
        return channels_last(torch.zeros(slots, images, *self.input_shape))

    @property
    def _images_per_slot(self) -> int:
        return self.config.learner.settings.get("images_per_slot") or IMAGES_PER_SLOT

    def describe(self, step: int, slot: int) -> str:
        """The classes of the training episode of (step, slot), for messages."""
        stream = self._training_stream()
        if isinstance(stream, LabelledStream):
            return "labelled images"
        class_ids = stream.training_episode(step, slot).class_ids
        return "classes " + ", ".join(self.dataset.shown(class_id) for class_id in class_ids)

    def sections(self, learner: Learner, trained: Params, random_init: Params) -> list[Section]:
        """Report sections: test episodes adapted step by step, their pictures, and which categories are confused."""
        episodes = min(_STUDIED, self.config.data.eval.episodes)
        return sections_of(study(learner, trained, random_init, self.evaluation("test"), episodes), self.eval_task.way)

    def evaluation(self, split: Split) -> EpisodeStream:
        data = self.config.data
        return EpisodeStream(
            dataset=self.dataset,
            split=split,
            task=self.eval_task,
            seed=data.eval.seed,
            image_size=data.image_size,
            section="data.eval",
            max_bad_fraction=data.max_bad_fraction,
            preprocessing=self.preprocessing,
        )


def preprocessing_of(config: Config, packed: Preprocessing) -> Preprocessing:
    """How images become inputs: as packed, unless data.image_size, data.channels, data.mean or data.std say otherwise. Raises ConfigError
    unless mean and std have one number per channel.
    """
    data = config.data
    channels = data.channels or packed.channels
    settings: dict[str, Any] = {"image_size": data.image_size or packed.image_size, "channels": channels}
    for key in ("mean", "std"):
        given, kept = getattr(data, key), getattr(packed, key)
        if given is not None and len(given) != channels:
            raise ConfigError(f"data.{key}={given} has {len(given)} numbers for {channels} channels", "give one number for each channel")
        settings[key] = given or (kept if len(kept) == channels else [sum(kept) / len(kept)] * channels)
    return packed.model_copy(update=settings)


def open_dataset(config: Config) -> Dataset:
    """Raises ConfigError without data.shards, DataError if they are not a packed dataset."""
    data = config.data
    if data.shards is None:
        raise ConfigError("data.domain=classification reads a packed dataset, but data.shards is not set", "add data.shards")
    cache = ShardCache(Path(data.cache.folder), round(data.cache.limit_gb * 1e9)) if data.cache.folder else None
    return Dataset(data.shards, Reading(data.read_timeout_s, data.read_attempts), cache)
