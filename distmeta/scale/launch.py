"""From a config to objects to Ray Train: what every worker builds and runs, and the trainer that places them."""

import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint as RayCheckpoint
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from safetensors.torch import load_file

from distmeta.config import Config
from distmeta.data.augment import Augment
from distmeta.data.cache import ShardCache
from distmeta.data.episodes import Task
from distmeta.data.location import Reading
from distmeta.data.shards import Dataset, Split
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DistmetaError, RunError
from distmeta.learners import build_learner
from distmeta.learners.maml import MAML
from distmeta.learners.params import Params, initial_params, weights_sha256
from distmeta.models import build_model
from distmeta.scale.cluster import ALLOCATOR, gpus_per_worker
from distmeta.scale.progress import Reporter
from distmeta.seeds import torch_seed
from distmeta.train import checkpoint as checkpoints
from distmeta.train.checkpoint import Checkpoint
from distmeta.train.evaluate import Evaluation, block, evaluate
from distmeta.train.loop import Plan, Progress, train
from distmeta.train.metrics import MetricsWriter, Record
from distmeta.train.outer import OuterUpdate, schedule
from distmeta.train.reduce import PeerFailure, agree

CHECKPOINTS_KEPT = 2
RESULT = "result.json"


def open_dataset(config: Config) -> Dataset:
    data = config.data
    cache = ShardCache(Path(data.cache.folder), round(data.cache.limit_gb * 1e9)) if data.cache.folder else None
    return Dataset(data.shards, Reading(data.read_timeout_s, data.read_attempts), cache)


def train_task(config: Config) -> Task:
    data = config.data
    return Task(data.way, data.shot, data.queries, data.class_rotations)


def eval_task(config: Config) -> Task:
    data = config.data
    return Task(data.eval.way or data.way, data.eval.shot or data.shot, data.eval.queries or data.queries)


def model_description(config: Config, dataset: Dataset) -> dict[str, Any]:
    """All that is needed to build the network and its learner again: names and constructor arguments."""
    preprocessing = dataset.manifest.preprocessing
    image_size = config.data.image_size or preprocessing.image_size
    learner = config.learner
    return {
        "model": {"name": config.model.name, "way": config.data.way, "channels": preprocessing.channels, "image_size": image_size}
        | config.model.model_dump(exclude={"name"}),
        "learner": learner.model_dump() | {"inner_steps_eval": learner.inner_steps_eval or learner.inner_steps},
        "preprocessing": preprocessing.model_copy(update={"image_size": image_size}).model_dump(),
        "norm": "batch",
        "dataset": dataset.manifest.dataset,
        "fingerprint": dataset.manifest.fingerprint,
        "task": {"way": config.data.way, "shot": config.data.shot, "queries": config.data.queries},
    }


def eval_stream(config: Config, dataset: Dataset, split: Split) -> EpisodeStream:
    data = config.data
    return EpisodeStream(
        dataset, split, eval_task(config), data.eval.seed, data.image_size, section="data.eval", max_bad_fraction=data.max_bad_fraction
    )


def train_stream(config: Config, dataset: Dataset) -> EpisodeStream:
    data = config.data
    augment = Augment(**data.augment.model_dump())
    return EpisodeStream(
        dataset, "train", train_task(config), config.seed, data.image_size, augment=augment, max_bad_fraction=data.max_bad_fraction
    )


