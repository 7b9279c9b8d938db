"""Hostile inputs, each in a watched process of its own: refused by name with a remedy, or answered right, in time, touching nothing."""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from case import Case, Outcome
from cases import CASES, REAL
from forks import Forks

LANES = 2
# verify names each finding on a line of its own, and counts them
_REFUSAL = re.compile(r"^(distmeta: \S.*\n  \S.*|\d+ shards, [1-9]\d* findings)$", re.MULTILINE)
_AGAIN = re.compile(r"started os.exec /\S*python")  # it begins again in Python's UTF-8 mode

Outcomes = dict[str, "Future[Outcome]"]


def started(kind: str, lanes: int) -> Callable[[pytest.FixtureRequest, pytest.TempPathFactory], Iterator[Outcomes]]:
    """A fixture: all cases of this kind that were selected run, several at once, while the first tests wait for them."""

    def fixture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcomes]:
        items = [item for item in request.session.items if isinstance(item, pytest.Function) and item.module is request.module]
        chosen = [item.callspec.params[kind] for item in items if hasattr(item, "callspec") and kind in item.callspec.params]
        forks = Forks(tmp_path_factory.mktemp(kind), lanes, real=kind == "real")
        yield {case.name: forks.start(case.name) for case in chosen}
        forks.end()

    return fixture


forked = pytest.fixture(scope="module", name="forked")(started("case", LANES))
commands = pytest.fixture(scope="module", name="commands")(started("real", 1))


def check(case: Case, found: Outcome) -> None:
    told = f"{case.name}: {found.code} in {found.seconds:.1f} s\n{found.out[-3000:]}\n{found.err[-3000:]}\n{found.notes}"
    assert found.code is not None, f"not within {case.seconds} s: {told}"
    assert found.code in (case.code if isinstance(case.code, tuple) else (case.code,)), told
    assert "Traceback" not in found.out + found.err, told
    assert "distmeta: unexpected" not in found.err, told
    assert [note for note in found.notes if not _AGAIN.match(note)] == [], told
    assert not found.left, f"processes were left: {told}"
    assert "\x1b" not in found.err + ("" if case.verbatim else found.out), f"a terminal would obey it: {told}"
    assert "hunter2" not in found.out + found.err, f"a secret is shown: {told}"
    if found.code:
        assert _REFUSAL.search(found.err), f"no message and remedy: {told}"
    assert re.search(case.says, found.out + found.err), f"{case.says!r} is not said: {told}"


def _params(cases: list[Case]) -> list[object]:
    return [pytest.param(case, id=case.name, marks=pytest.mark.slow if case.seldom else ()) for case in cases]


@pytest.mark.parametrize("real", _params(REAL))
def test_a_hostile_input_ends_well_by_the_real_command(real: Case, forked: Outcomes, commands: Outcomes) -> None:
    """The forked cases run meanwhile."""
    check(real, commands[real.name].result())


@pytest.mark.parametrize("case", _params(CASES))
def test_a_hostile_input_ends_well(case: Case, forked: Outcomes) -> None:
    check(case, forked[case.name].result())


def test_there_are_as_many_as_were_promised() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
    assert len([case for case in CASES if not case.seldom]) >= 300
    assert len(REAL) >= 30
