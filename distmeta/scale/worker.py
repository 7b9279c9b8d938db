"""One Ray Train worker: its objects, and its callbacks for the training loop."""

import gc
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import Checkpoint as RayCheckpoint
from ray.train.torch import get_device

from distmeta.assembly.final_test import final_test
from distmeta.assembly.run import Run
from distmeta.config import Config
from distmeta.errors import DistmetaError, Overtaken
from distmeta.learners.params import Params, constants, weights_sha256
from distmeta.models import native
from distmeta.scale.fit import unwritable
from distmeta.scale.joining import check_frozen, check_machine, gathered
from distmeta.scale.kernels import of_worker
from distmeta.scale.losses import here
from distmeta.scale.metrics import WorkerMetrics
from distmeta.scale.node_use import NodeUse
from distmeta.scale.preemption import Notices, Terminated
from distmeta.scale.progress import Reporter
from distmeta.training import checkpoint as checkpoints
from distmeta.training import lease
from distmeta.training.checkpoint import Checkpoint
from distmeta.training.devices import device_of
from distmeta.training.evaluate import Evaluation, block, evaluate
from distmeta.training.lease import Claim
from distmeta.training.loop import Plan, Progress, train
from distmeta.training.measurement import measurement_of, quantity
from distmeta.training.metrics_folder import MetricsWriter, Record
from distmeta.training.reduce import PeerFailure, Request, agree
from distmeta.training.run_folder import RunFolder
from distmeta.training.spike_rates import spike_rates, warning


class Worker:
    """One worker's objects, and its implementation of the loop's callbacks (`distmeta.training.loop.Hooks`)."""

    def __init__(self, config: Config, device: torch.device, reporter: Reporter, claim: Claim) -> None:
        context = ray.train.get_context()
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self.config = config
        self.reporter = reporter
        self.kind = device_of(device)
        self.kind.choose(tf32=config.train.precision == "tf32")
        self.run = Run.of(config, device=device, dtype=getattr(torch, config.train.weights))
        self.run_folder, self.domain, self.learner = self.run.folder, self.run.domain, self.run.learner
        library = of_worker(config)
        native.use(self.learner.model, library)
        kernels = str(library or "torch")
        self.machine = checkpoints.machine(config.train.threads_per_worker, kernels) | self.kind.description() | self.domain.software
        self.outer = self.run.outer()
        self.frozen = weights_sha256(constants(self.learner.model, self.outer.meta_params))
        self.claim = claim
        self.validation = self.domain.evaluation("val")
        self.progress = Progress()
        self.metrics: MetricsWriter | None = None
        self.slots = block(config.outer.meta_batch_size, self.rank, self.workers)
        self.watched = WorkerMetrics(self.run_folder, self.rank, self.kind, len(self.slots))
        self.node_use = NodeUse(device)
        self.notices = Notices()
        self.memory_used: int | None = None  # used by the first step, beyond what was allocated before
        self._memory_before = 0
        self._clock = (time.monotonic(), 0)
        self._figures: dict[str, str] = {}

    def join(self, peers: list[Any], allow_other_hardware: bool, since: int) -> None:
        """Join `peers` (each worker's machine and hash of frozen weights, by rank) at the newest whole checkpoint, if there is one. If the
        checkpoint is of step `since`, settings change there, and the best step is chosen again. Raises RunError if frozen weights differ,
        or if this machine's kind differs from rank 0's or from that of the checkpoint's machine.
        """
        folder = self.run_folder.newest_checkpoint()
        check_frozen([frozen for _, frozen in peers], self.rank)
        if not allow_other_hardware:
            check_machine(self.machine, peers[0][0], f"worker {self.rank} runs on another kind of machine than worker 0")
            if folder is not None:
                check_machine(self.machine, folder.written_on(), f"{folder} was written on another kind of machine")
        if folder is not None:
            checkpoint = folder.load()
            self.outer.load(checkpoint.meta_params, checkpoint.optimizer)
            self.progress = Progress(checkpoint.step, **checkpoint.progress)
            if since == checkpoint.step:
                self.progress.best_step, self.progress.best_score = 0, None
        if self.rank == 0:
            self.run_folder.note_start(self.progress.step)
            self.reporter.begin(self.workers, self.progress.step, folder.name if folder else None)
            self.metrics = MetricsWriter(self.run_folder.metrics, self.progress.step)
            self.watched.begin(self.config.outer.steps, len(self.run_folder.restarts()))

    def train(self, test: bool, until: int | None = None) -> None:
        """Train to the last step or to step `until`; at the end, `test` the best step."""
        outer, train_config = self.config.outer, self.config.train
        plan = Plan(
            steps=outer.steps if until is None else until,
            checkpoint_every=train_config.checkpoint_every,
            validate_every=train_config.validate_every,
            max_bad_steps=train_config.max_bad_steps,
            meta_batch_size=outer.meta_batch_size,
            rank=self.rank,
            workers=self.workers,
            slots=self.slots,
            reduction=train_config.reduction,
        )
        batches = self.domain.training(self.slots, self.progress.step) if outer.steps else iter(())
        self._clock = (time.monotonic(), self.progress.step)
        self._memory_before = self.kind.memory_in_use()
        gc.collect()
        gc.freeze()  # Python's garbage collector scans all objects; the present ones are permanent
        if self.rank == 0:
            self.reporter.tell(phase="training", step=self.progress.step)
        ended = train(self.learner, self.outer, batches, self.progress, plan, self)
        self.watched.tell()
        if ended and test:
            self._test()

    def _test(self) -> None:
        """The final test of the best step's meta_params, and of the same network adapted from its initial weights."""
        if self.rank == 0:
            self.reporter.tell(phase="testing")
        tested = final_test(self.run, self.run.best_params(self.outer.meta_params), self.rank, self.workers)
        if self.rank == 0:
            content = self.run.identity | {
                "steps": self.progress.step,
                "best_step": self.progress.best_step,
                "weights_sha256": weights_sha256(self.learner.whole(self.outer.meta_params)),
                "test": tested.figures,
            }
            content |= {"calibration": tested.calibration} if tested.calibration else {}
            self.run_folder.write_result(content, tested.by_episode)

    def log(self, record: Record) -> None:
        self.watched.add(record)
        if self.metrics is None:
            return
        record |= self.node_use.sample()
        if "validation" in record:
            record |= self._spike_rates()
        self.metrics.add(record)
        if self.memory_used is None:
            self.memory_used = max(0, self.kind.peak_memory() - self._memory_before)
            self.reporter.tell(memory_used=self.memory_used)
        since, first = self._clock
        steps_per_s = (record["step"] - first) / max(time.monotonic() - since, 1e-9)
        self._figures |= self._shown(record) | {"episodes/s": f"{steps_per_s * self.config.outer.meta_batch_size:.1f}"}
        tell = self.reporter.tell if "validation" in record else self.reporter.tell_sometimes
        tell(step=record["step"], steps_per_s=steps_per_s, figures=self._figures)

    def _spike_rates(self) -> Record:
        rates = spike_rates(self.domain.metric, self.learner, self.outer.meta_params, self.validation)
        if rates:
            self.reporter.tell(warning=warning(rates))
        return {"spike_rate": rates} if rates else {}

    def _shown(self, record: Record) -> dict[str, str]:
        """The parts of a step's record for display."""
        metric, score = self.domain.metric, self.learner.objective.score
        shown = {"meta-loss": f"{record['meta_loss']:.3f}"} if "meta_loss" in record else {}
        if score in record:
            shown[score] = quantity(record[score], None, metric.scale, metric.digits, metric.unit)
        if "validation" in record:
            measurement = measurement_of(record["validation"])
            shown["validation"] = measurement.text(measurement.selected, interval=False)
        return shown

    def validate(self, meta_params: Params) -> Evaluation:
        norm, episodes = self.config.model.norm, self.config.data.eval.val_episodes
        return evaluate(self.run.metric, self.learner, meta_params, self.validation, episodes, norm, self.rank, self.workers)

    def keep_best(self, meta_params: Params, step: int, validation: Evaluation) -> None:
        if self.rank == 0:
            lease.check(self.claim)
            record = {"step": step, "validation": validation.as_dict(), "validation_score": validation.stored_score}
            self.run_folder.save_best(step, self.learner.whole(meta_params), self.run.description | record)

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """Metrics first, then the checkpoint, so that every checkpoint has its metrics."""
        name = checkpoints.folder_name(checkpoint.step)
        with tempfile.TemporaryDirectory(prefix="distmeta-") as scratch:
            committed = None
            if self.metrics is not None:
                lease.check(self.claim)
                self.metrics.flush(checkpoint.step)
                checkpoints.save(checkpoint, Path(scratch) / name, self.machine)
                committed = RayCheckpoint.from_directory(Path(scratch) / name)
            ray.train.report({"step": checkpoint.step}, checkpoint=committed, checkpoint_dir_name=name)
        if self.notices.terminated:
            raise Terminated(f"worker {self.rank} was asked to end, and stops after step {checkpoint.step}")

    def episode(self, step: int, slot: int) -> str:
        return self.domain.describe(step, slot)

    def request(self) -> Request:
        if self.rank == 0 and self.reporter.stop_requested():
            return Request.STOP
        if self.notices.terminated:
            return Request.CHECKPOINT
        return Request.LOOK if self.rank == 0 and self.notices.due() else Request.NOTHING

    def node_going(self) -> bool:
        return self.notices.node_going()


