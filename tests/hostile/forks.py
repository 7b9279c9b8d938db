"""Runs hostile cases: each in a fork of a process that has imported everything once, or by the real command.

`python forks.py FOLDER LANES` imports everything and then forks a process for each lane, which makes a world of its own in FOLDER/N/work.
A lane reads names of cases, one on each line, runs each there and answers with a line of JSON. Before each case the working folder is as it
was at first, at the same place.
"""

import compileall
import contextlib
import gc
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import IO, TextIO

if __name__ == "__main__":
    sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from case import Case, Outcome
from watch import environment, watch

import distmeta

_HOME = ("documents/thesis.txt", ".ssh/id_rsa", "secret.png")


class Forks:
    """Lanes that run cases, several at once; each case by a fork, or if `real` by the real command."""

    def __init__(self, folder: Path, lanes: int, real: bool = False) -> None:
        compileall.compile_dir(Path(distmeta.__file__).parent, quiet=1)  # once for all: nothing is written while cases run
        pipes = [(os.pipe(), os.pipe()) for _ in range(lanes)]
        ends = [descriptor for (asking, _), (_, answer) in pipes for descriptor in (asking, answer)]
        command = [sys.executable, __file__, str(folder), "real" if real else "forked", *map(str, ends)]
        self._process = subprocess.Popen(command, pass_fds=ends, env=_clean())
        for descriptor in ends:
            os.close(descriptor)
        self._free: Queue[tuple[IO[str], IO[str]]] = Queue()
        self._lanes = [(os.fdopen(ask, "w"), os.fdopen(answers)) for (_, ask), (answers, _) in pipes]
        for lane in self._lanes:
            self._free.put(lane)
        self._pool = ThreadPoolExecutor(lanes)

    def start(self, name: str) -> "Future[Outcome]":
        """Run a case as soon as a lane is free."""
        return self._pool.submit(self._run, name)

    def _run(self, name: str) -> Outcome:
        ask, answers = lane = self._free.get()
        try:
            print(name, file=ask, flush=True)
            return Outcome(*json.loads(answers.readline()))
        finally:
            self._free.put(lane)

    def end(self) -> None:
        self._pool.shutdown()
        for ask, answers in self._lanes:
            ask.close()
            answers.close()
        self._process.wait()


