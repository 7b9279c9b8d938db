"""The one reader of pictures shows them as people see them, and names what it cannot read."""

import io
import os
import random
import resource
import socket
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import png
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pictures import QUARTERS, STORED, grey, picture, png_16_bit, stored, tiff, turned
from PIL import Image

from distmeta.data.decode import FORMATS, MAX_PIXELS, check_bright, decode_file, parse_value_range, read_file
from distmeta.data.images import Preprocessing, decode, decode_packed, pixels_of
from distmeta.errors import ConfigError, DataError

PREPROCESSING = Preprocessing(image_size=24, channels=3, resize="squash", mean=[0.5] * 3, std=[0.2] * 3)
GREY = Preprocessing(image_size=24, channels=1, resize="squash", mean=[0.5], std=[0.2])
WAYS_TO_STORE = {
    "JPEG": {"quality": 95},
    "PNG": {},
    "WEBP": {"lossless": True},
    "GIF": {},
    "BMP": {},
    "TIFF": {},
    "PPM": {},
    "AVIF": {"quality": 95},
}


def quarters(image: Image.Image) -> NDArray[np.float64]:
    """The mean colour of each quarter, its edges left out."""
    pixels = np.asarray(image.convert("RGB"), dtype=float)
    half, edge = pixels.shape[0] // 2, 4
    return np.array([pixels[y + edge : y + half - edge, x + edge : x + half - edge].mean((0, 1)) for y in (0, half) for x in (0, half)])


def seen(content: bytes, **changes: object) -> NDArray[np.float64]:
    return quarters(decode_file(content, 3, "x", **changes).picture)  # type: ignore[arg-type]


def test_every_format_of_the_list_is_read_and_no_other() -> None:
    assert set(FORMATS) == set(WAYS_TO_STORE)
    for form, options in WAYS_TO_STORE.items():
        assert np.abs(seen(stored(picture(), form, **options)) - QUARTERS).max() < 8, form
    for form in ("JPEG2000", "TGA", "ICO", "PCX", "SGI", "DDS", "EPS", "PDF", "ICNS", "IM", "MSP", "XBM"):
        image = picture().convert("1") if form in ("MSP", "XBM") else picture().convert("RGBA" if form == "DDS" else "RGB")
        with pytest.raises(DataError, match="its format is none of JPEG, PNG"):
            decode_file(stored(image, form), 3, "x")


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_a_picture_is_upright_however_the_camera_was_held(form: str, orientation: int) -> None:
    content = turned(orientation, form, **WAYS_TO_STORE[form])
    assert np.abs(seen(content) - QUARTERS).max() < 8
    in_python = pixels_of(Image.open(io.BytesIO(content)), PREPROCESSING, "x")
    assert np.abs(quarters(Image.fromarray(in_python.transpose(1, 2, 0))) - QUARTERS).max() < 30  # the edges blur at 24 pixels


