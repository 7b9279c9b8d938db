"""A sweep from the driver's side: trials proposed, placed by Ray Tune as distributed runs, stopped early, ranked; the winner promoted."""

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from ray import tune
from ray.exceptions import RayError
from ray.tune import FailureConfig, RunConfig, Stopper, TuneConfig, TuneError, Tuner
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from distmeta.assembly.build import learner_of, model_description
from distmeta.assembly.domain import Domain, domain_of
from distmeta.config import Config, SweepConfig
from distmeta.errors import ClusterError, ConfigError, DistmetaError, RunError, Stopped
from distmeta.registry import tracking, versions
from distmeta.scale.cluster import check_capacity, connected, quiet, resolve_device, storage
from distmeta.scale.run import absolute, checked, fetch_models, run, run_folder_of, write_description
from distmeta.sweep.mirror import SweepMirror
from distmeta.sweep.population import Population, check_changeable, check_generations
from distmeta.sweep.records import Records, trial_config
from distmeta.sweep.trials import FAILURE, Trial, run_trial, write_failure
from distmeta.sweep.view import TrialTable, draw, parameters
from distmeta.training import checkpoint as checkpoints
from distmeta.training.evaluate import Evaluation, paired_difference
from distmeta.training.folder import folder_at, remove, write_whole

BEST = "best.yaml"
TRIALS = "trials.json"
_POLL_S = 0.5
_DRIVER = {"node:__internal_head__": 0.001}  # a trial's driver takes no CPU: with one it could wait for ever for its own workers


def sweep(config: Config, resume: bool = False, address: str | None = None, allow_other_hardware: bool = False) -> dict[str, Any]:
    """Run the trials of config.sweep, rank them, and promote the winner; the answer is what `distmeta sweep --json` prints.

    With `resume`, go on from the records in the sweep's folder (config.run_folder): no trial that ended is repeated. Raises DistmetaError.
    """
    config = _as_sweep(absolute(config))
    domain, learner = checked(config.model_copy(update={"sweep": None}))
    check_space(config)
    uri = tracking.tracking_uri(config.tracking.uri)
    description = model_description(config, domain, learner)
    versions.check_name(uri, config.tracking.model or versions.default_name(description), description)
    with run_folder_of(config, domain, resume) as folder, quiet(folder / "log.txt") as terminal:
        records = Population(config) if _settings(config).search == "pbt" else Records(config)
        view = TrialTable(terminal, folder, _settings(config))
        if records.runs_left:
            _run_trials(config, domain, records, view, uri, address, allow_other_hardware)
        winner = _winner(records)
        best = _describe(records, winner, view)
    return _conclude(records, winner, best, uri, address, allow_other_hardware)


def _settings(config: Config) -> SweepConfig:
    assert config.sweep is not None
    return config.sweep


def _as_sweep(config: Config) -> Config:
    """The config that trials derive from: a checkpoint at every validation, where a trial may be stopped and go on."""
    if config.sweep is None:
        raise ConfigError("the config has no sweep.space", "add one: sweep: {space: {learner.inner_lr: {loguniform: [0.01, 1]}}}")
    data, train = config.data, config.train
    if not isinstance(train.workers, int):
        raise ConfigError(f"train.workers={list(train.workers)} in a sweep, where every trial has a place of its own", "give one number")
    task = {name: getattr(data.eval, name) or getattr(data, name) for name in ("way", "shot", "queries")}
    data = data.model_copy(update={"eval": data.eval.model_copy(update=task)})  # the same episodes for all, whatever they train on
    train = train.model_copy(update={"checkpoint_every": train.validate_every})
    grace = config.sweep.grace or train.validate_every
    if config.sweep.stops_early and max(grace, train.validate_every) >= config.outer.steps:
        raise ConfigError(
            f"sweep.scheduler=asha, but no accuracy is reported before step {config.outer.steps}, the last "
            f"(train.validate_every={train.validate_every}, sweep.grace={grace})",
            f"set both below outer.steps, such as train.validate_every={max(1, config.outer.steps // 9)}, or sweep.scheduler=none",
        )
    if config.sweep.search == "pbt":
        check_generations(config)
    return config.model_copy(update={"data": data, "train": train})


def check_space(config: Config) -> None:
    """Raises ConfigError if an end of a range, or a choice, is not valid in its place, or the learner or network does not take it."""
    for key, values in _settings(config).space.items():
        for value in values.extremes:
            learner_of(candidate := trial_config(config, {key: value}), domain := domain_of(candidate))
            domain.check()
            if _settings(config).search == "pbt":
                check_changeable(config, candidate, key, domain)