class Worker:
    """One worker's objects, and its answers to what the loop asks (`distmeta.train.loop.Hooks`)."""

    def __init__(self, config: Config, device: torch.device, reporter: Reporter) -> None:
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.config = config
        self.device = device
        self.dtype: torch.dtype = getattr(torch, config.train.precision)
        self.reporter = reporter
        self.run_folder = Path(config.run_folder)
        self.dataset = open_dataset(config)
        self.description = model_description(config, self.dataset)
        self.learner = self._learner()
        self.outer = self._outer(self.initial_params())
        self.validation = eval_stream(config, self.dataset, "val")
        self.progress = Progress()
        self.metrics: MetricsWriter | None = None
        self._clock = (time.monotonic(), 0)

    def _learner(self) -> MAML:
        model = build_model(**self.description["model"]).to(self.device, self.dtype)
        return build_learner(model=model, **self.description["learner"])

    def initial_params(self) -> Params:
        """Drawn on the CPU in float32 whatever device and precision follow, so that all of them start alike."""
        drawn = initial_params(build_model(**self.description["model"]), torch_seed(self.config.seed, "initial weights"))
        return {name: value.to(self.device, self.dtype) for name, value in drawn.items()}

    def _outer(self, meta_params: Params) -> OuterUpdate:
        outer = self.config.outer
        lr = schedule(outer.schedule, outer.lr, outer.steps)
        return OuterUpdate(meta_params, outer.optimizer, lr, outer.momentum, outer.weight_decay, outer.clip_norm, outer.clip_value)

    def resume(self, allow_other_hardware: bool) -> None:
        """Go on from the newest whole checkpoint, if there is one. Raises RunError if it was written by another kind of machine."""
        folder = checkpoints.newest(self.run_folder)
        if folder is not None:
            here, there = checkpoints.machine(self.config.train.threads_per_worker), checkpoints.machine_of(folder)
            differing = [f"{name} {there.get(name)} → {value}" for name, value in here.items() if there.get(name) != value]
            if differing and not allow_other_hardware:
                raise RunError(
                    f"{folder} was written on another machine ({', '.join(differing)}); the same bits cannot be promised",
                    "resume where it ran, or give --allow-other-hardware",
                )
            found = checkpoints.load(folder)
            self.outer.load(found.meta_params, found.optimizer)
            self.progress = Progress(found.step, **found.progress)
        if self.rank == 0:
            self.metrics = MetricsWriter(self.run_folder, self.progress.step)

    def run(self) -> None:
        outer, train_config = self.config.outer, self.config.train
        slots = block(outer.meta_batch_size, self.rank, self.workers)
        plan = Plan(
            outer.steps,
            train_config.checkpoint_every,
            train_config.validate_every,
            train_config.max_bad_steps,
            outer.meta_batch_size,
            self.rank,
            slots,
        )
        batches = train_stream(self.config, self.dataset).training(slots, self.progress.step)
        self._clock = (time.monotonic(), self.progress.step)
        if self.rank == 0:
            self.reporter.tell(phase="training", step=self.progress.step)
        if train(self.learner, self.outer, batches, self.progress, plan, self):
            self._test()

    def _test(self) -> None:
        """The final test, of the best step's meta_params, beside the same network adapted from its random initialisation."""
        if self.rank == 0:
            self.reporter.tell(phase="testing")
        stream = eval_stream(self.config, self.dataset, "test")
        best = {
            k: torch.empty_like(self.outer.meta_params[k]).copy_(v)
            for k, v in load_file(self.run_folder / "best" / checkpoints.WEIGHTS).items()
        }
        episodes = self.config.data.eval.episodes
        result, random_init = (
            evaluate(self.learner, params, stream, episodes, self.rank, self.workers) for params in (best, self.initial_params())
        )
        if self.rank == 0:
            content = {
                "steps": self.progress.step,
                "best_step": self.progress.best_step,
                "weights_sha256": weights_sha256(self.outer.meta_params),
                "test": result.as_dict() | {"random_init": random_init.accuracy, "random_init_ci95": random_init.ci95},
            }
            checkpoints.write_whole(self.run_folder / RESULT, json.dumps(content, indent=1))

    def log(self, record: Record) -> None:
        if self.metrics is None:
            return
        self.metrics.add(record)
        since, first = self._clock
        steps_per_s = (record["step"] - first) / max(time.monotonic() - since, 1e-9)
        figures: Record = {key: record[key] for key in ("step", "meta_loss", "accuracy") if key in record}
        if "validation" in record:
            figures["validation"] = record["validation"]["accuracy_inductive"]
        rates = {"steps_per_s": steps_per_s, "episodes_per_s": steps_per_s * self.config.outer.meta_batch_size}
        tell = self.reporter.tell if "validation" in record else self.reporter.tell_sometimes
        tell(**figures, **rates)

    def validate(self, meta_params: Params) -> Evaluation:
        return evaluate(self.learner, meta_params, self.validation, self.config.data.eval.val_episodes, self.rank, self.workers)

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        if self.rank == 0:
            checkpoints.save_best(meta_params, self.description | {"step": step, "validation": validation.as_dict()}, self.run_folder)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Metrics first, then the checkpoint: whoever finds a checkpoint finds the metrics up to it."""
        name = checkpoints.folder_name(checkpoint.step)
        with tempfile.TemporaryDirectory(prefix="distmeta-") as scratch:
            committed = None
            if self.metrics is not None:
                self.metrics.flush(checkpoint.step)
                checkpoints.save(checkpoint, Path(scratch) / name, self.config.train.threads_per_worker)
                committed = RayCheckpoint.from_directory(Path(scratch) / name)
            ray.train.report({"step": checkpoint.step}, checkpoint=committed, checkpoint_dir_name=name)

    def stop_requested(self) -> bool:
        return self.rank == 0 and self.reporter.stop_requested()


def run_worker(settings: dict[str, Any]) -> None:
    """What Ray Train calls in every worker.

    A failure that a user can mend is told to the driver, and ends the run on every worker; anything else is left to Ray, which restarts.
    """
    config = Config.model_validate(settings["config"])
    torch.set_num_threads(config.train.threads_per_worker)
    device = get_device() if config.train.device == "cuda" else torch.device("cpu")
    assert isinstance(device, torch.device)
    reporter = Reporter(settings["board"])
    failure: DistmetaError | None = None
    worker: Worker | None = None
    try:
        try:
            worker = Worker(config, device, reporter)
            worker.resume(settings["allow_other_hardware"])
        except DistmetaError as error:
            failure = error
        agree(failure, device)
        assert worker is not None
        worker.run()
    except PeerFailure:
        return
    except DistmetaError as error:
        reporter.fail(error)


def trainer(config: Config, board: Any, allow_other_hardware: bool) -> TorchTrainer:
    """The Ray Train run for a config whose device is resolved and whose run_folder is absolute."""
    train_config = config.train
    gpus = gpus_per_worker(train_config, train_config.device)
    resources = {"CPU": train_config.cpus_per_worker} | ({"GPU": gpus} if gpus else {})
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(train_config.start_timeout_s)  # Ray has no argument for it
    environment = ALLOCATOR | {"OMP_NUM_THREADS": str(train_config.threads_per_worker)}
    return TorchTrainer(
        run_worker,
        train_loop_config={"config": config.model_dump(), "board": board, "allow_other_hardware": allow_other_hardware},
        scaling_config=ScalingConfig(num_workers=train_config.workers, use_gpu=gpus > 0, resources_per_worker=resources),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo", timeout_s=round(train_config.collective_timeout_s)),
        run_config=RunConfig(
            name="checkpoints",
            storage_path=config.run_folder,
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            failure_config=FailureConfig(max_failures=train_config.max_failures),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
        ),
    )
