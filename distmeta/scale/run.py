"""One training run from the driver's side: check everything, launch, watch, mirror to MLflow, publish."""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ray.exceptions import RayError

from distmeta.assembly.code import check_code
from distmeta.assembly.origins import fetch_models
from distmeta.assembly.received import import_paths
from distmeta.assembly.run import Run
from distmeta.assembly.sync import conclude
from distmeta.config import Change, Config, change_of, flat, is_registered
from distmeta.data.location import from_any_folder
from distmeta.errors import ConfigError, DistmetaError, RegistryError, Stopped, Unanswered
from distmeta.registry import tracking, versions
from distmeta.scale import places
from distmeta.scale.chronicle import Chronicle
from distmeta.scale.cluster import await_nodes, check_capacity, connected, quiet, resolve_device, worker_needs
from distmeta.scale.fit import Fit, failure, watch
from distmeta.scale.kernels import settled
from distmeta.scale.progress import STARTING, RunDisplay, ask, new_board, read
from distmeta.scale.trainer import trainer
from distmeta.training.labels import title
from distmeta.training.lease import Lease
from distmeta.training.run_folder import RunFolder


def run(
    config: Config,
    resume: bool = False,
    address: str | None = None,
    allow_other_hardware: bool = False,
    tags: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Train, test and publish the run of `config`. Returns what `distmeta train --json` prints.

    With `resume`, continue from the newest complete checkpoint, or start if there is none. `tags` are further ones of its MLflow run.
    Raises DistmetaError.
    """
    this = Run.of(absolute(config).model_copy(update={"sweep": None}))
    this.check()
    config, run_folder = this.config, this.folder
    with opened(this, resume) as lease, quiet(run_folder.log) as terminal, RunDisplay(terminal, config.outer.steps) as display:
        display.show({"phase": "asking MLflow", "step": 0})
        uri = ask_mlflow(this, display.say)
        fetch_models(this, uri)
        for note in this.notes():
            display.say(note)
        with tracking.ended(uri, run_folder):
            if not run_folder.has_ended:
                display.say(f"run folder {run_folder}; Ray's log is {run_folder.log}")
                _train(this, uri, address, allow_other_hardware, lease, display, tags or {})
            display.show({"phase": "publishing", "step": config.outer.steps})
            result = conclude(run_folder, uri, config.tracking.model, config)
        tracking.say_page(run_folder, display.say)
        return result


def ask_mlflow(this: Run, say: Callable[[str], None]) -> str:
    """The tracking URI, once MLflow has agreed to the run's model name and experiment.

    Raises RegistryError or ConfigError. A run that MLflow knows already does not need an answer; a missing answer is then only reported by
    `say`.
    """
    uri = tracking.tracking_uri(this.config.tracking.uri)
    try:
        versions.check_name(uri, this.model_name, this.description)
        tracking.check_experiment(uri, this.config.tracking.experiment)
    except Unanswered as error:
        if not tracking.begun(this.folder, uri):
            raise
        say(f"{error.message}\nthe run continues, and sends what it has when MLflow answers")
    return uri


def absolute(config: Config) -> Config:
    """`config` with local paths made absolute, because workers run in other folders. Raises ConfigError if run_folder is not usable as a
    path.
    """
    cache = config.data.cache
    cache = cache.model_copy(update={"folder": cache.folder and from_any_folder(cache.folder)})
    data = config.data.model_copy(update={"shards": config.data.shards and from_any_folder(config.data.shards), "cache": cache})
    origin = config.init_from
    init_from = origin if origin is None or is_registered(origin) else from_any_folder(origin)
    return config.model_copy(update={"run_folder": str(RunFolder(config.run_folder)), "data": data, "init_from": init_from})


def check_run_folder(this: Run, resume: bool, several_seeds: bool = False) -> None:
    """Raises ConfigError if the folder holds a run but `resume` is False, or a different run. `several_seeds`: the folder is for runs of
    several seeds.
    """
    run_folder = this.folder
    if not run_folder.holds_run:
        if not run_folder.is_empty:
            raise ConfigError(f"run_folder {run_folder} holds other files", "give --set run_folder=NEW")
        return
    if not resume:
        newest = run_folder.newest_checkpoint()
        where = f"with checkpoint {newest.name}" if newest else "without a checkpoint yet"
        raise ConfigError(
            f"run_folder {run_folder} holds a run already, {where}", "continue it with --resume, or give --set run_folder=NEW"
        )
    if run_folder.holds_seeds != several_seeds:
        seeds = ",".join(map(str, run_folder.read_seeds()["seeds"])) if run_folder.holds_seeds else ""
        holds, remedy = (f"runs of seeds {seeds}", f"add --seeds {seeds}") if seeds else ("a run of one seed", "leave --seeds out")
        raise ConfigError(f"run_folder {run_folder} holds {holds}", f"{remedy}, or give --set run_folder=NEW")
    old, new = (flat(c.shown()) for c in (run_folder.read_config(), this.config))
    if this.config.train.kernels == "auto":
        old["train.kernels"] = "auto"  # a resumed run keeps its original kernels
    keys = sorted(key for key in old.keys() | new.keys() if change_of(key) is not Change.ON_RESUME)
    differing = [f"{key} {old.get(key)} → {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
    fingerprint = run_folder.read_dataset()["fingerprint"]
    if fingerprint != this.domain.fingerprint:
        differing.append(f"data fingerprint {fingerprint[:12]} → {this.domain.fingerprint[:12]}")
    if differing:
        raise ConfigError(f"run_folder {run_folder} holds another run: {', '.join(differing)}", "give --set run_folder=NEW for the new one")
    check_code(import_paths(this.config), run_folder.code, str(run_folder))


@contextmanager
def opened(this: Run, resume: bool, several_seeds: bool = False) -> Iterator[Lease]:
    """The lease of the run's folder, new or one that may be resumed. If the run is refused before it begins, a new folder is removed, and
    an existing empty folder stays empty.

    `several_seeds`: the folder is to hold the runs of several seeds.
    Raises ConfigError, and RunError if another process writes that folder.
    """
    run_folder = this.folder
    existed = run_folder.path.exists()
    run_folder.check_writable()
    new = run_folder.is_empty
    check_run_folder(this, resume, several_seeds)
    with Lease(run_folder.path, lambda text: print(text, file=sys.stderr)) as lease:
        try:
            yield lease
        except BaseException:
            if new and not run_folder.holds_run:
                run_folder.clear()
                if not existed:
                    run_folder.remove()
            raise


def _train(
    this: Run, uri: str, address: str | None, allow_other_hardware: bool, lease: Lease, display: RunDisplay, tags: dict[str, str]
) -> None:
    config, run_folder = this.config, this.folder
    display.show({"phase": "starting Ray", "step": 0})
    with connected(address):
        await_nodes(config.train, display.say)
        device = resolve_device(config.train)
        check_capacity(config.train, device)
        kernels, told = settled(this, device)
        if told:
            display.say(told)
        this = this.on(device, kernels)
        slots = math.ceil(config.outer.meta_batch_size / config.train.fewest)
        predicted = this.worker_bytes(device, slots) if config.outer.steps else None
        if predicted is not None:
            display.say(f"a worker's step will take about {predicted / 1e9:.2f} GB beside weights and data")
        run_id = begin(this, tags)
        tracking.say_page(run_folder, display.say)
        board = new_board(title(run_folder))
        with tracking.Mirror(uri, run_id, run_folder):
            fit = Fit(trainer(this.config, board, allow_other_hardware, os.getcwd(), lease.claim))
            chronicle = Chronicle(run_folder, board, config.outer.steps, display.say)
            _watch(fit, board, display, chronicle, lambda: _awaited(worker_needs(config.train, device), config.train.fewest))
            status, reported = read(board)
            used = status.get("memory_used")
            if used is not None:
                display.say(f"its first step took {used / 1e9:.2f} GB")
        error = _failure(fit, reported, config)
        if error is None:
            run_folder.events.add("finished", step=config.outer.steps)
        else:
            run_folder.events.add("stopped" if isinstance(error, Stopped) else "ended", reason=error.message)
            try:
                tracking.send_metrics(uri, run_id, run_folder)
            except RegistryError as unsent:  # report the error that ended the run
                display.say(f"{unsent.message}\nwhat MLflow lacks of the metrics is sent by distmeta sync {run_folder}, or by --resume")
            raise error


def begin(this: Run, tags: dict[str, str]) -> str:
    """Write the run's description into its folder, and begin its MLflow run with additional `tags`."""
    began = this.folder.holds_run
    this.write_description()
    try:
        return tracking.start_run(this.config, this.folder, this.tags() | tags)
    except DistmetaError:
        if not began:
            this.folder.remove_config()
        raise


def _watch(fit: Fit, board: Any, display: RunDisplay, chronicle: Chronicle, awaited: Callable[[], str]) -> None:
    """Draw progress until training ends. Before training begins, show what it waits for, the result of `awaited`.

    The first Ctrl-C (or SIGTERM) asks for a last checkpoint.
    """

    def stop() -> None:
        ask(board.request_stop)
        display.say("stopping after this step, with a checkpoint; Ctrl-C again to stop at once")

    def look() -> None:
        status = chronicle.follow()
        display.show(status | ({"phase": f"{STARTING}: {awaited()}"} if status["phase"] == STARTING else {}))

    watch(fit, look, stop)
    chronicle.follow()  # the last failure may have ended it
    chronicle.keep_logs()


def _awaited(needs: dict[str, float], workers: int) -> str:
    """The resources that this process's run waits for."""
    try:
        groups = places.groups()
    except (RayError, RuntimeError, OSError):  # the cluster does not answer now; Ray Train reports it if it is lost
        return "waits for the cluster to answer"
    mine = [group for group in groups if group.job == places.own_job() and not group.orphaned]
    return f"waits for {places.awaited(mine, groups, {}, needs, workers)}"


def _failure(fit: Fit, reported: tuple[str, str, str] | None, config: Config) -> DistmetaError | None:
    """The error that ended the run without a result, or None."""
    error = failure(fit, reported, config)
    run_folder = RunFolder(config.run_folder)
    if error is None and not run_folder.has_ended:
        return Stopped(f"stopped as asked, at {run_folder.reached()} of {config.outer.steps}", "give --resume to continue")
    return error
