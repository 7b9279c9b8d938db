"""The verbs pack, verify and inspect from the command line: their answers, refusals and progress."""

import itertools
import json
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from conftest import patterns
from test_cli import call

from distmeta import cli
from distmeta.data.datasets import DATASETS
from distmeta.data.shards import Dataset
from distmeta.show import counted


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder of class folders, one file of which is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    for number, image in enumerate(patterns(images_per_class=12)):
        path = folder / image.class_name / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image.image if number else b"broken")
    return folder


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    """A verb that ends well: its output and its messages."""
    monkeypatch.setattr("sys.argv", ["distmeta", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    captured = capsys.readouterr()
    assert stopped.value.code in (0, None), captured.err
    return captured.out, captured.err


def test_every_dataset_of_the_table_is_offered() -> None:
    (_, option) = get_args(get_type_hints(cli.data.pack, include_extras=True)["dataset"])
    assert f"{', '.join(DATASETS)}, or the import path" in option.help


def test_a_users_folder_packed_verified_inspected(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    command = (
        "pack",
        "--dataset",
        "folder",
        str(pictures),
        "--out",
        out,
        "--split",
        "0.6/0.2/0.2",
        "--image-size",
        "20",
        "--quality",
        "80",
    )
    task = ("--way", "3", "--shot", "1", "--queries", "5", "--images-per-class", "2", "--processes", "1", "--json")
    answer = json.loads(run(monkeypatch, capsys, *command, *task)[0].splitlines()[-1])
    assert {name: split["classes"] for name, split in answer["splits"].items()} == {"train": 15, "val": 5, "test": 5}
    for split in answer["splits"].values():  # K + Q = 6 of a class's 12 images, or of 11 where one is broken
        assert split["shards"] == (2 if split["images"] == 12 * split["classes"] else 1)
    assert sum(split["images"] for split in answer["splits"].values()) == 299
    assert [skipped["origin"] for skipped in answer["skipped"]] == [str(pictures / "train-0" / "0.png")]
    manifest = Dataset(out).manifest
    assert manifest.source == {"split": "0.6/0.2/0.2", "split_by": "class", "quality": "80"}
    assert manifest.dataset == pictures.name
    assert (manifest.image_format, manifest.preprocessing.image_size) == ("jpg", 20)
    assert json.loads(run(monkeypatch, capsys, "verify", out, "--json")[0].splitlines()[-1]) == {"ok": True, "bad": []}
    shown, said = run(monkeypatch, capsys, "inspect", out, "--episode", str(tmp_path / "e.png"), "--way", "3")
    assert "classes/shard" in shown
    assert said.splitlines()[-1] == f"drew one episode into {tmp_path / 'e.png'}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("folder", "PICTURES"), "PICTURES holds test-0, test-1, test-2, test-3, test-4; without --split"),
        (("folder", "PICTURES", "--split", "0.5/0.5"), "--split 0.5/0.5 is not three positive fractions"),
        (("folder", "PICTURES", "--split-by", "category"), "--split-by needs --split"),
        (
            ("folder", "PICTURES", "--split", "0.6/0.2/0.2", "--way", "6", "--shot", "1", "--queries", "1"),
            "way=6 but split 'val' has 5 classes",
        ),
        (("folder", "PICTURES", "--split", "0.6/0.2/0.2", "--way", "6"), "--way, --shot and --queries describe one task together"),
        (
            ("folder", "PICTURES", "--split", "0.6/0.2/0.2", "--format", "png", "--quality", "9"),
            "--quality is JPEG's, but the images become",
        ),
        (("folder", "PICTURES", "--split", "0.6/0.2/0.2", "--max-bad-fraction", "0"), "1 of 300 images do not decode"),
        (("folder", "PICTURES", "--omniglot-split", "alphabets"), "--omniglot-split has no meaning for folder"),
        (("glyphs", "--split", "0.6/0.2/0.2"), "--split has no meaning for glyphs"),
        (("omniglot", "PICTURES", "--allow-missing"), "--allow-missing has no meaning for omniglot"),
        (("folder",), "folder needs the path of its images"),
        (("mini-imagenet", "PICTURES"), "PICTURES/train.csv is not a file"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    arguments: tuple[str, ...],
    message: str,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [argument.replace("PICTURES", str(pictures)) for argument in arguments]
    code, out, err = call(monkeypatch, capsys, "pack", "--out", str(tmp_path / "out"), "--processes", "1", "--dataset", *given)
    reason, remedy = err.splitlines()[-2:]
    assert code in (1, 2)
    assert out == ""
    assert reason.startswith("distmeta: " + message.replace("PICTURES", str(pictures)))
    assert remedy.startswith("  ")
    assert not (tmp_path / "out").exists()


def test_without_a_terminal_progress_is_a_line_every_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(step=0.5)
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(counted(range(50), "packing", 80)) == list(range(50))
    assert capsys.readouterr().err.splitlines() == ["packing: 20 of 80, 30 s left, 2/s", "packing: 40 of 80, 20 s left, 2/s"]
