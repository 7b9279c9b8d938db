"""A sweep's trials: the record of each, and the code of its Ray Tune actor.

A trial's run folder is the source of truth. Ray Tune's records are never read, because they are pickles.
"""

import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, NamedTuple

import ray
from ray import tune

from distmeta.config import Config, with_values
from distmeta.errors import Overtaken
from distmeta.scale.chronicle import Chronicle
from distmeta.scale.fit import Fit, failure
from distmeta.scale.progress import STARTING, read
from distmeta.scale.trainer import trainer
from distmeta.training.lease import Claim
from distmeta.training.measurement import Measurement, measurement_of, score_of
from distmeta.training.metrics_folder import Record
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import understood

_POLL_S = 0.5


class Point(NamedTuple):
    """One validation: the step it came after, and its score, (higher is better; -inf if it was not finite)."""

    step: int
    score: float

    @classmethod
    def of(cls, validation: Record) -> "Point":
        return cls(validation["step"], score_of(validation["score"], more_is_better=True))

    @property
    def reported(self) -> dict[str, Any]:
        """The score for Ray Tune, whose quantiles would become NaN with an infinity."""
        return {"step": self.step, "score": max(self.score, -sys.float_info.max)}


def validations(run_folder: RunFolder, after: int = -1) -> list[Record]:
    """The validations of a run after step `after`, sorted by step."""
    return [record["validation"] | {"step": record["step"]} for record in run_folder.metrics.read(after) if "validation" in record]


@dataclass
class Trial:
    """One trial. `params` is dotted key → value; `began` and `ended` are seconds since 1970; `reason` says why it ended.

    `until` is the step where it was stopped; validations that its workers add afterwards do not count. In a population, the trial now
    trains from step `since` to step `until`, and `history` holds its params so far, with their first step. `unplaced`: it failed because
    the cluster had no place for it, so a resumed sweep runs it again.
    """

    number: int
    params: dict[str, Any]
    state: Literal["running", "finished", "stopped", "failed"] = "running"
    reason: str = ""
    began: float | None = None
    ended: float | None = None
    since: int = 0
    until: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    unplaced: bool = False

    def folder(self, sweep_folder: RunFolder) -> RunFolder:
        return sweep_folder.trial(self.number)

    def save(self, sweep_folder: RunFolder) -> None:
        self.folder(sweep_folder).write_trial(asdict(self))

    def curve(self, sweep_folder: RunFolder) -> list[Point]:
        points = map(Point.of, validations(self.folder(sweep_folder)))
        return [point for point in points if self.until is None or point.step <= self.until]

    def measurement(self, sweep_folder: RunFolder) -> Measurement | None:
        """The measurement of its first validation."""
        return next(map(measurement_of, validations(self.folder(sweep_folder))), None)

    def best(self, sweep_folder: RunFolder) -> Point | None:
        """Its best validation with its present params, or None. It belongs to the model in its run folder."""
        return max((point for point in self.curve(sweep_folder) if point.step > self.since), key=lambda point: point.score, default=None)


def load_trials(sweep_folder: RunFolder) -> list[Trial]:
    """Every trial that was ever started, by number. Raises RunError."""
    with understood(sweep_folder):  # a later version may record more of a trial
        return [Trial(**record) for record in sweep_folder.read_trials()]


def run_trial(settings: dict[str, Any], secrets: dict[str, Any]) -> None:
    """The function that Ray Tune runs for a trial: a distributed run that resumes from its newest checkpoint and reports its validations.

    `secrets` holds the masked values of the config in `settings`, because Ray Tune writes `settings` to its logs. An error that would recur
    is written to the trial's folder instead of being raised, because Ray Tune retries after an exception.
    """
    config = with_values(Config.model_validate(settings["config"]), secrets, "the sweep's config")
    folder, last_step = RunFolder(config.run_folder), config.outer.steps
    if folder.read_failure() is not None:  # the watchdog wrote it
        return
    board = ray.get_actor(settings["board"])
    # As bytes, because otherwise the board's process would import this whole module for the handle.
    board.update.remote({"phase": STARTING, "driver": ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)})
    part = settings["since"], settings["until"]
    fit = Fit(
        trainer(config, board, settings["allow_other_hardware"], settings["import_from"], Claim(*settings["claim"]), test=False, part=part)
    )
    told, chronicle = -1, Chronicle(folder, board, last_step, print)
    while fit.going:
        time.sleep(_POLL_S)
        chronicle.follow()
        # The last validation is reported after its checkpoint, because the scheduler may end this process on the report.
        told = _tell([validation for validation in validations(folder, told) if validation["step"] < last_step], told)
    chronicle.follow()
    chronicle.keep_logs()
    error = failure(fit, read(board)[1], config)
    if error is None:
        _tell(validations(folder, told), told)
    elif isinstance(error, Overtaken):  # this process may no longer write the folder
        raise error
    else:
        folder.write_failure(error)


def _tell(records: list[Record], told: int) -> int:
    for validation in records:
        tune.report(Point.of(validation).reported)
        told = validation["step"]
    return told