def _clean() -> dict[str, str]:
    """This process's environment, without what names a cluster, a registry or a proxy."""
    gone = ("RAY_", "MLFLOW_", "AWS_", "HTTP", "http", "PYTEST")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(gone)}
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join([str(Path(__file__).parent), tests, str(Path(tests).parent)])
    quiet = {"RAY_ADDRESS": "127.0.0.1:1", "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return kept | {"PYTHONPATH": paths} | quiet


class _Place:
    """Where cases run, one after another: FOLDER/work, put back for each, and FOLDER/home, which must stay as it is."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.work, self._kept = folder, folder / "work", folder / "kept"
        self.work.mkdir(parents=True)
        os.environ |= {"HOME": str(folder / "home"), "TMPDIR": str(self.work / "tmp")}
        (self.work / "tmp").mkdir()
        for name in _HOME:
            path = folder / "home" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"the user's own {name}")
        self._home = self._digest()

    def keep(self) -> None:
        shutil.copytree(self.work, self._kept, symlinks=True)

    def restore(self) -> None:
        os.chdir(self.folder)
        shutil.rmtree(self.work)
        shutil.copytree(self._kept, self.work, symlinks=True, copy_function=_copy)

    def changes(self) -> list[str]:
        found = self._digest()
        return [] if found == self._home else ["the user's own files were changed"]

    def _digest(self) -> str:
        content = [(str(path), path.read_bytes()) for path in sorted((self.folder / "home").rglob("*")) if path.is_file()]
        return hashlib.sha256(repr(content).encode()).hexdigest()


def _copy(source: str, target: str) -> object:
    """The code of published models is linked: no case writes there."""
    return os.link(source, target) if "/code/" in source else shutil.copy(source, target)


def _serve(folder: Path, real: bool, ends: list[int]) -> None:
    """Fork the lanes, and end when all have ended."""
    os.environ["MPLCONFIGDIR"] = str(folder / "matplotlib")
    import matplotlib.font_manager  # noqa: F401 (it makes its list of fonts)
    import world  # noqa: F401 (before the forks)

    if not real:
        _import_all()
    lanes = []
    for number, (asked, answers) in enumerate(zip(ends[::2], ends[1::2], strict=True)):
        lane = os.fork()
        if not lane:
            for other in set(ends) - {asked, answers}:
                os.close(other)
            _lane(folder / str(number), real, asked, answers)
            os._exit(0)
        lanes.append(lane)
    for descriptor in ends:
        os.close(descriptor)
    for lane in lanes:
        os.waitpid(lane, 0)


def _lane(folder: Path, real: bool, asked: int, answers: int) -> None:
    from cases import CASES
    from world import make

    cases = {case.name: case for case in CASES}
    place = _Place(folder)
    made = os.fork()
    if not made:  # apart, so that no case inherits an open database
        make(place.work)
        os._exit(0)
    assert os.waitpid(made, 0)[1] == 0
    place.keep()
    if not real:
        _warm(place)
    gc.freeze()  # a fork does not touch what it only reads
    with os.fdopen(asked) as names, os.fdopen(answers, "w") as out:
        for name in names:
            place.restore()
            print(json.dumps(_outcome(cases[name.rstrip("\n")], place, _real if real else _forked)), file=out, flush=True)


def _warm(place: _Place) -> None:
    """Do once what every process does at its first call, such as MLflow's mapping of tables; forks then do it no more.

    On a copy at another place, so that no database that a case uses is open.
    """
    from cases.pictures import PREDICT

    from distmeta.cli import main

    copy, streams, arguments = place.folder / "warm", (sys.stdout, sys.stderr), sys.argv
    shutil.copytree(place.work, copy, symlinks=True)
    os.chdir(copy)
    with open(os.devnull, "w") as nowhere:
        for asked in (("models",), PREDICT, ("report", "run"), ("publish", "run")):
            sys.stdout = sys.stderr = nowhere
            sys.argv = ["distmeta", *asked]
            with contextlib.suppress(SystemExit):
                main()
    (sys.stdout, sys.stderr), sys.argv = streams, arguments
    os.chdir(place.folder)
    shutil.rmtree(copy)


def _import_all() -> None:
    """What the verbs import when they are called."""
    import distmeta.assembly.report
    import distmeta.assembly.sync
    import distmeta.cli
    import distmeta.data.pack
    import distmeta.data.sources
    import distmeta.data.verify
    import distmeta.registry.compare
    import distmeta.registry.listing
    import distmeta.registry.versions
    import distmeta.report.explain
    import distmeta.scale.run
    import distmeta.scale.submit
    import distmeta.sweep.driver  # noqa: F401


def _outcome(case: Case, place: _Place, start: Callable[[Case, _Place, IO[str], IO[str]], int]) -> Outcome:
    notes = place.folder / "notes"
    notes.write_text("")
    with tempfile.TemporaryFile("w+", errors="replace") as out, tempfile.TemporaryFile("w+", errors="replace") as err:
        began = time.monotonic()
        pid = start(case, place, out, err)
        code = _wait(pid, case.seconds * (3 if start is _real else 1))  # a command imports torch first
        seconds = time.monotonic() - began
        left = _end_group(pid)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read())
    return Outcome(code, texts[0], texts[1], [*notes.read_text().splitlines(), *place.changes()], left and code is not None, seconds)


def _wait(pid: int, seconds: float) -> int | None:
    descriptor = os.pidfd_open(pid)
    try:
        if not select.select([descriptor], [], [], seconds)[0]:
            os.killpg(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return None
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(descriptor)


def _end_group(pid: int) -> bool:
    """Whether processes of the case were left."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _output(case: Case, out: IO[str]) -> int:
    """The descriptor for standard output."""
    if case.terminal == "full":
        return os.open("/dev/full", os.O_WRONLY)
    if case.terminal == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        return writer
    return os.dup(out.fileno())


def _arranged(case: Case, place: _Place) -> Callable[[], object]:
    """Lay the input into the working folder; what to call then."""
    from distmeta.cli import main

    os.chdir(place.work)
    os.environ.update(case.env)
    tempfile.tempdir = None
    asked = case.arrange()
    if callable(asked):
        return asked
    sys.argv = ["distmeta", *asked]
    return main


def _stream(descriptor: int, encoding: str, errors: str = "backslashreplace") -> TextIO:
    return open(descriptor, "w" if descriptor else "r", encoding=encoding, errors=errors, closefd=False)


def _forked(case: Case, place: _Place, out: IO[str], err: IO[str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        asked = _arranged(case, place)
        (place.folder / "input").write_text(case.listed)
        os.dup2(os.open(place.folder / "input", os.O_RDONLY), 0)
        os.dup2(_output(case, out), 1)
        os.dup2(err.fileno(), 2)
        encoding = case.env.get("PYTHONIOENCODING", "utf-8")
        sys.stdin, sys.stdout, sys.stderr = _stream(0, "utf-8", "surrogateescape"), _stream(1, encoding), _stream(2, encoding)
        watch(place.work, place.folder / "notes")
        code = _called(asked)
    except BaseException:
        os.write(err.fileno(), traceback.format_exc().encode())
    finally:
        os._exit(code)


def _called(asked: Callable[[], object]) -> int:
    """The exit code that the command would have; a call in Python prints what it raises as the command does."""
    from distmeta.errors import DistmetaError

    try:
        asked()
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except DistmetaError as error:
        print(f"distmeta: {error.message}\n  {error.remedy}", file=sys.stderr)
        code = error.exit_code
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code


def _real(case: Case, place: _Place, out: IO[str], err: IO[str]) -> int:
    reader, writer = os.pipe()
    arranging = os.fork()
    if not arranging:  # in a fork: nothing that it changes stays
        try:
            os.chdir(place.work)
            os.write(writer, json.dumps(list(case.arrange())).encode())  # type: ignore[arg-type]
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as asked:
        arguments = json.loads(asked.read())
    os.waitpid(arranging, 0)
    (place.folder / "input").write_text(case.listed)
    env = os.environ | environment(place.work, place.folder / "notes") | case.env
    command = [sys.executable, "-m", "distmeta", *arguments]
    with (place.folder / "input").open() as listed:
        output = _output(case, out)
        started = subprocess.Popen(command, cwd=place.work, env=env, stdin=listed, stdout=output, stderr=err, start_new_session=True)
        os.close(output)
    return started.pid


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), sys.argv[2] == "real", list(map(int, sys.argv[3:])))
