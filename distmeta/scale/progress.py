"""Live progress of a run: worker 0 reports to a named actor, and the driver queries the actor and draws."""

import contextlib
import time
from typing import Any, TextIO

import ray
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.train import UserCallback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from distmeta import errors
from distmeta.scale.losses import Failure, Place
from distmeta.terminal import Display
from distmeta.training.events import time_left

STARTING = "starting workers"
_UPDATE_EVERY_S = 0.25


@ray.remote(num_cpus=0)
class Board:
    """Holds the latest status, whether to stop, and the failure if a worker had one."""

    def __init__(self, title: str) -> None:
        """`title` is what dashboards call the run."""
        self.title = title
        self.status: dict[str, Any] = {"phase": STARTING, "step": 0}
        self.stop = False
        self.failure: tuple[str, str, str] | None = None
        self.places: dict[int, Place] = {}
        self.happened: list[tuple[str, Any]] = []

    def __repr__(self) -> str:
        return f"{self.title} board"

    def update(self, status: dict[str, Any]) -> bool:
        self.status.update(status)
        return self.stop

    def request_stop(self) -> None:
        self.stop = True

    def fail(self, kind: str, message: str, remedy: str) -> None:
        self.failure = self.failure or (kind, message, remedy)

    def place(self, place: Place) -> None:
        """A worker's place, reported by each before training starts."""
        self.places[place["rank"]] = place

    def begin(self, workers: int, step: int, checkpoint: str | None) -> None:
        """This number of workers trains from a checkpoint; forget extra workers of an earlier start."""
        self.places = {rank: place for rank, place in sorted(self.places.items()) if rank < workers}
        self.happened.append(("start", {"step": step, "checkpoint": checkpoint, "workers": dict(self.places)}))

    def lose(self, failures: dict[int, Failure]) -> None:
        """Workers failed, or reported that others did."""
        self.happened.append(("failures", failures))
        self.status["phase"] = STARTING

    def heard(self, since: int) -> tuple[dict[str, Any], list[tuple[str, Any]]]:
        """The status, and the events after the first `since`."""
        return self.status, self.happened[since:]

    def snapshot(self) -> tuple[dict[str, Any], tuple[str, str, str] | None]:
        return self.status, self.failure


def new_board(title: str, name: str | None = None) -> Any:
    """A board on the node of the calling process, so that it survives the loss of other nodes.

    `title` is the run's name in dashboards. The board ends with its last handle. With a `name`, other processes of this job can get it from
    `ray.get_actor`.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return Board.options(name=name, scheduling_strategy=here).remote(title)  # type: ignore[attr-defined]


def ask(method: Any, *arguments: Any) -> Any:
    """The result of a board's method. The call is repeated while the process does not answer, for example under load. Raises ClusterError
    if the board is lost.
    """
    try:
        while True:
            try:
                return ray.get(method.remote(*arguments))
            except ActorUnavailableError:
                time.sleep(_UPDATE_EVERY_S)
    except RayActorError:
        raise errors.ClusterError(
            "the process that collects the run's progress was lost", "run it again with --resume: it continues from its last checkpoint"
        ) from None


def read(board: Any) -> tuple[dict[str, Any], tuple[str, str, str] | None]:
    """The status and the failure on a board. Raises ClusterError if its process is lost."""
    return ask(board.snapshot)


class Restarts(UserCallback):
    """Runs in Ray Train's controller and reports failed workers to the board."""

    def __init__(self, board: Any) -> None:
        self._board = board

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        self._board.lose.remote({rank: Failure.of(error) for rank, error in worker_exceptions.items()})


class Reporter:
    """A worker's side of the board: fire and forget, a few times a second; never waits for the driver."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._answer: Any = None
        self._sent = 0.0
        self._stop = False

    def place(self, place: Place) -> None:
        """Report this worker's place, and wait until the board has it."""
        ask(self._board.place, place)

    def begin(self, workers: int, step: int, checkpoint: str | None) -> None:
        self._board.begin.remote(workers, step, checkpoint)

    def tell(self, **status: Any) -> None:
        self._board.update.remote(status)

    def tell_sometimes(self, **status: Any) -> None:
        if self._answer is None and time.monotonic() - self._sent > _UPDATE_EVERY_S:
            self._answer, self._sent = self._board.update.remote(status), time.monotonic()

    def stop_requested(self) -> bool:
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            with contextlib.suppress(ActorUnavailableError):  # the next update asks again
                self._stop = self._stop or ray.get(self._answer)
            self._answer = None
        return self._stop

    def failed(self) -> bool:
        """Whether any worker, even one that has ended, has reported a failure."""
        return read(self._board)[1] is not None

    def fail(self, error: errors.DistmetaError) -> None:
        ask(self._board.fail, type(error).__name__, error.message, error.remedy)


def raised(failure: tuple[str, str, str]) -> errors.DistmetaError:
    """The error that a worker reported."""
    kind, message, remedy = failure
    return getattr(errors, kind, errors.RunError)(message, remedy)


class RunDisplay(Display[Progress]):
    """A run's progress: a bar on a terminal, elsewhere a line every ten seconds and at each new phase."""

    def __init__(self, terminal: TextIO, steps: int) -> None:
        self._steps = steps
        self._phase = ""
        self._warning: str | None = None
        columns = (
            TextColumn("{task.fields[phase]}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}", markup=False),
            TimeRemainingColumn(),
        )
        # Not redirecting: Ray's output belongs in the log, and rich would print it here.
        super().__init__(terminal, lambda console: Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False))
        self._task = self.live.add_task("", total=steps, phase="", figures="")

    def show(self, status: dict[str, Any]) -> None:
        """Draw `status`; its "warning", if any, is printed whenever it changes."""
        if (warning := status.get("warning")) != self._warning:
            self._warning = warning
            self.say(warning or "the last warning no longer applies")
        figures = "  ".join(f"{name} {value}" for name, value in status.get("figures", {}).items())
        self.live.update(self._task, completed=status["step"], phase=status["phase"], figures=figures)
        if self.line_due(news=status["phase"] != self._phase) is not None:
            self.say(f"{status['phase']}  step {status['step']}/{self._steps}  {figures}{_time_left(status, self._steps)}".rstrip())
            self._phase = status["phase"]


def _time_left(status: dict[str, Any], steps: int) -> str:
    if not status.get("steps_per_s"):
        return ""
    return f"  {time_left((steps - status['step']) / status['steps_per_s'])}"