class _NotKept:
    """Ray Tune pickles its parts for a restore that we never make; of these it gets nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Source(_NotKept, Searcher):
    """Ray Tune's side of the records: it asks for trials, and hears here how they end."""

    def __init__(self, records: Records, begin: Callable[[Trial], dict[str, Any]]) -> None:
        super().__init__(metric="score", mode="max")
        self._records = records
        self._begin = begin
        self._running: dict[str, Trial] = {}
        self.stopping = False

    def suggest(self, trial_id: str) -> Any:
        while (trial := self._records.next()) is not None:
            trial.folder(self._records.folder).mkdir(parents=True, exist_ok=True)
            trial.save(self._records.folder)
            try:
                settings = self._begin(trial)
            except DistmetaError as error:  # values that do not go together: this trial fails alone
                write_failure(trial.folder(self._records.folder), error)
                self._records.end(trial, died=False)
                continue
            self._running[trial_id] = trial
            return settings
        return None if self._running else Searcher.FINISHED  # what is running may leave more to do

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        trial = self._running.pop(trial_id, None)
        if trial is not None and not self.stopping:
            self._records.end(trial, died=error)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: a sweep goes on from its own records."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("a sweep goes on from its own records")


class Asha(_NotKept, ASHAScheduler):
    """Asynchronous successive halving over steps, that knows what trials of an earlier session reached and lets trial 0 go on."""

    def __init__(self, settings: SweepConfig, grace: int, steps: int, records: Records) -> None:
        super().__init__("step", "score", "max", steps, grace, settings.reduction, stop_last_trials=False)
        no_controller: Any = None  # it is not looked at
        for trial in records.ended:
            stand_in: Any = SimpleNamespace(trial_id=f"ended-{trial.number}", config={"spared": False})
            self.on_trial_add(no_controller, stand_in)
            for point in trial.curve(records.folder):
                self.on_trial_result(no_controller, stand_in, point._asdict())

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        return TrialScheduler.CONTINUE if trial.config["spared"] else decision


class _Interrupt(_NotKept, Stopper):
    """Ends Ray Tune's loop when asked."""

    def __init__(self) -> None:
        self.asked = threading.Event()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self.asked.is_set()


def _run_trials(
    config: Config, domain: Domain, records: Records, view: TrialTable, uri: str, address: str | None, allow_other_hardware: bool
) -> None:
    """Run what is left of the sweep. Raises Stopped if the user ended it, ClusterError if Ray Tune failed."""
    folder, settings = records.folder, records.settings
    view.say(f"sweep folder {folder}; Ray's log is {folder / 'log.txt'}")
    with connected(address, dashboard=True):
        device = resolve_device(config.train)
        at_once = check_capacity(config.train, device) // config.train.fewest
        view.say(f"{settings.total} trials, {len(records.ended)} of them ended; {at_once} at once, {config.train.fewest} workers each")
        write_description(config, domain)

        def begin(trial: Trial) -> dict[str, Any]:
            candidate = records.config_of(trial)
            trial_domain, learner = checked(candidate)
            fetch_models(candidate, trial_domain, learner, uri)
            write_description(candidate, trial_domain)
            (folder_at(candidate.run_folder) / FAILURE).unlink(missing_ok=True)
            placed = candidate.model_copy(update={"train": candidate.train.model_copy(update={"device": device})})
            private = placed.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": None})})  # may hold a password
            spared = settings.baseline and trial.number == 0
            told = {"allow_other_hardware": allow_other_hardware, "import_from": os.getcwd(), "spared": spared}
            return {"config": private.model_dump(), "since": trial.since, "until": trial.until} | told

        source, interrupt = Source(records, begin), _Interrupt()
        scheduler: TrialScheduler = FIFOScheduler()
        if settings.stops_early:
            scheduler = Asha(settings, settings.grace or config.train.validate_every, config.outer.steps, records)
        tuner = Tuner(
            tune.with_resources(run_trial, _DRIVER),
            tune_config=TuneConfig(
                search_alg=source,
                scheduler=scheduler,
                num_samples=records.runs_left,
                max_concurrent_trials=at_once,
                reuse_actors=False,
            ),
            run_config=RunConfig(
                name="tune",
                **storage(folder / ".ray"),
                verbose=0,
                stop=interrupt,
                failure_config=FailureConfig(max_failures=config.train.max_failures),
            ),
        )
        remove(folder / ".ray")  # Ray Tune would find an earlier session's records there
        with SweepMirror(config, domain, records, uri) as mirror:
            error = _watch(tuner, source, interrupt, records, view)
        remove(folder / ".ray")
        if mirror.unsent:
            view.say(f"MLflow did not take everything: {mirror.unsent}\nit stands in {folder}")
    if source.stopping:
        raise Stopped(f"stopped as asked, with {len(records.ended)} of {settings.total} trials ended", "give --resume to go on")
    if error is not None:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"Ray Tune failed: {reason}", f"see {folder / 'log.txt'}; --resume goes on")


def _watch(tuner: Tuner, source: Source, interrupt: _Interrupt, records: Records, view: TrialTable) -> Exception | None:
    """Draw the trials until Ray Tune ends. Ctrl-C (or SIGTERM) ends them where they are, at their last checkpoint."""
    failed: list[Exception] = []

    def fit() -> None:
        try:
            tuner.fit()
        except (TuneError, RayError, RuntimeError, ValueError, OSError) as error:
            failed.append(error)

    def on_signal(*_: object) -> None:
        if interrupt.asked.is_set():
            raise KeyboardInterrupt
        source.stopping = True
        interrupt.asked.set()
        view.say("stopping; Ctrl-C again to stop at once")

    thread = threading.Thread(target=fit, name="ray tune", daemon=True)
    previous = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with view:
            thread.start()
            while thread.is_alive():
                view.show(records.trials)
                time.sleep(_POLL_S)
            view.show(records.trials)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return failed[0] if failed else None


