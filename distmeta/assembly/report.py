"""The report of a run: its config opened, its best model tried on test episodes, the page written."""

from pathlib import Path

from distmeta.assembly.run import Run
from distmeta.data.stream import EpisodeStream
from distmeta.errors import ConfigError, DistmetaError, RegistryError, RunError
from distmeta.learners.allocator import keep_memory
from distmeta.registry.tracking import fetch_file
from distmeta.registry.versions import look_up, run_of
from distmeta.report.page import write_report
from distmeta.report.study import Study, study
from distmeta.training.run_folder import REPORT, RunFolder
from distmeta.training.storage import write_whole

EPISODES = 50  # of the test, looked at closely


def report(run_folder: RunFolder, shards: str | None = None) -> Path:
    """Write the run's report and return its path; `shards` says where the dataset lies now, if not where the run found it. Raises RunError.

    Without its dataset a report says so, and shows what the run itself measured.
    """
    try:
        write_report(run_folder, _study(Run.in_folder(run_folder, shards)))
    except RunError:
        raise
    except DistmetaError as error:
        write_report(run_folder, None, error.message)
    return run_folder.report


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


def _is_run(folder: RunFolder, run_id: str) -> bool:
    """Whether the run with this id in MLflow wrote `folder`; another machine may have another run there."""
    return folder.has_mlflow_run and folder.read_mlflow()["run_id"] == run_id


def _study(this: Run) -> Study | None:
    """A closer look at test episodes, if they are of images."""
    stream = this.domain.evaluation("test")
    if not isinstance(stream, EpisodeStream):
        return None
    keep_memory()
    episodes = min(EPISODES, this.config.data.eval.episodes)
    return study(this.learner, this.folder.best.load_params(), this.random_init(), stream, episodes)
