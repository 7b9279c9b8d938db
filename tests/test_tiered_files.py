"""The published tieredImageNet files: both forms give the same pixels, and no pickle gets to run anything."""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import png
from PIL import Image

from distmeta.data.sources import tiered_files
from distmeta.errors import DataError
from distmeta.seeds import generator

COUNTS = {"train": 6, "val": 4, "test": 4}


def pictures(split: str) -> np.ndarray:
    """(n, 84, 84, 3) in the order red, green, blue."""
    return generator(0, split).integers(0, 256, (COUNTS[split], 84, 84, 3)).astype(np.uint8)


def table(split: str) -> dict[str, Any]:
    return {
        "label_specific": np.arange(COUNTS[split]) // 2,
        "label_general": np.zeros(COUNTS[split], dtype=np.int64),
        "label_specific_str": [f"{split} class {i}" for i in range(3)],
        "label_general_str": [f"{split} category"],
    }


def labelled(folder: Path, protocol: int = 2, change: Callable[[dict[str, Any]], Any] = lambda t: t) -> Path:
    for split in COUNTS:
        (folder / f"{split}_labels.pkl").write_bytes(pickle.dumps(change(table(split)), protocol))
    return folder


def as_pickles(folder: Path, protocol: int = 2) -> Path:
    for split in COUNTS:
        files = [np.frombuffer(png(pixels), np.uint8).reshape(-1, 1) for pixels in pictures(split)]  # as cv2.imencode gives them
        (folder / f"{split}_images_png.pkl").write_bytes(pickle.dumps(files, protocol))
    return folder


def as_arrays(folder: Path) -> Path:
    for split in COUNTS:
        np.savez(folder / f"{split}_images.npz", images=pictures(split)[..., ::-1])
    return folder


@pytest.mark.parametrize("make", [as_pickles, as_arrays])
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_both_forms_and_all_protocols_give_every_image_once(make: Callable[[Path], Path], protocol: int, tmp_path: Path) -> None:
    source = tiered_files.read(make(labelled(tmp_path, protocol)))
    images = list(source.images)
    assert source.total == len(images) == 14
    for split in COUNTS:
        of_split = [image for image in images if image.split == split]
        assert [image.class_name for image in of_split] == [f"{split} class {i // 2}" for i in range(COUNTS[split])]
        assert {image.category for image in of_split} == {f"{split} category"}
        assert np.array_equal(np.stack([np.asarray(Image.open(io.BytesIO(image.image))) for image in of_split]), pictures(split))


def test_a_pickle_from_python_2_is_read(tmp_path: Path) -> None:
    """Python 2 pickled an array's content as a str, which here is the opcode SHORT_BINSTRING where Python 3 goes through _codecs."""
    labelled(as_arrays(tmp_path))
    old = (
        b"\x80\x02}q\x01(U\x0elabel_specificq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87R"
        b"(K\x01K\x06\x85cnumpy\ndtype\nU\x02i8K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U0"
        + np.array([0, 0, 1, 1, 2, 2]).astype("<i8").tobytes()
        + b"tbU\x12label_specific_strq\x05](U\x01aU\x01bU\x01ceu."
    )
    (tmp_path / "train_labels.pkl").write_bytes(old)
    images = [image for image in tiered_files.read(tmp_path).images if image.split == "train"]
    assert [image.class_name for image in images] == ["a", "a", "b", "b", "c", "c"]
    assert [image.category for image in images] == ["a", "a", "b", "b", "c", "c"]


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2, 2], np.array([0, 0, 1, 1, 2, 2], np.int32), list(np.array([0, 0, 1, 1, 2, 2]))])
def test_labels_alone_become_numbered_classes(labels: Any, tmp_path: Path) -> None:
    labelled(as_arrays(tmp_path))
    (tmp_path / "train_labels.pkl").write_bytes(pickle.dumps({"labels": labels}, 2))
    images = [image for image in tiered_files.read(tmp_path).images if image.split == "train"]
    assert [image.class_name for image in images] == ["train-0000"] * 2 + ["train-0001"] * 2 + ["train-0002"] * 2


