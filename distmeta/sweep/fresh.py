"""Compares the winner of a sweep with trial 0 on fresh validation episodes: the trials' models, or new runs over several seeds."""

import sys
from functools import partial
from typing import Any

import torch

from distmeta.assembly.build import use_kernels
from distmeta.assembly.run import Run
from distmeta.config import Config
from distmeta.data.workers import Workers, usable_cpus
from distmeta.registry import tracking
from distmeta.scale.train_seeds import train_seeds
from distmeta.sweep.records import Records
from distmeta.sweep.trials import Trial
from distmeta.training.evaluate import Evaluation, evaluate
from distmeta.training.intervals import FEWEST_SEEDS, mean_and_ci95
from distmeta.training.run_folder import RunFolder


def on_fresh_episodes(records: Records, configs: list[Config]) -> list[Evaluation]:
    """Scores of each run's best step on fresh validation episodes, computed in parallel on this machine's CPUs."""
    kernels = records.folder.read_config().train.kernels
    with Workers(min(len(configs), usable_cpus()), "--resume compares them again") as workers:
        return list(workers.map(partial(evaluate_fresh, kernels=kernels, episodes=records.settings.fresh_episodes), configs))


def evaluate_fresh(config: Config, kernels: str, episodes: int) -> Evaluation:
    """A run's best step on `episodes` validation episodes of the next seed."""
    torch.set_num_threads(1)
    seed = config.data.eval.seed + 1
    config = config.model_copy(update={"data": config.data.model_copy(update={"eval": config.data.eval.model_copy(update={"seed": seed})})})
    this = Run.of(config, dtype=getattr(torch, config.train.weights)).on("cpu", kernels)
    use_kernels(this.config, this.learner, config.train.weights)
    params = this.best_params(this.learner.initial_params())
    return evaluate(this.metric, this.learner, params, this.domain.evaluation("val"), episodes, config.model.norm)


def compare_over_seeds(
    records: Records, winner: Trial, uri: str, sweep_id: str, address: str | None, allow_other_hardware: bool
) -> dict[str, Any]:
    """Train the winner's config and trial 0's once for each seed of sweep.seeds, and compare them on fresh validation episodes.

    The difference is paired by seed and episode. Its interval over seeds is about the configs, its interval over episodes about these
    networks. Finished runs are not repeated.
    """
    seeds = records.settings.seeds
    compared = {"winner": winner} | ({"trial_0": records.trials[0]} if records.settings.baseline and winner.number else {})
    found: dict[str, Any] = {"seeds": seeds}
    scores = {}
    for name, trial in compared.items():
        folder = records.folder.compared(trial.number)
        config = records.config_of(trial).model_copy(update={"run_folder": str(folder)})
        answer = train_seeds(config, seeds, True, address, allow_other_hardware, partial(print, file=sys.stderr))
        tracking.set_tags(uri, answer["run_id"], {"mlflow.parentRunId": sweep_id, "trial": str(trial.number)})
        found[name] = {key: answer[key] for key in ("run_folder", "over_seeds", "over_episodes")}
        evaluations = on_fresh_episodes(records, [_of_seed(config, folder, seed) for seed in seeds])
        scores[name] = torch.stack([evaluation.selected for evaluation in evaluations])  # (seeds, episodes)
    if "trial_0" in scores:
        ahead = (scores["winner"] - scores["trial_0"]).numpy()
        mean, over_seeds = mean_and_ci95(ahead.mean(1), FEWEST_SEEDS)
        found |= {"advance": mean, "advance_ci95_over_seeds": over_seeds, "advance_ci95_over_episodes": mean_and_ci95(ahead.mean(0))[1]}
    return found


def _of_seed(config: Config, folder: RunFolder, seed: int) -> Config:
    return config.model_copy(update={"run_folder": str(folder.of_seed(seed)), "seed": seed})
