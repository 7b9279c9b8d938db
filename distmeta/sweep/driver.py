"""The driver of a sweep: it proposes trials, which Ray Tune places as distributed runs, stops poor ones, ranks them, and promotes the
winner.
"""

import os
from collections import Counter
from typing import Any

from ray import tune
from ray.tune import FailureConfig, RunConfig, TuneConfig, Tuner
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from distmeta.assembly.origins import fetch_models
from distmeta.assembly.run import Run
from distmeta.config import Config, SweepConfig, secrets_of
from distmeta.errors import ClusterError, ConfigError, RunError, Stopped
from distmeta.registry import tracking, versions
from distmeta.scale.cluster import await_nodes, check_capacity, connected, quiet, resolve_device, storage, worker_needs
from distmeta.scale.fit import Fit, watch
from distmeta.scale.kernels import settled
from distmeta.scale.run import absolute, opened, run
from distmeta.sweep.fresh import compare_over_seeds, on_fresh_episodes
from distmeta.sweep.mirror import SweepMirror
from distmeta.sweep.population import Population, check_changeable, check_generations
from distmeta.sweep.records import Records, driver_restarts, trial_config
from distmeta.sweep.trials import Trial, run_trial
from distmeta.sweep.tuner import Asha, Interrupt, Source
from distmeta.sweep.view import TrialTable, draw, parameters
from distmeta.sweep.watchdog import Watchdog
from distmeta.training.evaluate import paired_difference
from distmeta.training.lease import Claim

_DRIVER = {"node:__internal_head__": 0.001}  # a trial's driver reserves no CPU; otherwise it could block its own workers forever


def sweep(config: Config, resume: bool = False, address: str | None = None, allow_other_hardware: bool = False) -> dict[str, Any]:
    """Run the trials of config.sweep, rank them, and promote the winner. Returns what `distmeta sweep --json` prints.

    With `resume`, continue from the records in the sweep's folder (config.run_folder): ended trials are skipped. Raises DistmetaError.
    """
    config = _as_sweep(absolute(config))
    this = Run.of(config)
    this.check()
    check_space(config)
    uri = tracking.tracking_uri(config.tracking.uri)
    versions.check_name(uri, this.model_name, this.description)
    folder = this.folder
    with opened(this, resume) as lease, tracking.ended(uri, folder):
        with quiet(folder.log) as terminal:
            records = Population(config) if _settings(config).search == "pbt" else Records(config)
            view = TrialTable(terminal, folder, _settings(config))
            if records.runs_left:
                _run_trials(this, records, view, uri, address, allow_other_hardware, lease.claim)
            winner = _winner(records)
            best = _describe(records, winner, view)
            tracking.say_page(folder, view.say)
        return _conclude(records, winner, best, uri, address, allow_other_hardware)


def _settings(config: Config) -> SweepConfig:
    assert config.sweep is not None
    return config.sweep


def _as_sweep(config: Config) -> Config:
    """The config that trials derive from. It makes a checkpoint at every validation, because a trial may be stopped and resumed there."""
    if config.sweep is None:
        raise ConfigError("the config has no sweep.space", "add one: sweep: {space: {learner.inner_lr: {loguniform: [0.01, 1]}}}")
    data, train = config.data, config.train
    if not isinstance(train.workers, int):
        raise ConfigError(f"train.workers={list(train.workers)} in a sweep, where every trial is placed separately", "give one number")
    task = {name: getattr(data.eval, name) or getattr(data, name) for name in ("way", "shot", "queries")}
    data = data.model_copy(update={"eval": data.eval.model_copy(update=task)})  # the same validation episodes for all trials
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
    """Raises ConfigError if an end of a range or a choice is not valid for its key, or if the learner or network does not accept it."""
    for key, values in _settings(config).space.items():
        for value in values.extremes:
            try:
                candidate = Run.of(trial_config(config, {key: value}))
                candidate.check()
                if _settings(config).search == "pbt":
                    check_changeable(Run(config, candidate.domain, candidate.folder), candidate, key)
            except ConfigError as error:
                raise ConfigError(f"sweep.space.{key}: {error.message}", error.remedy) from None