def run_worker(settings: dict[str, Any]) -> None:
    """The function that Ray Train calls in every worker.

    An error that the user can fix is reported to the driver, and ends the run on every worker. After any other error Ray restarts the
    workers. On a storage write error, or if another process has taken the run folder over, the worker reports it and re-raises. Ray
    restarts the workers; they see the report and exit.
    """
    config = Config.model_validate(ray.get(settings["config"]))
    since, until = settings["part"]
    sys.path.append(settings["import_from"])
    torch.set_num_threads(config.train.threads_per_worker)
    device = get_device() if config.train.device == "cuda" else torch.device("cpu")
    assert isinstance(device, torch.device)
    reporter = Reporter(settings["board"])
    if reporter.failed():
        return
    if ray.train.get_context().get_world_rank() == 0:
        reporter.tell(phase="loading data")
    failure: DistmetaError | None = None
    worker: Worker | None = None
    try:
        try:
            worker = Worker(config, device, reporter, settings["claim"])
        except DistmetaError as error:
            failure = error
        workers = ray.train.get_context().get_world_size()
        reporter.place(here(ray.train.get_context().get_world_rank()))
        peers = gathered(None if worker is None else (worker.machine, worker.frozen), workers)
        try:
            if worker is not None and all(peers):
                worker.join(peers, settings["allow_other_hardware"], since)
        except DistmetaError as error:
            failure = error
        agree(failure, device, workers)
        assert worker is not None
        worker.train(settings["test"], until)
    except PeerFailure:
        return
    except (OSError, Overtaken) as error:
        if (told := unwritable(error, RunFolder(config.run_folder))) is not None:
            reporter.fail(told)
        raise
    except DistmetaError as error:
        reporter.fail(error)
