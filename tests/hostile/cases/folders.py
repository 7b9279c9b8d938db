"""Folders, archives and lists that packing and prediction read: what is a class, what is copied, what is not what it says (B, E, L)."""

import os
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from case import Ask, Case

from cases.pictures import PACK, PREDICT

FLAT = ("--split", "0.6/0.2/0.2")


def _after(act: Callable[[], object], *ask: str) -> Callable[[], Ask]:
    """Do something to the working folder, then ask."""

    def arrange() -> Ask:
        act()
        return ask

    return arrange


def _copy(source: str, target: str) -> Callable[[], object]:
    def act() -> object:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        return shutil.copytree(source, target) if Path(source).is_dir() else shutil.copy(source, target)

    return act


def _pack(source: str, *options: str) -> tuple[str, ...]:
    return ("pack", source, *PACK[2:], *options)


def _asked(dataset: str, source: str = "source", *options: str) -> tuple[str, ...]:
    return ("pack", "--dataset", dataset, source, "--out", "out", "--processes", "1", *options)


def _tar(size: bytes) -> bytes:
    """A tar of one member whose header claims another size."""
    header = bytearray(tarfile.TarInfo("n01443537.tar").tobuf())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}\0 ".encode()
    return bytes(header) + bytes(10240)


def _write(name: str, content: bytes | str) -> Callable[[], object]:
    def act() -> object:
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.write_bytes(content.encode() if isinstance(content, str) else content)

    return act


def _both(*acts: Callable[[], object]) -> Callable[[], object]:
    return lambda: [act() for act in acts]