def _run_trials(
    this: Run, records: Records, view: TrialTable, uri: str, address: str | None, allow_other_hardware: bool, claim: Claim
) -> None:
    """Run the remaining trials. Raises Stopped if the user ended the sweep, ClusterError if Ray Tune failed."""
    config, folder, settings = this.config, records.folder, records.settings
    view.say(f"sweep folder {folder}; Ray's log is {folder.log}")
    with connected(address):
        await_nodes(config.train, view.say)
        device = resolve_device(config.train)
        at_once = check_capacity(config.train, device) // config.train.fewest
        kernels, told = settled(this, device)
        if told:
            view.say(told)
        workers = f"{config.train.fewest} worker{'s' if config.train.fewest > 1 else ''} each"
        view.say(f"{settings.total} trials, {len(records.ended)} of them ended; {at_once} at once, {workers}")
        this.on(config.train.device, kernels).write_description()

        def begin(trial: Trial) -> dict[str, Any]:
            candidate = Run.of(records.config_of(trial)).on(config.train.device, kernels)
            candidate.check()
            fetch_models(candidate, uri)
            candidate.write_description()
            candidate.folder.forget_failure()
            spared = settings.baseline and trial.number == 0
            told = {"allow_other_hardware": allow_other_hardware, "import_from": os.getcwd(), "spared": spared, "claim": claim}
            return {"config": candidate.on(device, kernels).config.shown(), "since": trial.since, "until": trial.until} | told

        source, interrupt = Source(records, begin), Interrupt()
        tuner = _tuner(config, records, source, interrupt, at_once)
        folder.remove_tune()  # otherwise Ray Tune would read an earlier session's records
        needs = worker_needs(config.train, device)
        watchdog = Watchdog(records=records, source=source, claim=claim, train=config.train, needs=needs, say=view.say)
        with SweepMirror(this, records, uri) as mirror, watchdog:
            tracking.say_page(folder, view.say)
            error = _watch(tuner, source, interrupt, watchdog, view)
        folder.remove_tune()
        if mirror.unsent:
            view.say(f"MLflow did not take everything: {mirror.unsent}\nit is stored in {folder}")
    if watchdog.error is not None:
        raise watchdog.error
    if source.stopping:
        raise Stopped(f"stopped as asked, with {len(records.ended)} of {settings.total} trials ended", "give --resume to continue")
    if error is not None:
        reason = " ".join(str(error).split())[:300]
        raise ClusterError(f"Ray Tune failed: {reason}", f"see {folder.log}; --resume continues")


def _tuner(config: Config, records: Records, source: Source, interrupt: Interrupt, at_once: int) -> Tuner:
    """The Ray Tune object. It takes trials from `source`, places `at_once` of them and stops poor ones."""
    folder, settings = records.folder, records.settings
    scheduler: TrialScheduler = FIFOScheduler()
    if settings.stops_early:
        scheduler = Asha(settings, settings.grace or config.train.validate_every, config.outer.steps, records)
    return Tuner(
        tune.with_resources(tune.with_parameters(run_trial, secrets=secrets_of(config)), _DRIVER),
        tune_config=TuneConfig(
            search_alg=source,
            scheduler=scheduler,
            num_samples=records.runs_left,
            max_concurrent_trials=at_once,
            reuse_actors=False,
        ),
        run_config=RunConfig(
            name=folder.tune.name,
            **storage(folder.tune.parent),
            verbose=0,
            stop=interrupt,
            failure_config=FailureConfig(max_failures=driver_restarts(config)),
        ),
    )


def _watch(tuner: Tuner, source: Source, interrupt: Interrupt, watchdog: Watchdog, view: TrialTable) -> Exception | None:
    """Show the trials until Ray Tune ends. On Ctrl-C (or SIGTERM) they end at their last checkpoint."""

    def stop() -> None:
        source.stopping = True
        interrupt.asked.set()

    def stop_as_asked() -> None:
        view.say("stopping; Ctrl-C again to stop at once")
        stop()

    def look() -> None:
        if watchdog.error is not None:
            stop()
        view.show(watchdog.records.trials, watchdog.waiting)

    with view:
        fit = Fit(tuner)
        watch(fit, look, stop_as_asked)
        view.show(watchdog.records.trials, {})
    return fit.error


