"""The only reader of pictures: an encoded file → upright 8-bit grey or RGB pixels.

Packing, prediction, serving and reports all use it. Only the formats in `FORMATS` are opened, whatever a file's name.
"""

import io
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import (  # importing a plugin registers its format
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from distmeta.errors import ConfigError, DataError

MAX_PIXELS = 100_000_000
FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_FULL_RANGE = 65535  # of 16-bit integers
_DARKEST_PEAK = (_FULL_RANGE + 1) // 8  # 16-bit images that stay below this hold values of fewer bits, and would be read as black
_DARKEST_MEAN = 255 / 32  # photographs and drawings have a mean at least this far from black and from white
OTHER_RANGE = "give the values that are black and white in the images as --value-range LOW,HIGH"
_BYTES_PER_PIXEL = 16  # an upper bound for every format, with four channels of 32 bits each
# Raw modes that Pillow also knows in the other byte order.
_SWAPPABLE = [f"{mode};16{order}" for mode in ("RGB", "RGBX", "RGBA") for order in "BLN"]
_UPRIGHT = {  # EXIF orientation → what turns the stored picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_EXIF_BLOCKS = ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp")  # places where Pillow finds an orientation

ValueRange = tuple[float, float]
"""The values that are black and white in files of unknown range, in this order; white and black in those that say that 0 is white. Values
outside are clipped."""


def parse_value_range(text: str | None) -> ValueRange | None:
    """ "0,255" → (0.0, 255.0); None stays None. Raises ConfigError unless it is two finite numbers, the lower first."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low = high = math.nan
    if not (0 < high - low < math.inf and 255 / (high - low) < math.inf):  # nor NaN
        raise ConfigError(f"--value-range {text} is not two numbers, black and then white", "write --value-range 0,255")
    return low, high


class Decoded(NamedTuple):
    """A picture in mode L or RGB. `peak` is the largest value of a 16-bit file that was read by its full range, and None for any other
    file.

    `has_more` says whether the file is animated or has several pages; `picture` is the first. `scaled` says whether its values were read
    by a value range.
    """

    picture: Image.Image
    peak: int | None
    has_more: bool
    scaled: bool


def read_file(path: Path, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of an image file.

    Raises DataError if it cannot be read, is not a regular file (a pipe would never end), or is larger than any image with `max_pixels` can
    be.
    """
    most = max_pixels * _BYTES_PER_PIXEL + (1 << 20)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"{path} cannot be read: it is a pipe or device, not a file", "give the path of an image file")
            if status.st_size > most:
                raise DataError(
                    f"{path} has {status.st_size:,} bytes, more than any image of {max_pixels:,} pixels",
                    "remove that file, or raise the limit with --max-pixels",
                )
            return file.read()
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path} cannot be read: {reason}", "give the path of an image that you may read") from None


def decode_file(content: bytes, channels: int, origin: str, value_range: ValueRange | None = None, max_pixels: int = MAX_PIXELS) -> Decoded:
    """Decode an encoded file to grey (`channels` 1) or RGB (3), upright; transparency becomes white. `origin` names it in errors.

    8-bit values are used as they are, 16-bit integers are scaled by their full range. Signed, 32-bit and float values do not have a natural
    range and need `value_range`. If it is given, it also applies to 16-bit values. Raises DataError if the bytes are not a whole image of a
    format in FORMATS (or HEIC, where pillow-heif is installed), if its header names more than `max_pixels`, if a value is not a number, or
    if the values need a `value_range`.
    """
    try:
        image = _opened(content, origin)
        check_pixels(image.size, max_pixels, origin)
        has_more = bool(getattr(image, "is_animated", False))
        has_16_bit_colours = _has_16_bit_colours(image)
        value_range = as_pillow_scales(image, value_range)
        image.load()
        if has_16_bit_colours:
            picture, peak = _eight_bit_colours(image, content, origin, value_range)
        else:
            picture, peak = eight_bits(image, origin, value_range)
        scaled = value_range is not None and (has_16_bit_colours or not _has_8_bits(image))
        return Decoded(flattened(upright(picture, image), channels), peak, has_more, scaled)
    except DataError:
        raise
    except Exception as error:  # decoders raise nearly any exception on damaged files
        raise does_not_decode(origin, error) from None


