"""The state of a run, of several seeds or of a sweep. It is read from the folder alone, so it is available on any machine."""

import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from distmeta.training.events import Event, sentence, time_left
from distmeta.training.lease import holds
from distmeta.training.measurement import measurement_of
from distmeta.training.run_folder import RunFolder
from distmeta.training.storage import understood

_QUIET_S = 120.0  # seconds without a status after which a driver on another machine is called silent
_EVENTS_SHOWN = 8
_LOOK_EVERY_S = 2.0


def status(folder: RunFolder) -> dict[str, Any]:
    """What `distmeta status --json` prints. Raises RunError if the folder holds no run.

    `state`: finished (with its test), running, silent (its driver on another machine has stopped writing), stopped (it can be resumed).
    """
    with understood(folder):
        config = folder.read_config()
        if folder.holds_seeds:
            runs = {f"seed {seed}": folder.of_seed(seed) for seed in folder.read_seeds()["seeds"]}
            return _of_several(folder, "seeds", {name: status(run) if run.holds_run else _absent(run) for name, run in runs.items()})
        if config.sweep is not None:
            trials = {f"trial {record['number']}": _of_trial(folder, record) for record in folder.read_trials()}
            return _of_several(folder, "sweep", trials)
        return _of_run(folder, config.outer.steps)


def watched(folder: RunFolder) -> Iterator[dict[str, Any]]:
    """The status whenever it has changed, until the folder's run is no longer running."""
    before = None
    while True:
        answer = status(folder)
        if _lasting(answer) != before:
            before = _lasting(answer)
            yield answer
        if answer["state"] not in ("running", "silent"):
            return
        time.sleep(_LOOK_EVERY_S)


def _lasting(answer: dict[str, Any]) -> dict[str, Any]:
    """The status without values that change by themselves."""
    runs = {name: _lasting(run) for name, run in answer.get("runs", {}).items()}
    return {key: value for key, value in answer.items() if key != "seen_s_ago"} | {"runs": runs}


def _of_run(folder: RunFolder, steps: int, state: str | None = None) -> dict[str, Any]:
    """The run's own state, unless it is given."""
    seen, events, newest = folder.status.read() or {}, folder.events.read(), folder.newest_checkpoint()
    validations = [record for record in folder.metrics.read() if "validation" in record]
    state = state or ("finished" if folder.has_ended else _state(folder, seen))
    live = state == "running"
    reached = seen.get("step", 0) if live else steps if folder.has_ended else newest.step if newest else 0
    speed = seen.get("steps_per_s") if live else None
    measured = measurement_of(validations[-1]["validation"]) if validations else None
    result = folder.read_result() if folder.has_ended else None
    return {
        "kind": "run",
        "run_folder": str(folder),
        "state": state,
        "phase": seen.get("phase") if live else None,
        "step": reached,
        "steps": steps,
        "steps_per_s": speed,
        "time_left_s": round((steps - reached) / speed) if speed else None,
        "figures": seen.get("figures", {}) if live else {},
        "workers": seen.get("workers", []) if live else [],
        "checkpoint": newest.name if newest else None,
        "validation": {"step": validations[-1]["step"], "text": measured.text(measured.selected)} if measured else None,
        "test": measurement_of(result["test"]).summary if result else None,
        "seen_s_ago": round(time.time() - seen["time"], 1) if seen else None,
        "events": events[-_EVENTS_SHOWN:],
    }


def _state(folder: RunFolder, seen: dict[str, Any]) -> str:
    held = holds(folder.path)
    if held is None:  # held by another machine's process, which may be lost with its machine
        return "running" if seen and time.time() - seen["time"] < _QUIET_S else "silent"
    return "running" if held else "stopped"


def _of_trial(folder: RunFolder, record: dict[str, Any]) -> dict[str, Any]:
    """A trial's run, in the state that the sweep recorded. It trains only while the sweep does, under the sweep's lease."""
    run, ended = folder.trial(record["number"]), record["state"] != "running"
    if not run.holds_run:
        return _absent(run)
    seen = run.status.read() or {}
    state = record["state"] if ended else _state(folder, seen)
    return _of_run(run, run.read_config().outer.steps, state) | {"reason": record["reason"], "params": record["params"]}


def _absent(folder: RunFolder) -> dict[str, Any]:
    return {"kind": "run", "run_folder": str(folder), "state": "not begun", "step": 0, "steps": None, "events": []}


def _of_several(folder: RunFolder, kind: str, runs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    held = holds(folder.path)
    finished = folder.read_seeds().get("over_seeds") if kind == "seeds" else folder.read_table()
    writes = held is None and any(run["state"] == "running" for run in runs.values())  # from another machine
    state = "running" if held or writes else "finished" if finished else "silent" if held is None else "stopped"
    return {"kind": kind, "run_folder": str(folder), "state": state, "runs": runs}


def lines(answer: dict[str, Any]) -> list[str]:
    """A status as text."""
    if answer["kind"] != "run":
        counts = Counter(run["state"] for run in answer["runs"].values())
        counted = ", ".join(f"{count} {state}" for state, count in counts.items()) or "none begun"
        shown = [f"{answer['run_folder']}: {answer['kind']}, {answer['state']}; {counted}"]
        return shown + [f"  {name}: {_summary(run)}" for name, run in answer["runs"].items()]
    shown = [f"{answer['run_folder']}: {_summary(answer)}"]
    by_node: dict[str, list[str]] = {}
    for worker in answer["workers"]:
        by_node.setdefault(worker["node"], []).append(f"{worker['rank']} (process {worker['pid']})")
    shown += [f"  workers on {node}: {', '.join(workers)}" for node, workers in by_node.items()]
    if answer["checkpoint"] and answer["state"] != "finished":
        shown.append(f"  newest checkpoint: {answer['checkpoint']}")
    return shown + [f"  {_at(event)}  {sentence(event)}" for event in answer["events"]]


def _summary(answer: dict[str, Any]) -> str:
    parts = [answer["state"]]
    if answer["state"] == "running" and answer.get("phase"):
        parts.append(answer["phase"])
    if answer["steps"] is not None:
        parts.append(f"step {answer['step']} of {answer['steps']}")
    if answer.get("steps_per_s"):
        parts.append(f"{answer['steps_per_s']:.3g} steps/s, {time_left(answer['time_left_s'])}")
    if answer.get("test"):
        parts.append(f"test {answer['test']}")
    elif answer.get("validation"):
        parts.append(f"validation {answer['validation']['text']} at step {answer['validation']['step']}")
    if answer["state"] in ("running", "silent") and answer.get("seen_s_ago") is not None:
        parts.append(f"seen {answer['seen_s_ago']:.0f} s ago")
    return "; ".join(parts)


def _at(event: Event) -> str:
    return f"{datetime.fromtimestamp(event['time']):%m-%d %H:%M:%S}"
