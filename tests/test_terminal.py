"""Work outlives its terminal: closed pipes and terminals, full disks, encodings that lack a character, names that are not text."""

import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from distmeta import terminal
from distmeta.show import next_commands, show_table, write_predictions
from distmeta.terminal import console, lasting

PREPARED = "import sys, pathlib; from distmeta import terminal; terminal.prepare()\n"


def run(code: str, tmp_path: Path, environment: dict[str, str] | None = None, **arguments: Any) -> subprocess.CompletedProcess[bytes]:
    (tmp_path / "program.py").write_text(PREPARED + code, encoding="utf-8")
    command = [sys.executable, "program.py"]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)} | (environment or {})
    return subprocess.run(command, cwd=tmp_path, env=os.environ | environment, timeout=60, check=False, **arguments)


def test_a_pipe_whose_reader_has_left_ends_nothing(tmp_path: Path) -> None:
    code = """
for file in (sys.stdout, sys.stderr):
    for number in range(10_000):
        print("line", number, file=file)
    file.flush()
pathlib.Path("done").write_text(str(terminal.lost_output()))
"""
    reader, writer = os.pipe()
    os.close(reader)
    assert run(code, tmp_path, stdout=writer, stderr=writer).returncode == 0
    os.close(writer)
    assert (tmp_path / "done").read_text() == "None", "a reader that left has what it wanted"


def test_standard_streams_that_are_closed_end_nothing(tmp_path: Path) -> None:
    code = """
print("out"); print("err", file=sys.stderr)
with open("data", "w") as file:
    file.write("mine")
"""
    script = f"{sys.executable} -c '{PREPARED + code}' <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=tmp_path, timeout=60).returncode == 0
    assert (tmp_path / "data").read_text() == "mine", "output went into a file of the same number"


def test_a_hangup_ends_nothing(tmp_path: Path) -> None:
    code = """
import os, signal, subprocess
os.kill(os.getpid(), signal.SIGHUP)
child = subprocess.run(["sh", "-c", "kill -HUP $$; echo alive"], capture_output=True, text=True)
pathlib.Path("done").write_text(child.stdout)
"""
    assert run(code, tmp_path).returncode == 0
    assert (tmp_path / "done").read_text() == "alive\n", "Ray's processes, which this one starts, would end"


def test_a_second_signal_does_not_interrupt_the_message_of_the_first(tmp_path: Path) -> None:
    """`timeout` sends SIGTERM to its command and then to the whole group."""
    code = """
import os, signal, sys
from distmeta import cli
from distmeta.report import status
def end(*_):
    os.kill(os.getpid(), signal.SIGTERM)
status.status = end
cli._report_lost = end
sys.argv = ["distmeta", "status", "."]
cli.main()
"""
    done = run(code, tmp_path, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr.decode()) == (130, "distmeta: interrupted\n  give the same command again\n")


def test_a_disk_that_is_full_is_said_at_the_end(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distmeta", "--help"]
    with Path("/dev/full").open("w") as full:
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (found.returncode, found.stderr) == (
        1,
        "distmeta: standard output could not be written: No space left on device\n  give the same command again where there is room\n",
    )


@pytest.mark.parametrize(
    "environment",
    [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}],
    ids=["ascii", "C locale"],
)
def test_characters_that_an_encoding_lacks_are_escaped_and_files_are_utf_8(environment: dict[str, str], tmp_path: Path) -> None:
    code = """
print("98 ± 1 %")
pathlib.Path("report").write_text("98 ± 1 %")
"""
    found = run(code, tmp_path, environment, stdout=subprocess.PIPE)
    assert found.returncode == 0
    assert found.stdout in (b"98 \\xb1 1 %\n", "98 ± 1 %\n".encode())
    assert (tmp_path / "report").read_bytes() == "98 ± 1 %".encode()


class Answer:
    """A prediction of a file by this name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def as_dict(self) -> dict[str, Any]:
        return {"file": self.name, "class": "a", "probability": 1.0, "truth": None, "right": None}


def test_a_file_name_that_is_not_text_does_not_end_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    names = [b"a.png", b"\xff\xe9.png", "é.png".encode(), b"z.png"]
    answers: Any = [Answer(os.fsdecode(name)) for name in names]
    for encoding, written in (("utf-8", names), ("ascii", [*names[:2], b"\\xe9.png", b"z.png"])):
        with (tmp_path / encoding).open("wb") as file, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", lasting(file.fileno(), encoding))
            write_predictions(answers, "csv", keep=False)
            sys.stdout.flush()
        assert [line.split(b",")[0] for line in (tmp_path / encoding).read_bytes().splitlines()[1:]] == written


WORDS = st.lists(st.text("abcdefg", min_size=1, max_size=30), min_size=0, max_size=4).map(" ".join)


@given(st.integers(1, 6).flatmap(lambda columns: st.lists(st.lists(WORDS, min_size=columns, max_size=columns), min_size=2, max_size=4)))
def test_no_word_is_cut_at_80_columns(cells: list[list[str]]) -> None:
    """Headers and model addresses can be read and copied whole: a table that is too wide becomes a list."""
    columns = [name or "x" for name in cells[0]]
    with redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patched:
        patched.setattr(terminal, "_WIDTH", 80)
        show_table(columns, cells[1:])
    printed = set(re.split(r"[\s│┃:]+", out.getvalue()))
    filled = {name for name, *values in zip(columns, *cells[1:], strict=True) if any(values)}
    assert printed >= {word for text in (*filled, *(cell for row in cells[1:] for cell in row)) for word in text.split()}
    assert all(len(line) <= 80 for line in out.getvalue().splitlines() if line[:1] in ("│", "┃", "┏"))


def test_data_is_printed_as_it_is() -> None:
    file = io.StringIO()
    table = Table("file")
    table.add_row(":smile:[red]x[/red].png")
    console(file).print(table)
    console(file).print(":smile: [bold]y", soft_wrap=True)
    assert ":smile:[red]x[/red].png" in file.getvalue()
    assert file.getvalue().endswith(":smile: [bold]y\n")


@pytest.mark.parametrize(
    ("found", "started", "expected"),
    [
        ("/bin/distmeta", "/anywhere/distmeta", "distmeta"),
        (None, ".venv/bin/distmeta", ".venv/bin/distmeta"),
        (None, "./distmeta", "./distmeta"),
        (None, "my env/bin/distmeta", "'my env/bin/distmeta'"),
        (None, "distmeta/__main__.py", f"{shlex.quote(sys.executable)} -m distmeta"),  # python -m distmeta
        (None, "-c", f"{shlex.quote(sys.executable)} -m distmeta"),
    ],
)
def test_the_next_commands_start_the_program_as_this_one_was_started(
    found: str | None, started: str, expected: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: found)
    monkeypatch.setattr(sys, "argv", [started, "train"])
    next_commands("data/glyphs", "models:/glyphs@champion", 5, 1, None, {})
    assert f"  {expected} models\n" in "".join(capsys.readouterr())
