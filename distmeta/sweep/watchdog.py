"""Watches a sweep's trials while Ray Tune runs them, so that none waits for resources that are never released.

Every second it removes the placement groups of trials that have ended, and reports what each trial that does not train yet waits for. A
trial that stays at one stage of its start for too long is restarted once, then failed. A resumed sweep removes an earlier session's groups
by their recorded ids.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from distmeta.config import TrainConfig
from distmeta.errors import ClusterError, DistmetaError, Overtaken
from distmeta.scale import places
from distmeta.scale.places import Group
from distmeta.scale.progress import STARTING
from distmeta.sweep.records import Records
from distmeta.sweep.tuner import Running, Source
from distmeta.training import lease
from distmeta.training.lease import Claim

_EVERY_S = 1.0
_ANSWER_S = 30.0
_PROCESS = "its process"


@dataclass
class _Start:
    """How long a trial has waited at this stage of its start, and whether it was restarted for that. `blocked`: others hold the resources
    that it needs.
    """

    stage: str = ""
    waited_s: float = 0.0
    restarted: bool = False
    blocked: bool = False


def _driver(status: dict[str, Any]) -> Any:
    """The actor of the trial's driver, if its board knows it."""
    return ray.cloudpickle.loads(status["driver"]) if "driver" in status else None


class Watchdog:
    """`waiting` is the number of each trial that does not train yet → what it waits for; `error` is set if the sweep cannot continue.

    `claim` is the sweep's claim, checked in every turn. `needs`: the resources that Ray reserves for each of a trial's workers. `say` is
    called with messages for the user.
    """

    def __init__(
        self, *, records: Records, source: Source, claim: Claim, train: TrainConfig, needs: dict[str, float], say: Callable[[str], None]
    ) -> None:
        self.records = records
        self.waiting: dict[int, str] = {}
        self.error: DistmetaError | None = None
        self._claim = claim
        self._source = source
        self._workers, self._limit_s = train.fewest, train.start_timeout_s
        self._needs = needs
        self._say = say
        self._job = places.own_job()
        self._recorded = set(records.folder.read_groups())
        self._starts: dict[int, _Start] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        places.remove(self._recorded)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        places.remove(group.id for group in places.groups() if group.job == self._job)

    def _run(self) -> None:
        last = time.monotonic()
        while not self._end.wait(_EVERY_S):
            since, last = last, time.monotonic()
            try:
                lease.check(self._claim)
                self._turn(last - since)
            except Overtaken as error:
                self.error = error
            except (RayError, RuntimeError, OSError):  # the cluster or storage does not answer now; if it is gone, Ray Tune reports it
                continue

    def _turn(self, seconds: float) -> None:
        groups = places.groups()
        own = [group for group in groups if group.job == self._job]
        self._record({group.id for group in own})
        places.remove(group.id for group in own if group.orphaned)
        running = self._source.running
        statuses = [status for status, _ in ray.get([one.board.snapshot.remote() for one in running], timeout=_ANSWER_S)]
        starting = {one.trial.number: one for one, status in zip(running, statuses, strict=True) if status["phase"] == STARTING}
        drivers = {one.trial.number: _driver(status) for one, status in zip(running, statuses, strict=True)}
        for number in self._starts.keys() - starting.keys():
            del self._starts[number]
        self.waiting = self._look(starting, drivers, [group for group in groups if not group.orphaned]) if starting else {}
        trains = len(running) > len(starting)
        for number, one in starting.items():
            start = self._starts[number]
            if not (start.blocked and trains):  # a training trial will end and release its resources
                start.waited_s += seconds
            if start.waited_s > self._limit_s:
                self._expire(one, start, drivers[number])

    def _record(self, groups: set[str]) -> None:
        if not groups <= self._recorded:
            self._recorded |= groups
            self.records.folder.write_groups(sorted(self._recorded))

    def _look(self, starting: dict[int, Running], drivers: dict[int, Any], groups: list[Group]) -> dict[int, str]:
        """What each trial of `starting` waits for. Also records whether others hold it."""
        creators = places.creators(self._job)
        trial_of = {driver._actor_id.hex(): number for number, driver in drivers.items() if driver is not None}
        trial_of |= {actor: trial_of[creator] for actor, creator in creators.items() if creator in trial_of}
        names = {actor: f"trial {number}" for actor, number in trial_of.items()}
        enough = places.free_places(self._needs) >= self._workers
        waiting = {}
        for number in starting:
            start = self._starts.setdefault(number, _Start())
            mine = [group for group in groups if trial_of.get(group.controller) == number]
            start.blocked = bool(mine) and not enough and not any(group.placed for group in mine)
            stage = _PROCESS if drivers[number] is None else places.stage(mine)
            if stage != start.stage:  # it makes progress, if slowly
                start.stage, start.waited_s = stage, 0.0
            awaited = stage if stage == _PROCESS else places.awaited(mine, groups, names, self._needs, self._workers)
            waiting[number] = f"waits for {awaited}"
        return waiting

    def _expire(self, one: Running, start: _Start, driver: Any) -> None:
        """Restart the trial's driver, or fail the trial if that was done already."""
        number, waits = one.trial.number, self.waiting[one.trial.number]
        if driver is None:
            self.error = ClusterError(
                f"Ray has not started a process for trial {number} in {start.waited_s:.0f} s",
                f"see {self.records.folder.log}; --resume continues",
            )
            return
        if start.restarted:
            remedy = "free the cluster, or raise train.start_timeout_s; --resume runs this trial again"
            failure = ClusterError(f"not started in twice {self._limit_s:g} s: it {waits}", remedy)
            one.trial.folder(self.records.folder).write_failure(failure)
            one.trial.unplaced = True
        else:
            self._say(f"trial {number} has not started in {self._limit_s:g} s and is restarted: it {waits}")
        start.waited_s, start.restarted = 0.0, True
        ray.kill(driver)
