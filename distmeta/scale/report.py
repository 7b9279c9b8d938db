"""The report of a run: its config opened, its best model tried on test episodes, the page written."""

from pathlib import Path

import torch
import yaml

from distmeta.config import Config, validate
from distmeta.data.stream import EpisodeStream
from distmeta.errors import DistmetaError, RegistryError, RunError
from distmeta.registry.models import run_folder_of
from distmeta.report.page import write_report
from distmeta.report.study import Study, study
from distmeta.scale.domain import Classification
from distmeta.scale.launch import initial_params, learner_of
from distmeta.train.checkpoint import WEIGHTS, load_params

EPISODES = 50  # of the test, looked at closely


def report(run_folder: Path, shards: str | None = None) -> Path:
    """Write run_folder/report.html; `shards` says where the dataset lies now, if not where the run found it. Raises RunError.

    Without its dataset a report says so, and shows what the run itself measured.
    """
    try:
        config = validate(yaml.safe_load((run_folder / "config.yaml").read_text()), str(run_folder / "config.yaml"))
    except OSError as error:
        raise RunError(f"{run_folder} holds no run: {error}", "give a run_folder, or models:/NAME@ALIAS") from None
    if config.data.functions is not None:
        return write_report(run_folder, None)
    if shards is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"shards": shards})})
    try:
        return write_report(run_folder, _study(config, run_folder))
    except RunError:
        raise
    except DistmetaError as error:
        return write_report(run_folder, None, error.message)


def report_of_model(uri: str, model_uri: str, shards: str | None = None) -> Path:
    """The same for the run that a registered model came from, where that lies on this machine. Raises RegistryError."""
    run_folder = run_folder_of(uri, model_uri)
    if not run_folder.is_dir():
        raise RegistryError(
            f"the run of {model_uri} lies in {run_folder}, which is not here", "its report.html is among the MLflow run's artifacts"
        )
    return report(run_folder, shards)


def _study(config: Config, run_folder: Path) -> Study:
    domain = Classification(config)
    learner = learner_of(config, domain, dtype=getattr(torch, config.train.weights))
    trained = load_params(run_folder / "best" / WEIGHTS)
    episodes = min(EPISODES, config.data.eval.episodes)
    stream = domain.evaluation("test")
    assert isinstance(stream, EpisodeStream)
    return study(learner, trained, initial_params(config, domain, learner), stream, episodes)