def _zips(**members: bytes) -> Callable[[], object]:
    def act() -> None:
        Path("source").mkdir()
        for stem in ("images_background", "images_evaluation"):
            with zipfile.ZipFile(f"source/{stem}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in members.items():
                    [archive.writestr(f"{stem}/A{n}/{name}/0001_01.png", content) for n in range(7)]

    return act


def _npz(header: bytes) -> Callable[[], object]:
    def act() -> None:
        _labels()
        with zipfile.ZipFile("source/train_images.npz", "w") as archive:
            archive.writestr("images.npy", header)

    return act


def _labels(content: bytes | None = None) -> None:
    import pickle

    Path("source").mkdir(exist_ok=True)
    table = {"label_specific": np.arange(6) % 3, "label_specific_str": ["a", "b", "c"]}
    for split in ("train", "val", "test"):
        Path(f"source/{split}_labels.pkl").write_bytes(content if content is not None else pickle.dumps(table))


def _npy(shape: str, kind: str = "|u1") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (63 - (len(text) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(100)


EVIL_PICKLE = b"cos\nsystem\n(S'touch owned'\ntR."
SPLITS = _both(*(_write(f"lists/{split}.csv", f"n0144353{i},n0200000{i}\n") for i, split in enumerate(("train", "val", "test"))))


def _folders() -> Iterator[Case]:
    """What a folder of images may look like."""
    first, second = "pictures/train/class0", "pictures/train/class1"
    for name, act, ask, says, code in (
        ("no such folder", lambda: None, _pack("nowhere"), "nowhere", 1),
        ("a file for a folder", lambda: None, _pack("run.yaml"), "run.yaml", 1),
        ("an empty folder", lambda: os.mkdir("empty"), _pack("empty"), "empty holds no folder", 1),
        ("an empty class", lambda: os.mkdir("pictures/train/none"), PACK, "none holds no image", 1),
        ("a split that is none", lambda: os.mkdir("pictures/extra"), PACK, "must hold train, val and test and no other folder", 1),
        ("no train split", lambda: shutil.rmtree("pictures/train"), PACK, "must hold train, val and test", 1),
        ("no test split", lambda: shutil.rmtree("pictures/test"), PACK, "test", 1),
        ("one class in two splits", _copy(first, "pictures/val/class0x"), PACK, r"(copies|same pixels|copy)", 1),
        ("copies across splits, allowed", _copy(first, "pictures/val/class0x"), (*PACK, "--allow-copies"), "packed", 0),
        ("copies within a class", _copy(f"{first}/0.png", f"{first}/copy.png"), PACK, "(?s)(cop|same).*packed", 0),
        ("a class twice by a link", lambda: os.symlink("class0", "pictures/train/linked"), PACK, "are one class", 1),
        (
            "a class twice by Unicode",
            _both(_copy(first, "pictures/train/\u00e9"), _copy(second, "pictures/train/e\u0301")),
            PACK,
            "are one class",
            1,
        ),
        ("a link to above", lambda: os.symlink("..", f"{first}/up"), PACK, "left out 1 folders inside class folders", 0),
        ("hidden folders", _copy(first, "pictures/train/.ipynb_checkpoints"), PACK, r"left out 1 hidden .*\.ipynb_checkpoints", 0),
        ("hidden files", _copy(f"{first}/0.png", f"{first}/._0.png"), PACK, r"left out 1 hidden files or folders .*\._0.png", 0),
        ("other files", _write(f"{first}/notes.txt", "x"), PACK, "left out 1 files not named as images .*notes.txt", 0),
        (
            "a name that is not text",
            lambda: os.rename(first.encode(), b"pictures/train/\xff\xfe"),
            PACK,
            r"\\xff\\xfe.* is not named in printable",
            1,
        ),
        ("a name with an escape", lambda: os.rename(first, "pictures/train/\x1b[2Jx"), PACK, "is not named in printable UTF-8", 1),
        ("a name with a newline", lambda: os.rename(first, "pictures/train/a\nb"), PACK, "is not named in printable UTF-8", 1),
        ("a name that runs backwards", lambda: os.rename(first, "pictures/train/a\u202eb"), PACK, "is not named in printable UTF-8", 1),
        ("a class of an emoji", lambda: os.rename(first, "pictures/train/:smile:[red]\U0001f436"), PACK, "packed", 0),
        ("a long name", lambda: os.rename(first, "pictures/train/" + "x" * 255), PACK, "packed", 0),
        ("out is there", lambda: os.mkdir("out"), PACK, "out", 1),
        ("out is a link to nowhere", lambda: os.symlink("nowhere", "out"), PACK, "out exists already", 1),
        ("out is a URL", lambda: None, (*PACK[:4], "--out", "s3://bucket/out"), "s3:/bucket/out is a URL", 2),
        ("explain into a URL", lambda: None, (*PREDICT, "--explain", "s3://bucket/x.png"), "is a URL", 2),
        ("export into a URL", lambda: None, ("inspect", "data", "--export", "s3://bucket/x", "--way", "3"), "is a URL", 2),
        ("a query that is a URL with a secret", lambda: None, (*PREDICT[:-1], "http://me:hunter2@h/x"), "http:/h/x holds no image", 1),
        ("out is a file", _write("out", "mine"), PACK, "out", 1),
        ("out inside a file", _write("file", "mine"), (*PACK[:4], "--out", "file/out"), "file", 1),
        ("out is the source", lambda: None, (*PACK[:4], "--out", "pictures"), "pictures", 1),
        ("other files where packing begins", _write(".out.packing/mine.txt", "mine"), PACK, r"packing", 1),
        ("three positive fractions", lambda: None, (*_pack("pictures/train"), "--split", "0.5/0.5/0.5"), "--split 0.5/0.5/0.5", 2),
        ("a fraction of nan", lambda: None, (*_pack("pictures/train"), "--split", "nan/0.5/0.5"), "--split nan", 2),
        ("negative fractions", lambda: None, (*_pack("pictures/train"), "--split", "-1/1/1"), "--split -1/1/1", 2),
        ("two classes to divide", lambda: shutil.rmtree("pictures/val/val0"), (*_pack("pictures/val"), *FLAT), "cannot be divided", 1),
        ("--split-by without --split", lambda: None, (*PACK, "--split-by", "class"), "--split-by", 2),
        ("way that is not there", lambda: None, (*PACK, "--way", "50", "--shot", "1", "--queries", "1"), "50", (1, 2)),
        ("way alone", lambda: None, (*PACK, "--way", "5"), "describe one task together", 2),
        ("way of 1", lambda: None, (*PACK, "--way", "1"), "--way", 2),
        ("too large", lambda: None, (*PACK, "--image-size", "100000"), "--image-size", 2),
        ("quality of a png", lambda: None, (*PACK, "--format", "png", "--quality", "90"), "--quality is JPEG's", 2),
        ("another dataset's option", lambda: None, (*PACK, "--omniglot-split", "alphabets"), "--omniglot-split has no meaning", 2),
        ("an unknown dataset", lambda: None, _asked("imagenet"), "imagenet is not one of", 2),
        ("a source that is not there", lambda: None, _asked("no_such.source"), "no_such.source cannot be imported", 2),
        ("a source that is no function", lambda: None, _asked("os.sep"), "os.sep is a str, not a function", 2),
        ("a source that raises", lambda: None, _asked("os.listdir", "nowhere"), "os.listdir failed after 0 items", 1),
        ("a source of something else", lambda: None, _asked("os.listdir", "pictures"), "is not .split, class, category, image", 1),
        (
            "support with one class",
            lambda: [shutil.rmtree(f"support/{each}") for each in ("bee", "cow")],
            PREDICT,
            "at least two are needed",
            1,
        ),
        ("support with two classes", lambda: shutil.rmtree("support/bee"), PREDICT, "has 2 classes but the model was trained for 3-way", 1),
        ("no support", lambda: shutil.rmtree("support"), PREDICT, "support folder support does not exist", 1),
        ("no query", lambda: shutil.rmtree("query"), PREDICT, "query holds no image", 1),
        ("an empty query", _both(lambda: shutil.rmtree("query"), lambda: os.mkdir("query")), PREDICT, "query holds no image", 1),
        (
            "queries that are all hidden",
            _both(lambda: shutil.rmtree("query"), _copy("support/ant/0.png", "query/.0.png")),
            PREDICT,
            "left out 1 hidden",
            1,
        ),
        ("a query that is a support image", _copy("support/ant/0.png", "query/ant/copy.png"), PREDICT, "is a copy of the support image", 1),
        ("queries in the support folder", lambda: None, (*PREDICT[:-1], "support"), "is in both the support and the query folder", 1),
        ("queries that loop", lambda: os.symlink("..", "query/ant/up"), PREDICT, "links to a folder above", 0),
        ("one unlabelled query", lambda: os.rename("query/ant/1.png", "query/1.png"), PREDICT, "2 of 3", 0),
        ("nothing listed", lambda: None, (*PREDICT[:-1], "-"), "- holds no image", 1),
        ("explain where no file can be", lambda: None, (*PREDICT, "--explain", "nowhere/x.png"), "nowhere/x.png", (1, 2)),
        ("explain over a folder", lambda: None, (*PREDICT, "--explain", "support"), "support", (1, 2)),
        ("inspect --export where files are", lambda: None, ("inspect", "data", "--export", "support", "--way", "3"), "support", (1, 2)),
        ("inspect --episode nowhere", lambda: None, ("inspect", "data", "--episode", "nowhere/x.png", "--way", "3"), "nowhere", (1, 2)),
        ("inspect of too many", lambda: None, ("inspect", "data", "--export", "e", "--way", "99"), "99", (1, 2)),
    ):
        yield Case(
            f"folder: {name}",
            _after(act, *ask),
            says,
            code,
            real=name in ("no such folder", "a class of an emoji", "two classes to divide"),
        )


def _archives() -> Iterator[Case]:
    """Archives, lists and pickles of the official datasets."""
    tar, lists = ("tiered-imagenet", "source.tar", "--splits", "lists"), ("mini-imagenet", "pictures", "--splits", "lists")
    huge = b"\x80" + (2**63 - 1).to_bytes(11)
    for name, act, ask, says in (
        ("no zips", lambda: os.mkdir("source"), _asked("omniglot"), "images_background.zip is not a file"),
        (
            "zips that are none",
            _both(_write("source/images_background.zip", b"PK"), _write("source/images_evaluation.zip", b"")),
            _asked("omniglot"),
            "is not a whole zip file",
        ),
        ("zips of nothing", _zips(), _asked("omniglot"), "images_background"),
        ("a zip bomb", _zips(character01=bytes(3_000_000)), _asked("omniglot"), "images_background"),
        ("a tar of a huge member", _both(_write("source.tar", _tar(huge)), SPLITS), _asked(*tar), "source.tar"),
        ("a tar of a negative member", _both(_write("source.tar", _tar(b"\xff" * 12)), SPLITS), _asked(*tar), "source.tar"),
        ("a tar of a member that is too long", _both(_write("source.tar", _tar(b"77777777777\0")), SPLITS), _asked(*tar), "source.tar"),
        (
            "a tar of text",
            _both(_write("source.tar", "no tar" * 1000), SPLITS),
            _asked(*tar),
            "source.tar is not a whole, uncompressed tar",
        ),
        ("an empty tar", _both(_write("source.tar", b""), SPLITS), _asked(*tar), "source.tar"),
        ("a tar of zeros", _both(_write("source.tar", bytes(10240)), SPLITS), _asked(*tar), "source.tar holds no class"),
        ("no lists", _write("source.tar", bytes(10240)), _asked("tiered-imagenet", "source.tar"), "needs its split files"),
        ("lists that are missing", _write("source.tar", bytes(10240)), _asked(*tar), "train.csv is not a file"),
        ("lists of something else", _both(SPLITS, _write("lists/val.csv", "a,b,c\n")), _asked(*lists), "train.csv line 1 is"),
        ("lists in binary", _both(SPLITS, _write("lists/train.csv", bytes(range(256)))), _asked(*lists), "train.csv line 1"),
        ("lists with a long field", _both(SPLITS, _write("lists/train.csv", "x" * 200_000)), _asked(*lists), "train.csv line 1"),
        ("lists with an open quote", _both(SPLITS, _write("lists/train.csv", '"n01')), _asked(*lists), "train.csv line 1"),
        (
            "an image in two lists",
            _both(*(_write(f"lists/{s}.csv", "n0144353700000001.jpg,n01443537\n") for s in ("train", "val", "test"))),
            _asked(*lists),
            "names it or its class already",
        ),
        ("a pickle that runs", lambda: _labels(EVIL_PICKLE), _asked("tiered-imagenet"), "train_labels.pkl"),
        ("a pickle that is cut", lambda: _labels(b"\x80\x04]"), _asked("tiered-imagenet"), "train_labels.pkl"),
        ("a pickle of nothing", lambda: _labels(b"N."), _asked("tiered-imagenet"), "holds no table of labels"),
        ("a pickle of numbers", lambda: _labels(b"\x80\x04}\x8c\x06labelsK\x05s."), _asked("tiered-imagenet"), "train_labels.pkl"),
        ("a pickle of words", lambda: _labels(b"\x80\x04}\x8c\x06labels]\x8c\x01aas."), _asked("tiered-imagenet"), "train_labels.pkl"),
        ("a pickle that is empty", lambda: _labels(b""), _asked("tiered-imagenet"), "train_labels.pkl"),
        ("an array of no shape", _npz(_npy("()")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array that is too long", _npz(_npy(f"({10**9}, 84, 84, 3)")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array of huge images", _npz(_npy(f"(6, {10**9}, {10**9}, 3)")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array of negative images", _npz(_npy("(6, -84, -84, 3)")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array of objects", _npz(_npy("(6, 84, 84, 3)", "|O")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array that runs", _npz(_npy("__import__('os').system('touch owned')")), _asked("tiered-imagenet"), "train_images.npz"),
        ("an array of nothing", _npz(b""), _asked("tiered-imagenet"), "train_images.npz"),
    ):
        yield Case(f"archive: {name}", _after(act, *ask), says, (1, 2), real=name in ("a pickle that runs", "a tar of a huge member"))


CASES = [*_folders(), *_archives()]