def size_of(content: bytes, origin: str) -> tuple[int, int]:
    """(width, height) from an encoded file's header. Raises DataError as `decode_file`."""
    try:
        return _opened(content, origin).size
    except DataError:
        raise
    except Exception as error:
        raise does_not_decode(origin, error) from None


def does_not_decode(origin: str, error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"{origin} does not decode as an image ({reason})", "replace or remove that file")


def check_pixels(size: tuple[int, int], max_pixels: int, origin: str) -> None:
    """Raises DataError if an image of `size` (width, height) has more than `max_pixels`."""
    width, height = size
    if width * height > max_pixels:
        raise DataError(
            f"{origin} does not decode as an image ({width} x {height} pixels, more than the limit of {max_pixels:,})",
            "replace or remove that file, or raise the limit with --max-pixels",
        )


def check_bright(peak: int | None, origin: str) -> None:
    """Raises DataError if `peak`, the largest value of one or of all 16-bit images, shows that they use a small part of their range."""
    if peak is None or peak >= _DARKEST_PEAK:
        return
    likely = 2 ** max(8, peak.bit_length()) - 1
    raise DataError(
        f"{origin} has 16-bit values, but none above {peak} of {_FULL_RANGE}: read by their full range, they would show nothing",
        f"say which values are black and white, such as --value-range 0,{likely}, or save the images with 8 bits",
    )


def check_value_range(mean: float, value_range: ValueRange) -> None:
    """Raises DataError if images with this mean (0..255), read by `value_range`, are nearly black or nearly white, because the range must
    be wrong.
    """
    if not _DARKEST_MEAN <= mean <= 255 - _DARKEST_MEAN:
        low, high = value_range
        raise DataError(
            f"--value-range {low:g},{high:g} does not fit the images: by it, their mean is {mean / 255:.4f} of white", OTHER_RANGE
        )


def _opened(content: bytes, origin: str) -> ImageFile.ImageFile:
    """The file's header, read by the plugin of its first bytes. Image.open would apply Pillow's own limit of pixels."""
    for name in FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(content[:16]) is True:
            return factory(io.BytesIO(content), "")
    if content[4:8] == b"ftyp" and content[8:12] in _HEIF_BRANDS:
        try:
            from pillow_heif.as_plugin import HeifImageFile
        except ImportError:
            raise DataError(
                f"{origin} does not decode as an image (HEIC needs the package pillow-heif)", "pip install 'distmeta[heic]', or convert it"
            ) from None
        return HeifImageFile(io.BytesIO(content))
    raise DataError(
        f"{origin} does not decode as an image (its format is none of {', '.join(FORMATS)}, HEIC)", "replace, convert or remove that file"
    )


def upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """`picture` turned as the EXIF orientation of `image` says."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # a damaged EXIF block: like viewers, leave the picture as stored
        return picture
    method = _UPRIGHT.get(orientation)  # type: ignore[arg-type]
    if method is None:
        return picture
    turned = picture.transpose(method)
    for block in _EXIF_BLOCKS:
        turned.info.pop(block, None)  # otherwise the next reader would turn it again
    return turned


def eight_bits(image: Image.Image, origin: str, value_range: ValueRange | None) -> tuple[Image.Image, int | None]:
    """A loaded picture converted to 8 bits per value, and its `peak` as in `Decoded`. Raises DataError as `decode_file`."""
    if _has_8_bits(image):
        return image, None
    values = _values(image)
    if not np.isfinite(values).all():
        raise DataError(f"{origin} has values that are not finite numbers (NaN or infinity)", "replace or remove that file")
    negative = _is_negative(image)
    if value_range is not None:
        low, high = value_range
        return _scaled(values, (high, low) if negative else (low, high)), None
    # a PGM's header states the value of white, and Pillow scales by it
    if image.mode in ("F", "L") or (image.mode == "I" and image.format != "PPM"):
        kind = "float" if image.mode == "F" else "signed or 32-bit"
        extent = f"{values.min():.6g} to {values.max():.6g}"
        raise DataError(
            f"{origin} has {kind} values, {extent}: say which are black and white by --value-range LOW,HIGH",
            "give --value-range LOW,HIGH, such as --value-range 0,1, or save the image with 8 bits",
        )
    positive = _FULL_RANGE - values if negative else values
    return Image.fromarray((positive // 257).astype(np.uint8)), int(values.max())


def as_pillow_scales(image: Image.Image, value_range: ValueRange | None) -> ValueRange | None:
    """`value_range` for a picture that is not loaded yet: Pillow is about to scale a PGM's values from its own range to the full one."""
    tile = getattr(image, "tile", None)
    if value_range is None or not tile or image.mode != "I" or image.format != "PPM":
        return value_range
    white = tile[0].args[-1] if isinstance(tile[0].args, tuple) else _FULL_RANGE
    return value_range[0] * _FULL_RANGE / white, value_range[1] * _FULL_RANGE / white


