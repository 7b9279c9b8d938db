"""Images from a function of the user's own, by import path."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import options, patterns
from test_cli import call

from distmeta.data.datasets import PackRequest, open_source
from distmeta.data.inspect import overview
from distmeta.data.pack import pack
from distmeta.data.shards import Dataset
from distmeta.data.sources import SourceImage
from distmeta.data.verify import verify
from distmeta.errors import ConfigError

IMAGE = next(iter(patterns())).image


def four_fields(folder: Path) -> Iterator[tuple[str, str, str, bytes]]:
    assert folder == Path("there")
    for image in patterns():
        yield image[:4]


def five_fields() -> list[SourceImage]:
    return list(patterns())


def listed(*items: Any) -> Any:
    """A source of these items after a good one."""
    return lambda: iter([("train", "a", "b", IMAGE), *items])


def fails() -> Iterator[SourceImage]:
    yield from list(patterns())[:70]
    raise RuntimeError("no\nmore")


number = 5
nothing = lambda: None  # noqa: E731
wants_a_path = four_fields
no_tuple = listed("train/a/1.png")
too_short = listed(("train", "a", IMAGE))
a_path = listed(("train", "a", "b", Path("a/1.png")))
other_split = listed(("valid", "a", "b", IMAGE))
no_class = listed(("train", "", "b", IMAGE))
unprintable = listed(("train", "a", "b\n", IMAGE))
two_splits = listed(("test", "a", "b", IMAGE))
no_origin = listed(("train", "a", "b", IMAGE, None))


@pytest.mark.parametrize(("function", "source"), [("four_fields", Path("there")), ("five_fields", None)])
def test_what_it_yields_is_packed_like_any_other_source(function: str, source: Path | None, packed: Path, tmp_path: Path) -> None:
    opened = open_source(PackRequest(f"{__name__}.{function}", source), pytest.fail)
    pack(opened.images, tmp_path / "out", options())
    assert Dataset(str(tmp_path / "out")).manifest == Dataset(str(packed)).manifest


@pytest.mark.parametrize(
    ("name", "code", "message"),
    [
        ("no_such_package.photos", 2, "--dataset no_such_package.photos cannot be imported: ModuleNotFoundError"),
        (f"{__name__}.absent", 2, f"--dataset {__name__}.absent cannot be imported: AttributeError"),
        ("broken_source.photos", 2, "--dataset broken_source.photos cannot be imported: ZeroDivisionError"),
        (".photos", 2, "--dataset .photos cannot be imported: ValueError"),
        ("photos", 2, "--dataset photos is not one of glyphs, omniglot, mini-imagenet, tiered-imagenet, folder"),
        (f"{__name__}.number", 2, f"--dataset {__name__}.number is a int, not a function that yields images"),
        (f"{__name__}.nothing", 1, f"{__name__}.nothing failed after 0 items: TypeError(\"'NoneType' object is not iterable"),
        (f"{__name__}.wants_a_path", 1, f"{__name__}.wants_a_path failed after 0 items: TypeError("),
        (f"{__name__}.no_tuple", 1, f"item 2 of {__name__}.no_tuple, 'train/a/1.png', is not (split, class, category, image)"),
        (f"{__name__}.too_short", 1, f"item 2 of {__name__}.too_short, ('train', 'a', b'"),
        (f"{__name__}.a_path", 1, f"item 2 of {__name__}.a_path, ('train', 'a', 'b', PosixPath('a/1.png')), has a PosixPath as its image"),
        (f"{__name__}.no_origin", 1, f"item 2 of {__name__}.no_origin, ('train', 'a', 'b', b'"),
        (f"{__name__}.other_split", 1, f"item 2 of {__name__}.other_split, ('valid', 'a', 'b', b'"),
        (f"{__name__}.no_class", 1, f"item 2 of {__name__}.no_class, ('train', '', 'b', b'"),
        (f"{__name__}.unprintable", 1, f"item 2 of {__name__}.unprintable, ('train', 'a', 'b\\n', b'"),
        (f"{__name__}.two_splits", 1, f"item 2 of {__name__}.two_splits has class 'a' in split test, category 'b', before in split train"),
        (f"{__name__}.fails", 1, f"{__name__}.fails failed after 70 items: RuntimeError('no\\nmore')"),
    ],
)
def test_sources_that_break_their_contract_are_refused(
    name: str, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "broken_source.py").write_text("1 / 0")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    found, out, err = call(monkeypatch, capsys, "pack", "--dataset", name, "--out", "out", "--processes", "1")
    reason, remedy = err.splitlines()
    assert (found, out) == (code, "")
    assert reason.startswith(f"distmeta: {message}"), reason
    assert remedy.startswith("  ")
    assert not (tmp_path / "out").exists()


def test_a_source_that_was_mended_goes_on(tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception, match="failed after 70 items"):
        pack(open_source(PackRequest(f"{__name__}.fails"), pytest.fail).images, tmp_path / "out", options())
    assert (tmp_path / ".out.packing" / "spool").stat().st_size > 0
    monkeypatch.setattr(sys.modules[__name__], "fails", five_fields)
    pack(open_source(PackRequest(f"{__name__}.fails"), pytest.fail).images, tmp_path / "out", options())
    assert Dataset(str(tmp_path / "out")).manifest.fingerprint == Dataset(str(packed)).manifest.fingerprint


def test_fields_of_other_datasets_have_no_meaning() -> None:
    with pytest.raises(ConfigError, match=r"--split has no meaning for my_package\.photos"):
        open_source(PackRequest("my_package.photos", Path(), split="0.6/0.2/0.2"), pytest.fail)


def test_an_import_path_in_a_manifest_is_a_name_and_is_not_imported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "received_source.py").write_text("raise SystemExit('was run')")
    monkeypatch.syspath_prepend(tmp_path)
    pack(patterns(), tmp_path / "out", options(dataset="received_source.images"))
    dataset = Dataset(str(tmp_path / "out"))
    assert not [finding for findings in verify(dataset) for finding in findings]
    assert len(overview(dataset)) == 3
    assert dataset.manifest.dataset == "received_source.images"
    assert "received_source" not in sys.modules
