"""What dashboards call a run and its trial."""

import re

from distmeta.training.run_folder import RunFolder

_INNER = re.compile(r"trials/trial-\d+|seeds/seed-\d+|compared/trial-\d+|retrained/trial-\d+-\d+-steps")


def labels(folder: RunFolder) -> tuple[str, str]:
    """The run's name and the trial's number: ("sweep", "3") for a trial, ("run/seed-0", "") for one of several seeds."""
    outer = folder.path.parent
    if not _INNER.fullmatch(f"{outer.name}/{folder.name}"):
        return folder.name, ""
    run, trial = labels(RunFolder(outer.parent))
    return (run, str(int(folder.name[6:]))) if outer.name == "trials" else (f"{run}/{folder.name}", trial)


def title(folder: RunFolder) -> str:
    """The same in one word for people: "sweep trial 3"."""
    run, trial = labels(folder)
    return f"{run} trial {trial}" if trial else run
