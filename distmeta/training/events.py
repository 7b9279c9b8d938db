"""What happened to a run while it trained, as its driver writes it: a line of JSON for each event, oldest first, and its workers' logs."""

import json
import time
from pathlib import Path
from typing import Any

from distmeta import files
from distmeta.errors import RunError
from distmeta.masking import log_text, masked
from distmeta.training import stored
from distmeta.training.storage import damaged, on_disk, read_json_if_there, write_whole

Event = dict[str, Any]
_SPARE = "update distmeta if a newer one wrote it; else remove that file: the run does not need it"


class EventLog:
    """A run folder's events. Each has `time` (seconds since 1970) and `kind`:

    | `kind` | what happened | further keys |
    |---|---|---|
    | start | workers began to train, or trained again after a failure | step, checkpoint (None: from the beginning), workers |
    | died, out of memory, hung, failed, node lost | a worker was lost | rank, pid, node, signal, reason, log, step, checkpoint |
    | stopped, ended | the run stopped as asked, or with an error | reason |
    | finished | the run ended with its test | step |

    `workers` are {rank, pid, node, ip, log}; `step` is the last one that is known, `checkpoint` the one that the run resumes from.
    """

    def __init__(self, path: Path, logs: Path) -> None:
        """`logs` is the folder for what workers printed."""
        self._path = path
        self._logs = logs

    def read(self) -> list[Event]:
        """Raises RunError if the file is damaged."""
        if not self._path.exists():
            return []
        try:
            return [files.of_kind(stored.Event, files.parse_json(line)) for line in files.read_bytes(self._path).decode().splitlines()]
        except (OSError, ValueError) as error:
            raise RunError(damaged(self._path, error).message, _SPARE) from None

    def add(self, kind: str, **facts: Any) -> Event:
        """Append an event with the present time, and return it."""
        safe = {key: masked(fact) if isinstance(fact, str) else fact for key, fact in facts.items()}
        event = {"time": round(time.time(), 3), "kind": kind} | safe
        before = self._path.read_text() if self._path.exists() else ""
        write_whole(self._path, before + json.dumps(event) + "\n")
        return event

    def keep_log(self, name: str, content: bytes) -> Path:
        """Keep what a worker printed. Returns the copy's path."""
        if on_disk(self._logs):
            self._logs.mkdir(exist_ok=True)
        write_whole(self._logs / name, log_text(content.decode(errors="replace")))
        return self._logs / name


class StatusFile:
    """A run's state as its driver last saw it: `phase`, `step` of `steps`, `steps_per_s`, `figures`, `workers` and `time`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, status: dict[str, Any]) -> None:
        write_whole(self._path, json.dumps(status))

    def read(self) -> dict[str, Any] | None:
        """None if there is none yet. Raises RunError if it is damaged."""
        try:
            return read_json_if_there(self._path, stored.Status)
        except RunError as error:
            raise RunError(error.message, _SPARE) from None


def time_left(seconds: float) -> str:
    """For people: `1:05 left` is a minute and five seconds; from an hour on, `26 h 05 min left`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d} left" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min left"


def sentence(event: Event) -> str:
    """An event as a sentence, without its time."""
    kind = event["kind"]
    if kind == "start":
        count = len(event["workers"])
        origin = "from the beginning" if event["checkpoint"] is None else f"from checkpoint {event['checkpoint']}"
        return f"{count} workers train {origin}" if count > 1 else f"1 worker trains {origin}"
    if kind not in stored.LOST:
        return f"{kind}: {event['reason']}" if event.get("reason") else kind
    where = f"process {event['pid']} on {event['node']}" if event.get("pid") else "its place is unknown"
    at = f" at step {event['step']}" if event.get("step") else ""
    log = f"; its log is {event['log']}" if event.get("log") else ""
    return f"worker {event['rank']} ({where}) {_WHAT[kind](event)}{at}; {_goes_on(event)}{log}"


def _goes_on(event: Event) -> str:
    checkpoint = event.get("checkpoint")
    return f"the run resumes from {f'checkpoint {checkpoint}' if checkpoint else 'its beginning'}"


_WHAT = {
    "died": lambda event: f"died ({event.get('signal') or event['reason']})",
    "out of memory": lambda event: f"was killed because memory ran out ({event['reason']})",
    "hung": lambda event: f"hung ({event['reason']})",
    "failed": lambda event: f"failed ({event['reason']})",
    "node lost": lambda event: f"was lost with its node ({event['reason']})",
}
