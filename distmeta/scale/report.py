"""The report of a run: its config opened, its best model tried on test episodes, the page written."""

import json
from pathlib import Path

import torch
import yaml

from distmeta.assembly.build import initial_params, learner_of
from distmeta.assembly.domain import Classification
from distmeta.config import Config, validate
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError, DistmetaError, RegistryError, RunError
from distmeta.learners.allocator import keep_memory
from distmeta.registry.tracking import RUN_FILE, fetch_file
from distmeta.registry.versions import look_up, run_of
from distmeta.report.page import REPORT, write_report
from distmeta.report.study import Study, study
from distmeta.training.checkpoint import WEIGHTS, load_params
from distmeta.training.folder import write_whole

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


def report_of_model(uri: str, model_uri: str, shards: str | None = None) -> tuple[Path, bool]:
    """The same for the run that a registered model came from, if its folder is on this machine; else the report that MLflow keeps
    since the run ended, copied into the working folder. Returns the file, and whether it was written anew.

    Raises RegistryError if there is neither, ConfigError if there are `shards` to look at but no run folder.
    """
    version = look_up(uri, model_uri)
    run_id, run_folder = run_of(uri, version)
    if _is_run(run_folder, run_id):
        return report(run_folder, shards), True
    where = f"the run of {model_uri} lies in {run_folder}, which is not here"
    if shards is not None:
        raise ConfigError(f"{where}: --shards cannot be looked at with it", "leave --shards out, for the report written when the run ended")
    page = fetch_file(uri, run_id, REPORT)
    if page is None:
        raise RegistryError(f"{where}, and MLflow keeps no {REPORT} of it", "run distmeta report where that folder lies")
    copy = Path(f"{version.name}-{version.version}-{REPORT}")
    write_whole(copy, page.decode())
    return copy, False


def _is_run(folder: Path, run_id: str) -> bool:
    """Whether the run with this id in MLflow wrote `folder`; another machine may have another run there."""
    try:
        return json.loads((folder / RUN_FILE).read_text())["run_id"] == run_id
    except OSError:
        return False


def _study(config: Config, run_folder: Path) -> Study:
    keep_memory()
    domain = Classification(config)
    learner = learner_of(config, domain, dtype=getattr(torch, config.train.weights))
    trained = load_params(run_folder / "best" / WEIGHTS)
    episodes = min(EPISODES, config.data.eval.episodes)
    stream = domain.evaluation("test")
    assert isinstance(stream, EpisodeStream)
    return study(learner, trained, initial_params(config, domain, learner), stream, episodes)
