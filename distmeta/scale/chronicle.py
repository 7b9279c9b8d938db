"""The driver's record of a run's events: it queries the board, writes the run folder, and prints messages."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from distmeta.errors import DistmetaError
from distmeta.scale.losses import Failure, Place, Traces, examine, lost, traces_of, witnesses_at
from distmeta.scale.progress import ask
from distmeta.training.events import sentence
from distmeta.training.labels import title
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import on_disk

_STATUS_EVERY_S = {True: 2.0, False: 30.0}  # seconds on disk, and in object storage, where each write costs money


class Chronicle:
    """Follows one training from its board; `say` prints events that users would otherwise miss: lost workers and new starts."""

    def __init__(self, run_folder: RunFolder, board: Any, steps: int, say: Callable[[str], None]) -> None:
        self._run_folder, self._board, self._steps, self._say = run_folder, board, steps, say
        self._seen = 0
        self._workers: dict[int, dict[str, Any]] = {}
        self._witnesses: dict[str, Any] = {}
        self._written = 0.0
        self._trained = any(event["kind"] == "start" for event in run_folder.events.read())

    def follow(self) -> dict[str, Any]:
        """Process new events. Returns the run's status."""
        status, heard = ask(self._board.heard, self._seen)
        self._seen += len(heard)
        for kind, facts in heard:
            if kind == "start":
                self._start(facts)
            else:
                self._failures(facts, status["step"])
        self._keep(status, urgent=bool(heard))
        return dict(status)

    def _start(self, facts: dict[str, Any]) -> None:
        self._workers = facts["workers"]
        places = self._workers.values()
        self._witnesses = witnesses_at(places, title(self._run_folder))
        workers = [{key: place[key] for key in ("rank", "pid", "node", "ip", "log")} for place in places]
        event = self._run_folder.events.add("start", step=facts["step"], checkpoint=facts["checkpoint"], workers=workers)
        if self._trained:
            self._say(sentence(event))
        self._trained = True

    def _failures(self, failures: dict[int, Failure], step: int) -> None:
        newest = self._run_folder.newest_checkpoint()
        losses = lost(failures, set(self._workers))
        places = {loss.rank: self._workers[loss.rank] for loss in losses if loss.rank in self._workers}
        traces = dict(zip(places, traces_of(list(places.values()), self._witnesses), strict=True))
        for loss in losses:
            place, left = places.get(loss.rank, {}), traces.get(loss.rank)
            known = examine(loss, place, left)
            event = self._run_folder.events.add(
                known.pop("kind"),
                rank=loss.rank,
                **{key: place.get(key) for key in ("pid", "node", "ip")},
                log=self._kept_log(place, left) or place.get("log"),
                **known,
                step=step,
                checkpoint=newest.name if newest else None,
            )
            self._say(sentence(event))
        if losses:
            self._report()

    def _report(self) -> None:
        """Write the report of the run so far, which names the lost workers."""
        from distmeta.report.page import write_report_so_far  # it imports matplotlib, which most trials never need

        if not self._run_folder.has_ended:
            with suppress(DistmetaError, OSError, ValueError):  # the run is worth more than its report
                write_report_so_far(self._run_folder)

    def keep_logs(self) -> None:
        """Copy what the workers that train, or trained last, have printed into the run folder: their nodes may go."""
        places = list(self._workers.values())
        for place, left in zip(places, traces_of(places, self._witnesses), strict=True):
            self._kept_log(place, left)

    def _kept_log(self, place: Place, left: Traces | None) -> str | None:
        """The path of the copy; None if the worker's node does not answer, or if nothing was printed."""
        if left is None:
            return None
        name = f"rank-{place['rank']}-{place['node']}-{place['pid']}"
        kept = {kind: content for kind, content in (("err", left.errors), ("out", left.output)) if content}
        with suppress(OSError):  # a full disk: the run is worth more than the copy of a log
            paths = [str(self._run_folder.events.keep_log(f"{name}.{kind}", content)) for kind, content in kept.items()]
            return next(iter(paths), None)
        return None

    def _keep(self, status: dict[str, Any], urgent: bool) -> None:
        """Write the status for readers on other machines."""
        if urgent or time.monotonic() - self._written > _STATUS_EVERY_S[on_disk(self._run_folder.path)]:
            self._written = time.monotonic()
            shown = {key: status[key] for key in ("phase", "step", "steps_per_s", "figures") if key in status}
            workers = [{key: place[key] for key in ("rank", "pid", "node")} for place in self._workers.values()]
            self._run_folder.status.write(shown | {"steps": self._steps, "time": time.time(), "workers": workers})