def _has_8_bits(image: Image.Image) -> bool:
    """Whether a picture's values are 0 to 255 as they are. Pillow takes a TIFF's signed bytes for unsigned ones."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        return False
    return image.mode != "L" or 2 not in getattr(image, "tag_v2", {}).get(TiffImagePlugin.SAMPLEFORMAT, (1,))


def _has_16_bit_colours(image: ImageFile.ImageFile) -> bool:
    """Whether Pillow, on loading this picture, will reduce 16-bit colours to 8 bits."""
    if image.mode not in ("RGB", "RGBA", "CMYK") or not image.tile:
        return False
    arguments: Any = image.tile[0].args
    if image.format == "PPM":
        return isinstance(arguments, tuple) and arguments[-1] > 255
    return ";16" in str(arguments if isinstance(arguments, str) else arguments[:1])


def _eight_bit_colours(
    image: ImageFile.ImageFile, content: bytes, origin: str, value_range: ValueRange | None
) -> tuple[Image.Image, int | None]:
    """The same as `eight_bits` for 16-bit colours, of which Pillow keeps the upper 8 bits."""
    upper = np.asarray(image)
    if value_range is None:
        return image, int(upper[..., :3].max()) * 257
    values = upper.astype(np.uint16) * 256 + _lower_bytes(content, origin)
    picture = _scaled(values[..., :3], value_range)
    if image.mode == "RGBA":
        picture.putalpha(Image.fromarray(upper[..., 3]))
    return picture, None


def _lower_bytes(content: bytes, origin: str) -> NDArray[np.uint8]:
    """The lower bytes of 16-bit colours, which Pillow discards. Pillow keeps them instead if the file is read in the other byte order."""
    image = _opened(content, origin)
    arguments: Any = image.tile[0].args
    raw_mode = arguments if isinstance(arguments, str) else arguments[0]
    other = raw_mode[:-1] + {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}.get(raw_mode[-1:], "")
    if raw_mode not in _SWAPPABLE:
        raise DataError(f"{origin} has 16-bit colours stored so that --value-range cannot be applied", "save the image with 8 bits")
    swapped = other if isinstance(arguments, str) else (other, *arguments[1:])
    image.tile = [tile._replace(args=swapped) for tile in image.tile]
    return np.asarray(image)


def _values(image: Image.Image) -> NDArray[Any]:
    """A picture's values as the file holds them, in two cases that Pillow does not handle: signed bytes and unsigned 32 bits."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    sample_format = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    if image.mode == "I" and tags.get(TiffImagePlugin.BITSPERSAMPLE) == (32,) and sample_format == (1,):
        return values.view(np.uint32)
    if image.mode == "L":
        return values.view(np.int8)
    return values


def _is_negative(image: Image.Image) -> bool:
    """Whether a TIFF says that the lowest value is white. Pillow follows this only for values of up to 8 bits."""
    return getattr(image, "tag_v2", {}).get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _scaled(values: NDArray[Any], value_range: ValueRange) -> Image.Image:
    low, high = value_range
    return Image.fromarray(((values.astype(np.float64) - low) * (255 / (high - low))).round().clip(0, 255).astype(np.uint8))


def flattened(picture: Image.Image, channels: int) -> Image.Image:
    """An 8-bit picture of any mode in grey (`channels` 1) or RGB (3); transparency becomes white."""
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("L" if channels == 1 else "RGB")