def _winner(records: Records) -> Trial:
    """The best trial. Raises RunError with the most frequent reason if all failed."""
    ranking = records.ranking()
    if not ranking:
        (reason, count), *_ = Counter(trial.reason for trial in records.ended).most_common(1)
        raise RunError(f"all {len(records.ended)} trials failed, {count} of them with: {reason}", f"see {records.folder.log}")
    return ranking[0]


def _describe(records: Records, winner: Trial, view: TrialTable) -> dict[str, Any]:
    """The winner's row, with its score on fresh validation episodes and its difference to trial 0 on the same episodes."""
    episodes, first = records.settings.fresh_episodes, records.trials[0]
    compared = records.settings.baseline and first.state == "finished" and first is not winner
    view.say(f"trial {winner.number}{' and trial 0' if compared else ''} on {episodes} validation episodes that no trial has seen")
    configs = [records.config_of(trial) for trial in ([winner, first] if compared else [winner])]
    evaluation, *others = on_fresh_episodes(records, configs)
    fresh: dict[str, Any] = dict(evaluation.as_dict())
    for other in others:
        advance = paired_difference(evaluation.selected, other.selected)
        fresh |= {"trial_0": other.as_dict(), "advance": advance["difference"], "advance_ci95": advance["difference_ci95"]}
    return parameters(winner, records.folder) | {"fresh": fresh}


def _conclude(
    records: Records, winner: Trial, best: dict[str, Any], uri: str, address: str | None, allow_other_hardware: bool
) -> dict[str, Any]:
    """Write the sweep's results, and promote the winner."""
    folder, winning = records.folder, records.config_of(winner)
    again = winning.model_copy(update={"run_folder": f"{records.config.run_folder}-best"})
    schedule = "# The last values of a schedule: sweep.search=pbt changed them on the way, as `history` in trials.json says.\n"
    best_config = folder.write_best_config((schedule if len(winner.history) > 1 else "") + again.to_yaml())
    pictures = draw(records.trials, folder, records.settings)
    run_id = folder.read_mlflow()["run_id"]
    if records.settings.seeds:
        best["seeds"] = compare_over_seeds(records, winner, uri, run_id, address, allow_other_hardware)
    if records.settings.promote != "none":
        best |= _promote(records, winner, run_id, uri, address, allow_other_hardware)
    ranking = records.ranking()
    rows = [parameters(trial, folder) for trial in [*ranking, *(t for t in records.trials if t not in ranking)]]
    answer = {"run_id": run_id, "run_folder": str(folder), "trials": rows, "best_config": str(best_config), "best": best}
    tracking.log_files(uri, run_id, [best_config, folder.write_table(answer), *pictures])
    tracking.end_run(uri, run_id, "FINISHED")
    return answer


def _promote(records: Records, winner: Trial, sweep_id: str, uri: str, address: str | None, allow_other_hardware: bool) -> dict[str, Any]:
    """Test and publish the winner's run, or a new run with its config; the model's address and its test."""
    config, settings, retrained = records.config_of(winner), records.settings, {}
    if settings.promote == "retrain":
        steps = settings.retrain_steps or config.outer.steps
        folder = records.folder.retrained(winner.number, steps)
        config = config.model_copy(update={"run_folder": str(folder), "outer": config.outer.model_copy(update={"steps": steps})})
        retrained = {"retrained": str(folder), "retrained_steps": steps}
    result = run(config, resume=True, address=address, allow_other_hardware=allow_other_hardware)
    versions.tag_version(uri, f"runs:/{result['run_id']}/model", {"sweep": sweep_id})  # an alias may have moved since
    if retrained:
        tracking.set_tags(uri, result["run_id"], {"mlflow.parentRunId": sweep_id, "retrained": str(winner.number)})
    return {"model": result["model"], "test": result["test"]} | retrained
