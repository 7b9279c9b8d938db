"""The Ray Train run for a config: how its workers are placed, named and restarted."""

import os
from typing import Any

import ray
from ray._private.worker import get_dashboard_url
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.constants import CHECKPOINT_MANAGER_SNAPSHOT_FILENAME

from distmeta.config import Config, TrainConfig
from distmeta.learners.allocator import ALLOCATOR
from distmeta.scale.cluster import gpus_per_worker, storage, worker_needs
from distmeta.scale.names import Named
from distmeta.scale.progress import Restarts
from distmeta.scale.worker import run_worker
from distmeta.training.devices import KINDS
from distmeta.training.labels import title
from distmeta.training.lease import Claim
from distmeta.training.run_folder import RunFolder

CHECKPOINTS_KEPT = 2
_RESIZE_EVERY_S = 10.0  # how often an elastic run looks for more room: growing costs a restart from the last checkpoint


class _Trainer(TorchTrainer):
    """A TorchTrainer without Ray Train's helper that releases the placement group of a lost run. The helper needs a dashboard, and a
    process for each run.

    Ray releases the group when the run's driver ends; a sweep releases the groups of its trials itself.
    `title` is the run's name on Ray's dashboards.
    """

    title: str

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]

    def fit(self) -> Any:
        """Run under the run's own name. The folder in storage has another name, which is fixed by the first access to storage_context."""
        settings: Any = self.run_config
        _ = settings.storage_context
        settings.name = self.title
        return super().fit()


def backend(train: TrainConfig) -> str:
    """torch.distributed's backend for these workers: gloo where they share a GPU, because NCCL refuses two ranks on one."""
    share = gpus_per_worker(train, train.device)
    return KINDS["cpu"].backend if share < 1 else KINDS[train.device].backend


def trainer(
    config: Config,
    board: Any,
    allow_other_hardware: bool,
    import_from: str,
    claim: Claim,
    test: bool = True,
    part: tuple[int, int | None] = (0, None),
) -> TorchTrainer:
    """The Ray Train run for a config whose device is resolved and whose run_folder is absolute; a sweep's trials have no `test`.

    The folder of an earlier run is cleaned up: old checkpoints are removed, and those that a run can continue from are kept.

    `import_from`: the folder where networks given by import path are found. `claim` is looked at before each commit. `part`: the step
    from which its settings are these, and the one where it ends, if not the last.
    """
    train_config, run_folder = config.train, RunFolder(config.run_folder)
    # With Ray's own list of them: if it is torn, or names one that is no longer there, Ray refuses to resume.
    run_folder.thin_out(CHECKPOINTS_KEPT, index=CHECKPOINT_MANAGER_SNAPSHOT_FILENAME)
    resources = worker_needs(train_config, train_config.device)
    gpus = "GPU" in resources
    # Ray has no arguments for these.
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(train_config.start_timeout_s)
    os.environ["RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S"] = str(train_config.collective_timeout_s)
    # it would start another process for another page
    os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", str(int(bool(get_dashboard_url()))))
    environment = ALLOCATOR | {"OMP_NUM_THREADS": str(train_config.threads_per_worker)}
    made = _Trainer(
        run_worker,
        train_loop_config={
            "config": ray.put(config.model_dump()),  # a reference: Ray writes a run's arguments to its logs and its dashboard
            "board": board,
            "allow_other_hardware": allow_other_hardware,
            "import_from": import_from,
            "claim": claim,
            "test": test,
            "part": part,
        },
        scaling_config=ScalingConfig(
            num_workers=train_config.workers,  # type: ignore[arg-type]
            use_gpu=gpus,
            resources_per_worker=resources,
            accelerator_type=train_config.accelerator_type,
            elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,  # type: ignore[call-arg]
        ),
        torch_config=TorchConfig(backend=backend(train_config), timeout_s=round(train_config.collective_timeout_s)),
        run_config=RunConfig(
            name=run_folder.checkpoints.name,
            **storage(run_folder.checkpoints.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
            failure_config=FailureConfig(max_failures=train_config.max_failures),
            worker_runtime_env={"env_vars": environment},  # type: ignore[call-arg]
            callbacks=[Restarts(board), Named(title(run_folder))],  # type: ignore[list-item]
        ),
    )
    made.title = title(run_folder)
    return made
