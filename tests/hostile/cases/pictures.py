"""Files that are no pictures, or not what they say, among good ones: for pack, and as query and support image of predict (A)."""

import io
import os
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from case import Ask, Case
from pictures import picture, png_16_bit, stored, tiff
from PIL import Image

PACK = ("pack", "pictures", "--dataset", "folder", "--out", "out", "--images-per-class", "2", "--processes", "1", "--image-size", "16")
PREDICT = ("predict", "--model", "models:/m@champion", "--support", "support", "--query", "query")
NO_FORMAT = r"its format is none of JPEG"
DAMAGED = "does not decode as an image"
TOO_MANY = r"pixels, more than the limit of 100,000,000"


class Bad(NamedTuple):
    """A file's name, its bytes or what makes it at a path, and what is said of it."""

    name: str
    content: bytes | Callable[[Path], object]
    says: str


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def _resized(content: bytes, at: int, form: str, *sizes: int) -> bytes:
    return content[:at] + struct.pack(form, *sizes) + content[at + struct.calcsize(form) :]


def _jpeg_header(width: int, height: int) -> bytes:
    content = stored(picture(), "JPEG")
    return _resized(content, content.index(b"\xff\xc0") + 5, ">HH", height, width)


def _socket(path: Path) -> None:
    os.chdir(path.parent)
    socket.socket(socket.AF_UNIX).bind(path.name)


def _values(kind: str, *values: float) -> bytes:
    return tiff(np.resize(np.array(values, kind), (16, 16)))


