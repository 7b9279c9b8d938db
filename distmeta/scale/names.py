"""The names that Ray's dashboards show: a run's workers and its placement group carry the run and the trial."""

from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller import TrainController
from ray.train.v2._internal.execution.worker_group import WorkerGroup
from ray.train.v2._internal.execution.worker_group.placement_group_handle import DefaultPlacementGroupHandle
from ray.train.v2._internal.execution.worker_group.worker import RayTrainWorker
from ray.util.placement_group import placement_group


class Named(ControllerCallback):
    """Runs in Ray Train's controller, a separate process for each run, and names the actors that it starts `title`."""

    def __init__(self, title: str) -> None:
        self._title = title

    def after_controller_start(self, train_run_context: Any) -> None:
        TrainController.worker_group_cls = _group(self._title)


def _group(title: str) -> type[WorkerGroup]:
    worker: Any = type("RayTrainWorker", (RayTrainWorker,), {"__repr__": lambda self: f"{title} worker"})

    class NamedWorkerGroup(WorkerGroup):
        _worker_cls = worker

        def _create_placement_group(self, scaling_config: Any, worker_group_context: Any) -> DefaultPlacementGroupHandle:
            """Like Ray Train's function, which sets no name."""
            group = placement_group(
                bundles=[worker_group_context.resources_per_worker] * worker_group_context.num_workers,
                strategy=worker_group_context.placement_strategy,
                bundle_label_selector=worker_group_context.label_selector,
                name=title,
            )
            return DefaultPlacementGroupHandle(group)

    return NamedWorkerGroup
