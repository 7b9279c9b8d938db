"""Writes the report of a run: opens its config, runs its best model on test episodes, writes the page."""

from pathlib import Path

from distmeta.assembly.run import Run
from distmeta.config import Config
from distmeta.errors import ConfigError, DistmetaError, RegistryError, RunError
from distmeta.learners.allocator import keep_memory
from distmeta.registry.tracking import fetch_file
from distmeta.registry.versions import look_up, run_of
from distmeta.report.page import write_report, write_report_so_far
from distmeta.report.section import Section
from distmeta.training.run_folder import REPORT, RunFolder
from distmeta.training.storage import understood, write_whole


def report(run_folder: RunFolder, shards: str | None = None, own: Config | None = None) -> Path:
    """Write the run's report and return its path. For an unfinished run, it shows the run so far. Raises RunError.

    Test episodes are analysed only if the user gives `shards` (the dataset's present location) or `own` (the config of the run). Otherwise
    the report gives the reason, and shows what the run itself measured.
    """
    with understood(run_folder):
        if _is_unfinished(run_folder):
            write_report_so_far(run_folder)
            return run_folder.report
        try:
            write_report(run_folder, _sections(Run.in_folder(run_folder, shards, own)))
        except RunError:
            raise
        except DistmetaError as error:
            write_report(run_folder, [], error.message)
    return run_folder.report


def _is_unfinished(folder: RunFolder) -> bool:
    """Whether it holds a single run, whose test is still to come. Raises RunError if it holds none."""
    return folder.read_config().sweep is None and not folder.has_ended and not folder.holds_seeds


def report_of_model(uri: str, model_uri: str, shards: str | None = None, own: Config | None = None) -> tuple[Path, bool]:
    """The same for the run that a registered model came from, if its folder is on this machine; else the report that MLflow keeps
    since the run ended, copied into the working folder. Returns the file, and whether it was written now.

    Raises RegistryError if there is neither, ConfigError if there are `shards` to look at but no run folder.
    """
    version = look_up(uri, model_uri)
    run_id, location = run_of(uri, version)
    if "://" not in location and _is_run(RunFolder(location), run_id):  # a location read from MLflow is only looked up on this machine
        return report(RunFolder(location), shards, own), True
    where = f"the run of {model_uri} is in {location}, which is not on this machine"
    if shards is not None:
        raise ConfigError(f"{where}: --shards cannot be looked at with it", "remove --shards to get the report written when the run ended")
    page = fetch_file(uri, run_id, REPORT)
    if page is None:
        raise RegistryError(f"{where}, and MLflow has no {REPORT} of it", "run distmeta report on the machine with that folder")
    copy = Path(f"{version.name}-{version.version}-{REPORT}")
    write_whole(copy, page.decode())
    return copy, False


def _is_run(folder: RunFolder, run_id: str) -> bool:
    """Whether the run with this id in MLflow wrote `folder`. On another machine the same path may hold another run."""
    return folder.has_mlflow_run and folder.read_mlflow()["run_id"] == run_id


def _sections(this: Run) -> list[Section]:
    keep_memory()
    return this.domain.sections(this.learner, this.folder.best.load_params(), this.start())