def _damaged() -> Iterator[Bad]:
    for form, suffix in (
        ("JPEG", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("TIFF", "tif"),
        ("BMP", "bmp"),
        ("PPM", "ppm"),
        ("AVIF", "avif"),
    ):
        content = stored(picture(), form)
        yield Bad(f"cut.{suffix}", content[: len(content) // 2], DAMAGED)
        yield Bad(f"first-bytes.{suffix}", content[:16], DAMAGED)
    yield Bad("first-bytes.gif", stored(picture(), "GIF")[:16], DAMAGED)


OTHERS: tuple[Bad, ...] = (
    Bad("script.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(owned) (w) file closefile showpage\n", NO_FORMAT),
    Bad("document.png", b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\n", NO_FORMAT),
    Bad("drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>", NO_FORMAT),
    Bad("page.jpg", b"<!DOCTYPE html><html>404 Not SlotVectors</html>", NO_FORMAT),
    Bad("layers.png", b"8BPS\x00\x01" + bytes(100), NO_FORMAT),
    Bad("texture.png", b"DDS " + struct.pack("<I", 124) + bytes(200), NO_FORMAT),
    Bad("icon.png", b"\x00\x00\x01\x00\x01\x00" + bytes(100), NO_FORMAT),
    Bad("program.png", b"MZ" + bytes(200), NO_FORMAT),
    Bad("meta.png", b"\xd7\xcd\xc6\x9a" + bytes(100), NO_FORMAT),
    Bad("movie.png", b"\x00\x00\x01\xba" + bytes(100), NO_FORMAT),
    Bad("stars.png", b"SIMPLE  =                    T" + bytes(100), NO_FORMAT),
    Bad("archive.png", b"PK\x03\x04" + bytes(100), NO_FORMAT),
    Bad("empty.png", b"", NO_FORMAT),
    Bad("byte.jpg", b"\xff", NO_FORMAT),
    Bad("zeros.png", bytes(100_000), NO_FORMAT),
    Bad("text.jpg", b"not a picture at all", NO_FORMAT),
    Bad("wide.png", _png_header(65500, 65500), TOO_MANY),
    Bad("wide.jpg", _jpeg_header(65500, 65500), TOO_MANY),
    Bad("wide.gif", _resized(stored(picture(), "GIF"), 6, "<HH", 65535, 65535), TOO_MANY),
    Bad("wide.bmp", _resized(stored(picture(), "BMP"), 18, "<ii", 60000, 60000), TOO_MANY),
    Bad("wide.ppm", b"P6 99999 99999 255\n" + bytes(300), TOO_MANY),
    Bad("wide.tif", b"II*\0" + struct.pack("<IH", 8, 2) + struct.pack("<HHIIHHII", 256, 4, 1, 90000, 257, 4, 1, 90000) + bytes(4), DAMAGED),
    Bad("no-columns.png", _png_header(0, 10), DAMAGED),
    Bad("text-size.ppm", b"P6 x y 255\n" + bytes(300), DAMAGED),
    Bad("long-size.ppm", b"P6 " + b"9" * 50_000 + b" 3 255\n", DAMAGED),
    Bad("floats.tif", _values("f4", 0.0, 0.5, 1.0), "has float values, 0 to 1"),
    Bad("signed.tif", _values("i4", -5, 100), "has signed or 32-bit values, -5 to 100"),
    Bad("nan.tif", _values("f4", 0.0, float("nan")), r"not finite numbers \(NaN or infinity\)"),
    Bad("infinite.tif", _values("f4", 0.0, float("inf")), r"not finite numbers \(NaN or infinity\)"),
)
NO_FILES: tuple[Bad, ...] = (
    Bad("pipe.png", os.mkfifo, "cannot be read: it is a pipe or device"),
    Bad("device.png", lambda path: path.symlink_to("/dev/zero"), "cannot be read: it is a pipe or device"),
    Bad("socket.png", _socket, "cannot be read"),
    Bad("folder.png", lambda path: path.mkdir(), "cannot be read: Is a directory"),
    Bad("missing.png", lambda path: path.symlink_to("nowhere.png"), "cannot be read: No such file or directory"),
    Bad("itself.png", lambda path: path.symlink_to(path.name), "cannot be read: Too many levels of symbolic links"),
)
ALL = (*OTHERS, *_damaged())


def _put(bad: Bad, folder: str, ask: tuple[str, ...]) -> Ask:
    path = Path(folder) / bad.name
    if isinstance(bad.content, bytes):
        path.write_bytes(bad.content)
    else:
        here = Path.cwd()
        bad.content(path.absolute())
        os.chdir(here)
    return ask


def _dark() -> Ask:
    for path in Path("pictures").rglob("*.png"):
        path.write_bytes(png_16_bit(np.asarray(Image.open(path), np.uint16)))
    return PACK


def _of_a_kind(content: bytes, *options: str) -> Ask:
    """Every picture a file of these bytes but for one that differs, so that only their kind is wrong."""
    for path in Path("pictures").rglob("*.png"):
        path.write_bytes(content)
    return (*PACK, *options)


def _black() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (16, 16)).save(buffer, "PNG")
    return buffer.getvalue()


def _animation(place: str, ask: tuple[str, ...]) -> Ask:
    Path(place).write_bytes(stored(picture(16), "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16))]))
    return ask


def _floats(ask: tuple[str, ...]) -> Ask:
    """Support images and queries with values from 0 to 1."""
    for path in [*Path("support").rglob("*.png"), *Path("query").rglob("*.png")]:
        path.with_suffix(".tif").write_bytes(tiff(np.asarray(Image.open(path), np.float32) / 255))
        path.unlink()
    return ask


def _cases() -> Iterator[Case]:
    for bad in ALL:
        strict = (*PACK, "--max-bad-fraction", "0")
        real = bad.name in ("script.png", "wide.jpg", "floats.tif")
        yield Case(f"pack {bad.name}", partial(_put, bad, "pictures/train/class0", strict), f"{bad.name}.*{bad.says}", real=real)
        yield Case(
            f"predict query {bad.name}", partial(_put, bad, "query/ant", PREDICT), f"1 of 4 images were left out.*{bad.name} .*{bad.says}"
        )
        yield Case(f"predict support {bad.name}", partial(_put, bad, "support/ant", PREDICT), f"{bad.name} .*{bad.says}", seldom=True)
    for bad in NO_FILES:
        named = bad.name if bad.name == "folder.png" else "broken links, pipes or devices"
        yield Case(
            f"pack {bad.name}",
            partial(_put, bad, "pictures/train/class0", PACK),
            f"left out 1 .*{'inside' if named == bad.name else named}",
            0,
        )
        listed = (*PREDICT[:-1], "-")
        says = f"{bad.name} {bad.says}"
        names, real = f"{bad.name}\nquery/ant/1.png\n", bad.name in ("pipe.png", "device.png")
        yield Case(f"predict listed {bad.name}", partial(_put, bad, ".", listed), says, listed=names, real=real)
    yield Case(
        "pack skips one and says so",
        partial(_put, OTHERS[0], "pictures/train/class0", (*PACK, "--max-bad-fraction", "0.5")),
        "skipped 1 images",
        0,
    )
    yield Case("pack 8 bits in 16", _dark, "none above [0-9]+ of 65535.*\n.*--value-range")
    yield Case("pack only black", partial(_of_a_kind, _black(), "--allow-copies"), "standard deviation")
    yield Case(
        "pack floats of a range that does not fit",
        partial(_of_a_kind, _values("f4", 0.0, 0.5, 1.0), "--value-range", "100,200", "--allow-copies"),
        "--value-range",
    )
    for text in ("1", "1,2,3", "2,1", "nan,1", "0,inf", "a,b", "", "1e999,2"):
        asked = (*PACK, "--value-range", text)
        yield Case(f"pack --value-range {text!r}", lambda asked=asked: asked, r"--value-range .* is not two numbers", 2)
    for text in ("0", "-1", "many", "1.5"):
        asked = (*PREDICT, "--max-pixels", text)
        yield Case(f"predict --max-pixels {text}", lambda asked=asked: asked, "Invalid value for '--max-pixels'", 2)
    for name, place, ask, says in (
        ("pack", "pictures/train/class0/x.gif", PACK, "1 files are animated or have several pages; the first picture of each was packed"),
        ("predict", "query/ant/x.gif", PREDICT, "1 files are animated or have several pages; the first picture of each was read"),
    ):
        yield Case(f"{name} an animation", partial(_animation, place, ask), says, 0)
    for text, code, says in (("0,1", 0, "of 3 right"), ("0,65535", 1, "does not fit the images"), ("-100,1", 1, "does not fit the images")):
        yield Case(f"predict floats with --value-range {text}", partial(_floats, (*PREDICT, f"--value-range={text}")), says, code)
    yield Case("predict with a small limit", lambda: (*PREDICT, "--max-pixels", "100"), "16 x 16 pixels, more than the limit of 100")


CASES = list(_cases())