def _winner(records: Records) -> Trial:
    """The best trial. Raises RunError with the commonest reason if all failed."""
    ranking = records.ranking()
    if not ranking:
        (reason, count), *_ = Counter(trial.reason for trial in records.ended).most_common(1)
        raise RunError(f"all {len(records.ended)} trials failed, {count} of them with: {reason}", f"see {records.folder / 'log.txt'}")
    return ranking[0]


def _describe(records: Records, winner: Trial, view: TrialTable) -> dict[str, Any]:
    """The winner's row, with its figures on validation episodes that no trial has seen and its advance over trial 0 on the same ones."""
    episodes, first = records.settings.fresh_episodes, records.trials[0]
    compared = records.settings.baseline and first.state == "finished" and first is not winner
    view.say(f"trial {winner.number}{' and trial 0' if compared else ''} on {episodes} validation episodes that no trial has seen")
    evaluation = evaluate_fresh(records.config_of(winner), episodes)
    fresh: dict[str, Any] = dict(evaluation.as_dict())
    if compared:
        other = evaluate_fresh(records.config_of(first), episodes)
        advance = paired_difference(evaluation, other, inductive=True)
        fresh |= {"trial_0": other.as_dict(), "advance": advance["difference"], "advance_ci95": advance["difference_ci95"]}
    return parameters(winner, records.folder) | {"fresh": fresh}


def _conclude(
    records: Records, winner: Trial, best: dict[str, Any], uri: str, address: str | None, allow_other_hardware: bool
) -> dict[str, Any]:
    """Write what is kept of the sweep, and promote what the winner found."""
    folder, winning = records.folder, records.config_of(winner)
    shown = winning.tracking.model_copy(update={"uri": winning.tracking.uri and tracking.without_credentials(winning.tracking.uri)})
    again = winning.model_copy(update={"run_folder": f"{records.config.run_folder}-best", "tracking": shown})
    schedule = "# The last values of a schedule: sweep.search=pbt changed them on the way, as `history` in trials.json says.\n"
    write_whole(folder / BEST, (schedule if len(winner.history) > 1 else "") + again.to_yaml())
    pictures = draw(records.trials, folder, records.settings)
    run_id = json.loads((folder / tracking.RUN_FILE).read_text())["run_id"]
    if records.settings.promote != "none":
        best |= _promote(records, winner, run_id, uri, address, allow_other_hardware)
    ranking = records.ranking()
    rows = [parameters(trial, folder) for trial in [*ranking, *(t for t in records.trials if t not in ranking)]]
    answer = {"run_id": run_id, "run_folder": str(folder), "trials": rows, "best_config": str(folder / BEST), "best": best}
    write_whole(folder / TRIALS, json.dumps(answer, indent=1))
    tracking.log_files(uri, run_id, [folder / BEST, folder / TRIALS, *pictures])
    tracking.end_run(uri, run_id, "FINISHED")
    return answer


def _promote(records: Records, winner: Trial, sweep_id: str, uri: str, address: str | None, allow_other_hardware: bool) -> dict[str, Any]:
    """Test and publish the winner's run, or a new run with its config; the model's address and its test."""
    config, settings, retrained = records.config_of(winner), records.settings, {}
    if settings.promote == "retrain":
        steps = settings.retrain_steps or config.outer.steps
        folder = (
            records.folder / "retrained" / f"trial-{winner.number:03d}-{steps}-steps"
        )  # a resume may find another winner, or change steps
        config = config.model_copy(update={"run_folder": str(folder), "outer": config.outer.model_copy(update={"steps": steps})})
        retrained = {"retrained": str(folder), "retrained_steps": steps}
    result = run(config, resume=True, address=address, allow_other_hardware=allow_other_hardware)
    versions.tag_version(uri, f"runs:/{result['run_id']}/model", {"sweep": sweep_id})  # an alias may have moved on since
    if retrained:
        tracking.set_tags(uri, result["run_id"], {"mlflow.parentRunId": sweep_id, "retrained": str(winner.number)})
    return {"model": result["model"], "test": result["test"]} | retrained


def evaluate_fresh(config: Config, episodes: int) -> Evaluation:
    """A run's best step on `episodes` validation episodes of the next seed; in this process."""
    seed = config.data.eval.seed + 1
    config = config.model_copy(update={"data": config.data.model_copy(update={"eval": config.data.eval.model_copy(update={"seed": seed})})})
    domain = domain_of(config)
    learner = learner_of(config, domain, dtype=getattr(torch, config.train.weights))
    params = checkpoints.load_params(folder_at(config.run_folder) / "best" / checkpoints.WEIGHTS)
    like = learner.initial_params(0)
    params = {name: torch.empty_like(value).copy_(params[name]) for name, value in like.items()}
    return domain.evaluate(learner, params, domain.evaluation("val"), episodes, config.model.norm, 0, 1)