def test_a_damaged_exif_block_leaves_the_picture_as_it_is_stored() -> None:
    for exif in (b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0" + bytes(range(200)), b"nothing"):
        assert np.abs(seen(stored(picture(), "JPEG", quality=95, exif=exif)) - QUARTERS).max() < 8


def test_heic_is_read_where_pillow_heif_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    buffer = io.BytesIO()
    heif.from_pillow(picture()).save(buffer, quality=95)
    assert np.abs(seen(buffer.getvalue()) - QUARTERS).max() < 8
    without = "import sys; sys.modules['pillow_heif.as_plugin'] = None; from distmeta.data.decode import decode_file; import io\n"
    without += "try: decode_file(sys.stdin.buffer.read(), 3, 'x.heic')\nexcept Exception as error: print(error)"
    done = subprocess.run([sys.executable, "-c", without], input=buffer.getvalue(), capture_output=True, check=True)
    assert done.stdout.decode().splitlines()[-1] == "pip install 'distmeta[heic]', or convert it"


def test_16_bits_are_read_by_their_full_range() -> None:
    wanted = np.asarray(picture().convert("L"), dtype=float)
    values = (grey() * 65535).astype(np.uint16)
    for content, peak in (
        (png_16_bit(values), values.max()),
        (tiff(values), values.max()),
        (tiff(65535 - values, photometric=0), 65535 - values.min()),
        (b"P5 48 48 65535\n" + values.astype(">u2").tobytes(), values.max()),
    ):
        decoded = decode_file(content, 1, "x")
        assert np.abs(np.asarray(decoded.picture, float) - wanted).max() <= 1
        assert decoded.peak == pytest.approx(peak, abs=1)
    twelve_bits = decode_file(b"P5 48 48 4095\n" + (grey() * 4095).astype(">u2").tobytes(), 1, "x")  # the header says what is white
    assert np.abs(np.asarray(twelve_bits.picture, float) - wanted).max() <= 1
    colours = np.asarray(picture()).astype(np.uint16) * 257
    for content in (png_16_bit(colours), tiff(colours)):
        decoded = decode_file(content, 3, "x")
        assert (np.asarray(decoded.picture) == np.asarray(picture())).all()
        assert decoded.peak == 230 * 257


@pytest.mark.parametrize(
    ("values", "value_range"),
    [
        ((grey() * 255).round().astype(np.uint16), (0, 255)),
        ((grey() * 4095).astype(np.uint16), (0, 4095)),
        ((grey() * 20_000 - 10_000).astype(np.int16), (-10_000, 10_000)),
        ((grey() * 3000 - 1000).astype(np.int32), (-1000, 2000)),
        ((grey() * 255 - 128).round().astype(np.int8), (-128, 127)),
        ((grey() * 4_000_000_000).astype(np.uint32), (0, 4e9)),
        (grey().astype(np.float32), (0, 1)),
        ((grey() * 2 - 1).astype(np.float32), (-1, 1)),
        (np.asarray(picture()).astype(np.uint16), (0, 255)),
    ],
    ids=["8 in 16", "12 in 16", "signed 16", "signed 32", "signed 8", "unsigned 32", "float", "float -1..1", "8 in 16 bits of colour"],
)
def test_values_without_a_range_of_their_own_need_one(values: NDArray[np.generic], value_range: tuple[float, float]) -> None:
    content = tiff(values)
    with pytest.raises(DataError, match=r"x .* --value-range|x has 16-bit values, but none above \d+ of 65535") as refused:
        check_bright(decode_file(content, 1, "x").peak, "x")
    assert "--value-range" in str(refused.value)
    with pytest.raises(DataError):
        decode(content, PREPROCESSING, "x")
    channels = 1 if values.ndim == 2 else 3
    wanted = np.asarray(picture() if channels == 3 else picture().convert("L"), dtype=float)
    found = decode_file(content, channels, "x", value_range)
    assert np.abs(np.asarray(found.picture, dtype=float) - wanted).max() <= 1
    assert found.peak is None
    assert decode(content, PREPROCESSING.model_copy(update={"value_range": value_range}), "x").max() > 200


@pytest.mark.parametrize("white", [1, 255, 4095, 65535], ids=["float", "8 in 16", "12 in 16", "16"])
def test_a_tiff_whose_lowest_value_is_white_is_read_as_people_see_it(white: int) -> None:
    """The values of the picture's negative, which the file says are to be shown the other way round."""
    values = ((1 - grey()) * white).astype(np.float32 if white == 1 else np.uint16)
    content = tiff(values, photometric=0)
    found = decode_file(content, 1, "x", (0, white))
    assert np.abs(np.asarray(found.picture, float) - 255 * grey()).max() <= 1
    if white < 65535:  # without a range, it would be white all over
        with pytest.raises(DataError, match="--value-range"):
            check_bright(decode_file(content, 1, "x").peak, "x")


def test_the_range_that_a_refusal_suggests_works() -> None:
    values = (grey() * 1023).astype(np.uint16)
    with pytest.raises(DataError) as refused:
        decode(png_16_bit(values), GREY, "x")
    suggested = parse_value_range(refused.value.remedy.partition("--value-range ")[2].partition(", or")[0])
    assert suggested == (0, 1023)
    assert decode(png_16_bit(values), GREY.model_copy(update={"value_range": suggested}), "x").max() > 200


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_numbers_are_refused(bad: float) -> None:
    values = grey().astype(np.float32)
    values[3, 4] = bad
    for value_range in (None, (0.0, 1.0)):
        with pytest.raises(DataError, match="not finite numbers"):
            decode_file(tiff(values), 1, "x", value_range)
    with pytest.raises(DataError, match="image 3 has values that are not finite numbers"):
        pixels_of(Image.fromarray(values), GREY, "image 3")


def test_8_bit_files_are_the_same_with_a_value_range() -> None:
    for image in (picture(), picture().convert("L"), picture().convert("P"), picture().convert("RGBA")):
        content = stored(image, "PNG")
        assert decode_file(content, 3, "x") == decode_file(content, 3, "x", (0.0, 1.0))


@pytest.mark.parametrize("white", [1023, 4095, 65535])
def test_a_value_range_of_a_pgm_is_of_its_own_values(white: int) -> None:
    values = (grey() * 1000).astype(">u2")
    content = b"P5 48 48 %d\n" % white + values.tobytes()
    assert np.abs(np.asarray(decode_file(content, 1, "x", (0, 1000)).picture) - 255 * grey()).max() <= 1
    opened = pixels_of(Image.open(io.BytesIO(content)), GREY.model_copy(update={"value_range": (0, 1000)}), "x")
    assert (opened == decode(content, GREY.model_copy(update={"value_range": (0, 1000)}), "x")).all()


@pytest.mark.parametrize("text", ["1", "1,1", "2,1", "a,b", "nan,1", "0,inf", "", "0,1,2", "-1.7e308,1.7e308", "0,1e-320"])
def test_a_value_range_is_two_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not two numbers, black and then white\nwrite --value-range 0,255"):
        parse_value_range(text)


def test_files_with_several_pictures_are_read_at_the_first_and_said() -> None:
    blank = Image.new("RGB", (48, 48), "white")
    for form in ("GIF", "TIFF", "PNG", "WEBP", "AVIF"):
        decoded = decode_file(stored(blank, form, save_all=True, append_images=[picture()]), 3, "x")
        assert decoded.has_more, form
        assert np.asarray(decoded.picture).min() > 250, form
        assert not decode_file(stored(blank, form), 3, "x").has_more


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG that says it has so many pixels."""
    content = bytearray(stored(picture(), "JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def headers() -> dict[str, bytes]:
    """Small files that say they hold gigapixels."""
    bmp, gif, ppm = bytearray(stored(picture(), "BMP")), bytearray(stored(picture(), "GIF")), b"P6 65500 65500 255\n"
    bmp[18:26] = struct.pack("<ii", 65500, 65500)
    gif[6:10] = struct.pack("<HH", 65500, 65500)
    large = bytearray(png(np.zeros((4, 4), np.uint8)))
    large[16:24] = struct.pack(">II", 65500, 65500)
    large[29:33] = struct.pack(">I", zlib.crc32(bytes(large[12:29])))
    wide = bytearray(tiff(np.zeros((4, 4), np.uint8)))
    for tag in (256, 257):
        at = wide.index(struct.pack("<HHI", tag, 4, 1))
        wide[at + 8 : at + 12] = struct.pack("<I", 65500)
    return {"JPEG": jpeg_of(65500, 65500), "BMP": bytes(bmp), "GIF": bytes(gif), "PPM": ppm, "PNG": bytes(large), "TIFF": bytes(wide)}


@pytest.mark.parametrize("form", headers())
def test_more_pixels_than_the_limit_are_refused_from_the_header(form: str) -> None:
    content = headers()[form]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    readers = [lambda: decode_file(content, 3, "x"), lambda: decode(content, PREPROCESSING, "x"), lambda: decode_packed(content, GREY, "x")]
    for read in readers:
        with pytest.raises(DataError, match=r"x does not decode as an image \(65500 x 65500 pixels, more than the limit of 100,000,000"):
            read()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kilobytes


def test_the_limit_of_pixels_may_be_set_and_pillow_adds_none() -> None:
    content = stored(picture(), "PNG")
    with pytest.raises(DataError, match="48 x 48 pixels, more than the limit of 2,303"):
        decode_file(content, 3, "x", max_pixels=48 * 48 - 1)
    decode_file(content, 3, "x", max_pixels=48 * 48)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns above 89 million pixels
        large = b"P4 10000 9900\n" + bytes(1250 * 9900)
        assert decode_file(large, 1, "x").picture.size == (10000, 9900)
        assert MAX_PIXELS >= 10000 * 9900


@pytest.mark.parametrize("marker", range(0xC0, 0x100))
def test_the_size_in_a_jpegs_header_is_the_one_that_is_decoded(marker: int) -> None:
    """Whatever is put before the frame: what the fast reader takes for the size is what the decoder allocates."""
    extra = bytes([0xFF, marker]) + struct.pack(">H", 11) + struct.pack(">BHH", 8, 3, 5) + b"\1\1\x11\0"
    content = jpeg_of(65500, 65500)
    with pytest.raises(DataError):
        decode_packed(content[:2] + extra + content[2:], GREY, "x")


def test_postscript_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = tmp_path / "started"
    for name in ("gs", "gswin64c"):
        (tmp_path / name).write_text(f"#!/bin/sh\ntouch {started}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for content in (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 28 28\n%%EndComments\nshowpage\n%%EOF\n",
        stored(picture(), "EPS"),
        b"%PDF-1.4",
    ):
        with pytest.raises(DataError, match="its format is none of"):
            decode_file(content, 3, "x.png")
    assert not started.exists()


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.png"))
        for path, kind in (
            (tmp_path / "pipe.png", "pipe or device"),
            (Path("/dev/zero"), "pipe or device"),
            (tmp_path, "cannot be read"),
            (tmp_path / "s.png", "cannot be read"),
            (tmp_path / "absent.png", "No such file"),
            (Path("a\0b.png"), "null"),
        ):
            with pytest.raises(DataError, match=kind):
                read_file(path)
    with (tmp_path / "endless.png").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="more than any image of 100,000,000 pixels"):
        read_file(tmp_path / "endless.png")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=1500)
@given(form=st.sampled_from(sorted(WAYS_TO_STORE)), kind=st.sampled_from(["flip", "cut", "insert"]), seed=st.integers(0, 2**32))
def test_a_damaged_file_is_an_image_or_named(form: str, kind: str, seed: int) -> None:
    chance, content = random.Random(seed), bytearray(WHOLE[form])
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(min(len(content), chance.choice([40, 300, 10**6])))
        if kind == "flip":
            content[at] ^= 1 << chance.randrange(8)
        elif kind == "insert":
            content[at:at] = chance.randbytes(chance.randint(1, 9))
        else:
            del content[at : at + chance.choice([1, 4, 10**6])]
        content = content or bytearray(b"x")
    for answer in (outcome(decode, bytes(content), PREPROCESSING), outcome(decode_packed, bytes(content), GREY)):
        if isinstance(answer, DataError):
            assert answer.message.startswith("this one ")
            assert answer.remedy
        else:
            assert answer.shape[1:] == (24, 24)


def outcome(read: Callable[..., NDArray[np.uint8]], content: bytes, preprocessing: Preprocessing) -> NDArray[np.uint8] | DataError:
    try:
        return read(content, preprocessing, "this one")
    except DataError as error:
        return error


WHOLE = {form: stored(picture(), form, **options) for form, options in WAYS_TO_STORE.items()}
