"""The command line's answers to bad input: two lines, exit code 1 or 2, never a traceback, nothing half-written."""

import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distmeta import cli


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["distmeta", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    code = stopped.value.code
    assert isinstance(code, int)
    return code, captured.out, captured.err


PACK = ("pack", "--out", "out", "--dataset")


@pytest.mark.parametrize(
    ("arguments", "code", "first", "second"),
    [
        ((*PACK, "omniglot"), 2, "omniglot needs the path of its images", "distmeta pack --dataset omniglot PATH"),
        ((*PACK, "glyphs", "x"), 2, "glyphs are drawn from fonts, not read from x", "leave the path out"),
        ((*PACK, "tiered-imagenet", "x.tar"), 2, "tiered-imagenet needs its split files", "give --splits FOLDER"),
        ((*PACK, "omniglot", "absent"), 1, "", ""),
        ((*PACK, "tiered-imagenet", "absent.tar", "--splits", "absent"), 1, "", ""),
        (("inspect", "absent"), 1, "absent is not a packed dataset: it has no manifest.json", "pack it first: distmeta pack --help"),
        (("train", "absent.yaml"), 2, "config absent.yaml cannot be read: No such file", "give the path of a YAML file"),
        (
            ("predict", "--model", "x", "--support", "a", "--query", "b"),
            2,
            "model 'x' is not a registry address",
            "write models:/NAME@ALIAS",
        ),
    ],
)
def test_a_refusal_is_two_lines_and_an_exit_code(
    arguments: tuple[str, ...],
    code: int,
    first: str,
    second: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    exit_code, out, err = call(monkeypatch, capsys, *arguments)
    lines = err.splitlines()
    assert exit_code == code
    assert out == ""
    assert len(lines) == 2, err
    assert lines[0].startswith(f"distmeta: {first}")
    assert lines[1].startswith(f"  {second}")
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_wrong_usage_is_exit_code_2(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (("pack", "--dataset", "nonsense", "--out", "x"), ("train",), ("nonsense",)):
        code, _, err = call(monkeypatch, capsys, *arguments)
        assert code == 2
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["data.way=13"], "data.way=13 but split 'train'"),
        (["data.eval.way=7"], "data.eval.way=7 but split 'val'"),
        (["data.eval.way=4"], "data.eval.way=4 but data.way=3: the network's head"),
        (["data.shot=3", "data.queries=4"], "data.shot + data.queries = 7 but class"),
        (["train.workers=5", "outer.meta_batch_size=4"], "train.workers=5 but outer.meta_batch_size=4: 1 workers would have nothing"),
        (["run_folder=http://host/run"], "run_folder=http://host/run cannot be used"),
    ],
)
def test_impossible_tasks_leave_no_run_folder(
    sets: list[str], message: str, packed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(f"data: {{shards: {packed}, way: 3, shot: 1, queries: 2}}")
    overrides = [part for override in sets for part in ("--set", override)]
    code, _, err = call(monkeypatch, capsys, "train", "c.yaml", *overrides)
    assert code == 2
    reason, remedy = err.splitlines()[-2:]
    assert reason.startswith(f"distmeta: {message}")
    assert remedy.startswith("  ")
    assert "Traceback" not in err
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]


def test_what_nobody_foresaw_is_two_lines_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(location: str) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("distmeta.data.shards.Dataset", broken)
    code, _, err = call(monkeypatch, capsys, "inspect", "x")
    assert code == 1
    assert err.splitlines() == ["distmeta: unexpected KeyError: 'surprise'", "  run it again with --debug to see where, and report it"]


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    from distmeta.errors import DataError

    monkeypatch.setattr("sys.argv", ["distmeta", "--debug", "inspect", "absent"])
    with pytest.raises(DataError):
        cli.main()


def test_config_prints_its_keys_only_if_asked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(Path(__file__).parent.parent / "configs" / "quickstart.yaml")
    _, out, _ = call(monkeypatch, capsys, "config", path)
    assert out.endswith("quickstart.yaml is valid; --show prints its keys\n")
    _, out, _ = call(monkeypatch, capsys, "config", path, "--set", "outer.lr=0.002", "--show")
    assert [line.split()[1::2] for line in out.splitlines() if "outer.lr " in line] == [["outer.lr", "0.002", "--set"]]


def test_the_version_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(monkeypatch, capsys, "--version")
    assert (code, out) == (0, f"distmeta {importlib.metadata.version('distmeta')}\n")


@pytest.mark.parametrize(("line", "completed"), [("distmeta tr", {"train"}), ("distmeta train --all", {"--allow-other-hardware"})])
def test_a_shell_completes_verbs_and_options(line: str, completed: set[str]) -> None:
    asked = {"_DISTMETA_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    found = subprocess.run([sys.executable, "-m", "distmeta"], env=os.environ | asked, capture_output=True, text=True, timeout=60)
    assert (set(found.stdout.split()), found.stderr) == (completed, "")
