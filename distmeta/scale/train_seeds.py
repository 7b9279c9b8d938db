"""Trains one config once for each of several seeds: a run for each, and their common result."""

from collections.abc import Callable
from typing import Any

from distmeta.assembly.run import Run
from distmeta.config import Config, is_registered
from distmeta.errors import DistmetaError
from distmeta.registry import tracking, versions
from distmeta.scale.run import absolute, ask_mlflow, begin, opened, run
from distmeta.training import lease
from distmeta.training.measurement import measurement_of
from distmeta.training.over_seeds import OverSeeds, over_seeds
from distmeta.training.run_folder import RunFolder


def train_seeds(
    config: Config,
    seeds: list[int],
    resume: bool,
    address: str | None,
    allow_other_hardware: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Train, test and publish `config` once for each seed, one after another; the answer is what `distmeta train --seeds --json` prints.

    Each run has a folder in config.run_folder and an MLflow run, whose parent is the MLflow run of them all. With `resume`, continue where
    it was; seeds may be added then. Raises DistmetaError, naming the seed.
    """
    this = Run.of(absolute(config).model_copy(update={"sweep": None, "seed": 0}))
    this.check()
    folder = this.folder
    with opened(this, resume, several_seeds=True) as held:
        uri = ask_mlflow(this, say)
        models = folder.read_seeds().get("models", {}) if folder.holds_seeds else _versions(this.config, uri)
        folder.write_seeds({"seeds": seeds, "models": models})
        parent = begin(this, {"kind": "seeds"})
        tracking.say_page(folder, say)
        answers = {}
        with tracking.ended(uri, folder):
            for number, seed in enumerate(seeds, 1):
                lease.check(held.claim)
                say(f"seed {seed}, {number} of {len(seeds)}, in {folder.of_seed(seed)}")
                tags = {"mlflow.parentRunId": parent, "training_seed": str(seed)}
                try:
                    answers[seed] = run(_of_seed(this.config, seed, models), resume, address, allow_other_hardware, tags)
                except DistmetaError as error:
                    raise type(error)(f"seed {seed}: {error.message}", error.remedy) from None
            answer = _conclude(folder, answers, models, uri, parent)
        tracking.say_page(folder, say)
        return answer


def _versions(config: Config, uri: str) -> dict[str, str]:
    """Each registered model that the config names → its present version, because an alias may move between the seeds' runs."""
    named = {origin for origin in (config.init_from, *config.data.eval.beside) if origin is not None and is_registered(origin)}
    return {origin: versions.pinned(uri, origin) for origin in sorted(named)}


def _of_seed(config: Config, seed: int, models: dict[str, str]) -> Config:
    beside = [models.get(origin, origin) for origin in config.data.eval.beside]
    data = config.data.model_copy(update={"eval": config.data.eval.model_copy(update={"beside": beside})})
    origin = config.init_from and models.get(config.init_from, config.init_from)
    folder = RunFolder(config.run_folder).of_seed(seed)
    return config.model_copy(update={"run_folder": str(folder), "seed": seed, "init_from": origin, "data": data})


def _conclude(folder: RunFolder, answers: dict[int, dict[str, Any]], models: dict[str, str], uri: str, parent: str) -> dict[str, Any]:
    """Write the runs' common result into the folder and to MLflow."""
    rows = [folder.of_seed(seed).read_test_episodes() for seed in answers]
    together = over_seeds(measurement_of(next(iter(answers.values()))["test"]), rows)
    measured = {name: getattr(together, name).as_dict() for name in OverSeeds._fields}
    runs = [{"training_seed": seed} | answer for seed, answer in answers.items()]
    outcome = {"seeds": list(answers), "models": models, "runs": runs} | measured
    record = folder.write_seeds(outcome)
    tracking.log_figures(uri, parent, _figures(together))
    tracking.log_files(uri, parent, [record])
    tracking.end_run(uri, parent, "FINISHED")
    return {"run_id": parent, "run_folder": str(folder), "seeds": list(answers), "runs": runs} | measured


def _figures(together: OverSeeds) -> dict[str, float]:
    """MLflow metrics: each column's mean, and the half-widths of its two intervals."""
    figures: dict[str, float | None] = {}
    for number, column in enumerate(together.over_seeds.columns):
        name = f"test/{together.over_seeds.name.replace(' ', '_')}/{column}"
        halves = {f"ci95_{kind}": getattr(together, kind).ci95[number] for kind in OverSeeds._fields}
        figures |= {f"{name}/{key}": value for key, value in ({"mean": together.over_seeds.values[number]} | halves).items()}
    return {key: value for key, value in figures.items() if value is not None}
