"""Pictures as people store them, drawn here: four quarters of known colours, and the ways in which a file can say them."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

QUARTERS = ((220, 40, 40), (40, 200, 60), (40, 60, 210), (230, 220, 60))  # top left, top right, bottom left, bottom right
STORED = {  # EXIF orientation → how an upright picture is turned before it is stored
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def picture(size: int = 48) -> Image.Image:
    pixels = np.zeros((size, size, 3), np.uint8)
    half = size // 2
    pixels[:half, :half], pixels[:half, half:], pixels[half:, :half], pixels[half:, half:] = QUARTERS
    return Image.fromarray(pixels)


def grey(size: int = 48) -> NDArray[np.float64]:
    """The same picture's grey values in 0..1."""
    return np.asarray(picture(size).convert("L"), dtype=np.float64) / 255


def stored(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def turned(orientation: int, form: str, **options: object) -> bytes:
    """The picture as a camera stores it that was held differently."""
    exif = Image.Exif()
    exif[274] = orientation
    how = STORED[orientation]
    return stored(picture() if how is None else picture().transpose(how), form, exif=exif, **options)


def png_16_bit(values: NDArray[np.uint16]) -> bytes:
    """A PNG of 16 bits for each value: (H, W) grey or (H, W, 3) RGB, which Pillow cannot write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width = values.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, 16, 0 if values.ndim == 2 else 2, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(values: NDArray[np.generic], photometric: int = 1) -> bytes:
    """A plain TIFF in little-endian order of any numbers, (H, W) or (H, W, 3)."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    content = values.astype(values.dtype.newbyteorder("<")).tobytes()
    bits, offset = 8 * values.dtype.itemsize, 8 + 2 + 12 * 10 + 4
    bits_entry = struct.pack("<HHII", 258, 3, 1, bits) if channels == 1 else struct.pack("<HHII", 258, 3, channels, offset)
    after = b"" if channels == 1 else struct.pack(f"<{channels}H", *[bits] * channels)
    entries = [
        struct.pack("<HHII", 256, 4, 1, width),
        struct.pack("<HHII", 257, 4, 1, height),
        bits_entry,
        struct.pack("<HHII", 259, 3, 1, 1),
        struct.pack("<HHII", 262, 3, 1, photometric if channels == 1 else 2),
        struct.pack("<HHII", 273, 4, 1, offset + len(after)),
        struct.pack("<HHII", 277, 3, 1, channels),
        struct.pack("<HHII", 278, 4, 1, height),
        struct.pack("<HHII", 279, 4, 1, len(content)),
        struct.pack("<HHII", 339, 3, 1, kind),
    ]
    return struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(entries)) + b"".join(entries) + struct.pack("<I", 0) + after + content