class Runs:
    """Runs a command when unpickled."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


MALICE: dict[str, Callable[[Path], Any]] = {
    "system": lambda path: Runs(os.system, f"touch {path}"),
    "exec": lambda path: Runs(exec, f"open({str(path)!r}, 'w')"),
    "eval": lambda path: [np.zeros(3, np.uint8), Runs(eval, f"open({str(path)!r}, 'w')")],
    "open": lambda path: {"label_specific": Runs(open, str(path), "w")},
    "getattr": lambda path: Runs(getattr, Path, "touch"),
    "import": lambda path: Runs(__import__, "os"),
    "numpy": lambda path: Runs(np.memmap, str(path), np.uint8, "w+", 0, (3,)),
    "fromfile": lambda path: Runs(np.fromfile, __file__, np.uint8),
    "class": lambda path: OrderedDict(a=1),
    "object array": lambda path: np.array([Runs(os.system, f"touch {path}")], dtype=object),
}


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", MALICE)
@pytest.mark.parametrize("name", ["train_labels.pkl", "val_images_png.pkl"])
def test_a_pickle_that_names_anything_else_is_refused_and_nothing_runs(name: str, kind: str, protocol: int, tmp_path: Path) -> None:
    as_pickles(labelled(tmp_path))
    proof = tmp_path / "proof"
    (tmp_path / name).write_bytes(pickle.dumps(MALICE[kind](proof), protocol))
    with pytest.raises(DataError, match=r"a pickle names [\w.]+; only arrays") as caught:
        list(tiered_files.read(tmp_path).images)
    assert len(str(caught.value).splitlines()) == 2
    assert not proof.exists()


def test_the_codec_that_pickles_use_is_latin1_alone(tmp_path: Path) -> None:
    as_pickles(labelled(tmp_path))
    (tmp_path / "train_labels.pkl").write_bytes(b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.")
    with pytest.raises(DataError, match="text is encoded as rot13"):
        tiered_files.read(tmp_path)


def overwrite(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def npz_of(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def cut_array(folder: Path) -> None:
    """A zip that is whole around an array that is not."""
    with zipfile.ZipFile(folder / "train_images.npz") as archive:
        content = archive.read("images.npy")
    with zipfile.ZipFile(folder / "train_images.npz", "w") as archive:
        archive.writestr("images.npy", content[:-5000])


SPOILT: dict[str, tuple[Callable[[Path], object], str]] = {
    "labels missing": (lambda f: (f / "val_labels.pkl").unlink(), r"val_labels\.pkl cannot be read"),
    "labels cut": (
        lambda f: (f / "val_labels.pkl").write_bytes((f / "val_labels.pkl").read_bytes()[:60]),
        r"val_labels\.pkl cannot be read",
    ),
    "labels of nothing": (overwrite("val_labels.pkl", b""), r"val_labels\.pkl cannot be read"),
    "labels no table": (overwrite("val_labels.pkl", pickle.dumps([1, 2])), "holds no table of labels"),
    "labels of another kind": (overwrite("val_labels.pkl", pickle.dumps({"x": 1})), "neither label_specific nor labels, but x"),
    "labels of floats": (overwrite("val_labels.pkl", pickle.dumps({"labels": [0.5] * 4})), "labels are float64"),
    "too few labels": (overwrite("val_labels.pkl", pickle.dumps({"labels": [0, 1]})), "more images than the 2 labels"),
    "too many labels": (overwrite("val_labels.pkl", pickle.dumps({"labels": [0, 1] * 5})), "holds 4 val images but 10 labels"),
    "too few names": (
        lambda f: labelled(f, change=lambda t: t | {"label_specific_str": ["a"]}),
        "labels run from 0 to 2 but there are 1 names",
    ),
    "images missing": (lambda f: (f / "test_images.npz").unlink(), r"test_images_png\.pkl cannot be read"),
    "images no zip": (overwrite("test_images.npz", b"hello"), r"test_images\.npz cannot be read"),
    "images under another name": (overwrite("test_images.npz", npz_of(x=pictures("test"))), r"test_images\.npz cannot be read"),
    "images of floats": (overwrite("test_images.npz", npz_of(images=np.zeros((4, 84, 84, 3)))), "images are float64"),
    "images of objects": (overwrite("test_images.npz", npz_of(images=np.array([{}], dtype=object))), "images are object"),
    "images cut": (cut_array, "cut inside image 5 of 6"),
}


@pytest.mark.parametrize("kind", SPOILT)
def test_damage_is_named(kind: str, tmp_path: Path) -> None:
    spoil, message = SPOILT[kind]
    labelled(as_arrays(tmp_path))
    spoil(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        list(tiered_files.read(tmp_path).images)
    assert len(str(caught.value).splitlines()) == 2
