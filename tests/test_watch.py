"""Training is watched from the main thread: a first signal asks it to stop, a second one ends the watch, and a lost board is said."""

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError

from distmeta.errors import ClusterError
from distmeta.scale.fit import Fit, watch
from distmeta.scale.progress import read


class Going:
    """Training that goes on for as many looks as there are entries; each may be a signal that this process gets then."""

    def __init__(self, *signals: int | None) -> None:
        self._signals: Iterator[int | None] = iter(signals)

    @property
    def going(self) -> bool:
        for number in self._signals:
            if number is not None:
                os.kill(os.getpid(), number)
            return True
        return False


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmeta.scale.fit._POLL_S", 0.0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_once_and_the_watch_continues_to_the_end(number: int) -> None:
    seen: list[str] = []
    before = signal.getsignal(number)
    fit: Any = Going(None, number, None, None)
    watch(fit, lambda: seen.append("look"), lambda: seen.append("stop"))
    assert seen == ["look", "stop", "look", "look", "look"]
    assert signal.getsignal(number) is before


def test_a_second_signal_ends_the_watch_at_once() -> None:
    seen: list[str] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    fit: Any = Going(signal.SIGTERM, signal.SIGINT, None)
    with pytest.raises(KeyboardInterrupt):
        watch(fit, lambda: seen.append("look"), lambda: seen.append("stop"))
    assert seen == ["stop", "look"]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize("error", [ValueError("no such file"), OSError("gone"), RuntimeError("lost")])
def test_whatever_ends_the_thread_is_kept_for_the_watcher(error: Exception) -> None:
    def fit() -> None:
        raise error

    watched = Fit(SimpleNamespace(fit=fit))
    watch(watched, lambda: None, lambda: None)
    assert watched.error is error


BOARD = SimpleNamespace(snapshot=SimpleNamespace(remote=lambda: None))


def answers(monkeypatch: pytest.MonkeyPatch, *in_turn: Any) -> None:
    """Let a board give these answers, or raise them."""
    left = iter(in_turn)

    def get(_: object) -> Any:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr("distmeta.scale.progress._UPDATE_EVERY_S", 0.0)


def test_a_board_that_does_not_answer_for_a_while_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    busy = ActorUnavailableError("no answer", None)
    answers(monkeypatch, busy, busy, ({"step": 3}, None))
    assert read(BOARD) == ({"step": 3}, None)


def test_a_board_whose_process_is_gone_is_an_error_of_ours_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    answers(monkeypatch, ActorUnavailableError("no answer", None), ActorDiedError())
    with pytest.raises(ClusterError, match=r"progress was lost\n.*--resume"):
        read(BOARD)
