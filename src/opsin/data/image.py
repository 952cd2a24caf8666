"""The one decode path: bytes to an image tensor (C, H, W) with its ImageSpec, nothing lost and nothing guessed.

* JPEG is decoded by simplejpeg (the same pixels as Pillow), everything else by Pillow; 16-bit color PNG and deep
  PGM/PPM are read here, because Pillow would drop their low bits.
* The EXIF orientation is applied. Color profiles are not.
* Grey stays grey (1 channel), RGB 3, alpha 2 or 4. Palettes, CMYK, YCbCr, LAB and HSV are other ways to write RGB(A)
  and become that; 1-bit pictures become 0 and 255. 16 bits stay uint16, 32-bit integers and floats become float32.
* Of an animation or a multi-page file the first frame is read.
* A file that is cut off or damaged is an error, never a picture that is partly grey.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile, UnidentifiedImageError
from torch import Tensor

from opsin.data.deep_png import decode_deep_png
from opsin.data.headers import PNG_MAGIC, Exif, deep_pnm, jpeg_header, lost_depth, parse_exif, png_fault, png_header
from opsin.data.spec import conversion_name, convert, spec_of
from opsin.errors import DataError
from opsin.task import ImageSpec

__all__ = ["MAX_PIXELS", "PICTURE_SUFFIXES", "Probe", "conversion_name", "convert", "probe", "read_image", "spec_of"]

MAX_PIXELS = 200_000_000
"""Larger pictures are refused (they may be made to fill the memory); every reader takes another limit."""

PICTURE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".gif",
        ".pgm",
        ".ppm",
        ".pbm",
        ".pnm",
        ".pfm",
        ".jp2",
        ".j2k",
        ".jpx",
        ".avif",
        ".ico",
        ".tga",
        ".pcx",
        ".qoi",
        ".sgi",
        ".rgb",
    ]
)
"""File name endings that are taken for pictures."""

_FORMATS = (
    "JPEG",
    "MPO",
    "PNG",
    "WEBP",
    "TIFF",
    "BMP",
    "DIB",
    "GIF",
    "PPM",
    "JPEG2000",
    "AVIF",
    "ICO",
    "TGA",
    "PCX",
    "QOI",
    "SGI",
)
_UINT8, _UINT16 = (0.0, 255.0), (0.0, 65535.0)
_lock = threading.Lock()


class Probe(NamedTuple):
    """What a file says of itself without being decoded.

    `size` is (H, W) as it will be shown (orientation applied), `mode` the way pixels are written (Pillow's names),
    `taken` the time of the photograph as EXIF writes it ("2024:05:01 12:30:00"), `spec` what `read_image` will give
    (for TIFF with float values the range is known only after reading).
    """

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int
    taken: str | None
    spec: ImageSpec


def read_image(
    source: bytes | str | os.PathLike[str],
    *,
    reduce_to: int | None = None,
    max_pixels: int = MAX_PIXELS,
    name: str | None = None,
) -> tuple[Tensor, ImageSpec]:
    """Decode one picture.

    Args:
        source: the bytes of a file, or its path.
        reduce_to: JPEG files only: decode at the smallest of 1/1, 1/2, 1/4, 1/8 whose short side is still at least this
            many pixels (faster, and smoother than decoding first); other formats are given in full size.
        max_pixels: refuse larger pictures.
        name: what messages call the picture; the path when that is given.

    Returns:
        image (C, H, W) uint8, uint16 or float32, and its spec. Strides may be channels-last.

    Raises:
        DataError: if the file is missing, no picture, cut off, damaged, too large, or of a depth that would be lost.
    """
    data, name = _content(source, name)
    with _reported(name):
        pixels, orientation, value_range = _decode(data, reduce_to, max_pixels)
        pixels = _oriented(pixels, orientation)
        spec = ImageSpec(pixels.shape[2], str(pixels.dtype), value_range)
        if not all(stride >= 0 for stride in pixels.strides) or not pixels.flags.writeable:
            pixels = np.ascontiguousarray(pixels) if not pixels.flags.c_contiguous else pixels.copy()
        return torch.from_numpy(pixels).permute(2, 0, 1), spec  # (H, W, C) -> (C, H, W)


def read_original(
    source: bytes | str | os.PathLike[str], *, reduce_to: int | None = None, name: str | None = None
) -> tuple[Tensor, ImageSpec, tuple[int, int] | None]:
    """`read_image`, and the (H, W) that the picture has in full; None if it was decoded so."""
    data, name = _content(source, name)
    image, spec = read_image(data, reduce_to=reduce_to, name=name)
    size = None if reduce_to is None else probe(data, name=name).size
    return image, spec, None if size == tuple(image.shape[1:]) else size


def probe(source: bytes | str | os.PathLike[str], *, name: str | None = None) -> Probe:
    """Read the header of a picture only (a microsecond for JPEG, some for others).

    Raises:
        DataError: if it is no picture that `read_image` reads.
    """
    data, name = _content(source, name)
    with _reported(name):
        if data[:3] == b"\xff\xd8\xff" and (jpeg := jpeg_header(data)) is not None:
            mode = {1: "L", 4: "CMYK"}.get(jpeg.components, "RGB")
            size = _turned((jpeg.height, jpeg.width), jpeg.exif.orientation)
            return Probe("JPEG", size, mode, *jpeg.exif, ImageSpec(1 if mode == "L" else 3, "uint8", _UINT8))
        if (deep := deep_pnm(data)) is not None:
            h, w, c = deep[0].shape
            return Probe(
                "PPM", (h, w), "I;16" if c == 1 else "RGB;16", 1, None, ImageSpec(c, "uint16", (0.0, float(deep[1])))
            )
        with _opened(data, None) as image:
            png = png_header(data) if image.format == "PNG" else None
            deep_png = png is not None and png.bits == 16 and png.color in (2, 4, 6)
            exif = _exif(image)
            spec = (
                ImageSpec({2: 3, 4: 2, 6: 4}[png.color], "uint16", _UINT16)
                if deep_png and png
                else _spec_of_mode(image)
            )
            mode = f"{image.mode};16" if deep_png else image.mode
            # Pillow turns TIFF by itself, and gives the size after that.
            size = _turned((image.height, image.width), 1 if image.format == "TIFF" else exif.orientation)
            return Probe(str(image.format), size, mode, *exif, spec)


def _content(source: bytes | str | os.PathLike[str], name: str | None) -> tuple[bytes, str]:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), name or f"picture of {len(source)} bytes"
    path = Path(source)
    try:
        return path.read_bytes(), name or str(path)
    except OSError as error:
        raise DataError(f"{name or path}: cannot be read ({error.strerror or error}).") from error


@contextlib.contextmanager
def _reported(name: str) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(f"{name}: {error}") from error.__cause__
    except MemoryError as error:
        raise DataError(f"{name}: not enough memory to decode it.") from error
    except Exception as error:  # decoders raise whatever they like on damaged files
        reason = str(error).strip().rstrip(".") or type(error).__name__
        raise DataError(f"{name}: cannot be decoded ({reason}). Replace the file.") from error


def _decode(data: bytes, reduce_to: int | None, max_pixels: int) -> tuple[NDArray[Any], int, tuple[float, float]]:
    if not data:
        raise DataError("the file is empty (0 bytes). Replace it.")
    if data[:3] == b"\xff\xd8\xff":
        pixels, orientation = _decode_jpeg(data, reduce_to, max_pixels)
        return pixels, orientation, _UINT8
    if (deep := deep_pnm(data)) is not None:
        _check_pixels(deep[0].shape[0], deep[0].shape[1], max_pixels)
        return deep[0], 1, (0.0, float(deep[1]))
    if data[:8] == PNG_MAGIC:
        if fault := png_fault(data):
            raise DataError(f"{fault}. Replace the file.")
        header = png_header(data)
        if header is not None and header.bits == 16 and header.color in (2, 4, 6):
            _check_pixels(header.height, header.width, max_pixels)
            return _deep_png(data)
    return _decode_pillow(data, None, max_pixels)


def _decode_jpeg(data: bytes, reduce_to: int | None, max_pixels: int) -> tuple[NDArray[Any], int]:
    header = jpeg_header(data)
    if header is None:
        raise DataError("the JPEG header is cut off or damaged. Replace the file.")
    _check_pixels(header.height, header.width, max_pixels)
    scale = 1
    if reduce_to is not None:
        short = min(header.height, header.width)
        scale = next((s for s in (8, 4, 2) if -(-short // s) >= reduce_to), 1)
    if header.components in (1, 3) and header.bits == 8:
        height, width = -(-header.height // scale), -(-header.width // scale)
        space = "GRAY" if header.components == 1 else "RGB"
        wanted = {"min_height": height, "min_width": width} if scale > 1 else {}
        try:
            pixels = simplejpeg.decode_jpeg(data, space, **wanted)
        except ValueError as error:
            # Some cameras leave bytes between the last pixel and the end marker; every pixel is there.
            if not ("extraneous bytes before marker 0xd9" in str(error) and _pillow_accepts(data)):
                raise
            pixels = simplejpeg.decode_jpeg(data, space, strict=False, **wanted)
        return pixels, header.exif.orientation
    pixels, _, _ = _decode_pillow(data, scale, max_pixels)
    return pixels, header.exif.orientation


def _pillow_accepts(data: bytes) -> bool:
    with _opened(data, None) as image:
        _load(image)
    return True


def _deep_png(data: bytes) -> tuple[NDArray[Any], int, tuple[float, float]]:
    with _opened(data, None) as image:
        orientation = _exif(image).orientation
    return decode_deep_png(data), orientation, _UINT16


def _decode_pillow(data: bytes, scale: int | None, max_pixels: int) -> tuple[NDArray[Any], int, tuple[float, float]]:
    with _opened(data, max_pixels) as image:
        tags = dict(image.tag_v2) if image.format == "TIFF" and hasattr(image, "tag_v2") else None
        if lost := lost_depth(data, str(image.format), tags):
            raise DataError(
                f"{lost} would be read with 8 bits, and the rest lost. "
                f"Convert it to PNG with 16 bits per channel (for example: magick picture.tif PNG48:picture.png)."
            )
        if scale is not None and scale > 1:
            image.draft(None, (image.width // scale, image.height // scale))
        _load(image)
        orientation = _exif(image).orientation
        spec = _spec_of_mode(image)
        return _pixels(image), orientation, _float_range(tags) if spec.dtype == "float32" else spec.range


@contextlib.contextmanager
def _opened(data: bytes, max_pixels: int | None) -> Iterator[Image.Image]:
    # Pillow's limit of pixels and Python's warning filters are global: one thread at a time changes them.
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if "QOI" not in Image.OPEN:
            Image.init()
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data), formats=[f for f in _FORMATS if f in Image.OPEN])
        except UnidentifiedImageError as error:
            raise DataError(_unknown(data)) from error
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    with image:
        if max_pixels is not None:
            _check_pixels(image.height, image.width, max_pixels)
        yield image


def _load(image: Image.Image) -> None:
    """Decode, and never accept a file that is cut off, whatever another library has set."""
    if not ImageFile.LOAD_TRUNCATED_IMAGES:
        image.load()
        return
    with _lock:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
        try:
            image.load()
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = True


def _unknown(data: bytes) -> str:
    if not data.strip(b"\0"):
        return f"the file holds {len(data)} zero bytes and no picture. Replace it."
    said = "not a picture that can be read (damaged, or of an unknown format)"
    return f"{said}. Replace it."


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height < 1 or width < 1:
        raise DataError(f"the header gives the size {height}x{width} (height x width); expected at least 1x1.")
    if height * width > max_pixels:
        raise DataError(
            f"{height}x{width} is {height * width / 1e6:.0f} megapixels, more than the limit of {max_pixels / 1e6:.0f} "
            f"megapixels. Shrink or tile the picture, or raise max_pixels."
        )


def _exif(image: Image.Image) -> Exif:
    try:
        exif = image.getexif()
        orientation = exif.get(0x0112, 1)
        inner = exif.get_ifd(0x8769)
        taken = inner.get(0x9003) or inner.get(0x9004) or exif.get(0x0132)
    except Exception:  # a broken EXIF block says nothing; the picture may be whole
        raw = image.info.get("exif")
        return parse_exif(raw.removeprefix(b"Exif\0\0")) if isinstance(raw, bytes) else Exif()
    valid = orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1
    return Exif(valid, taken.strip("\0 ") if isinstance(taken, str) else None)


def _turned(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size


def _oriented(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Turn stored pixels (H, W, C) as EXIF says they are to be shown."""
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _alpha(image: Image.Image) -> bool:
    return image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or (
        "transparency" in image.info and image.mode in ("1", "L", "P", "RGB")
    )


def _spec_of_mode(image: Image.Image) -> ImageSpec:
    mode = image.mode
    if mode.startswith("I;16"):
        bits = image.tag_v2.get(258, (16,)) if image.format == "TIFF" and hasattr(image, "tag_v2") else (16,)
        return ImageSpec(1, "uint16", (0.0, float(2 ** int(bits[0]) - 1)))
    if mode in ("I", "F"):
        return ImageSpec(1, "float32", (0.0, 1.0))
    grey = mode in ("1", "L", "LA", "La")
    return ImageSpec((1 if grey else 3) + _alpha(image), "uint8", _UINT8)


def _pixels(image: Image.Image) -> NDArray[Any]:
    """Pixels (H, W, C) of a loaded picture in any of Pillow's modes."""
    mode = image.mode
    if mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if mode == "F":
        return np.array(image, np.float32)[..., None]
    if mode == "I":
        values = np.array(image)
        as_float = values.astype(np.float32)
        if not np.array_equal(as_float.astype(np.int64), values):
            raise DataError(
                "its 32-bit integers are too large to be kept exactly (limit 2**24). Rescale them to 16 bits or float."
            )
        return as_float[..., None]
    if mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.array(converted)
    grey = mode in ("1", "L", "LA", "La")
    wanted = ("LA" if grey else "RGBA") if _alpha(image) else ("L" if grey else "RGB")
    if mode == "PA":
        image = image.convert("RGBA")
    pixels = np.array(image if image.mode == wanted else image.convert(wanted))
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _float_range(tags: dict[int, Any] | None) -> tuple[float, float]:
    """Range that a TIFF declares for its float values (tags 340, 341), else [0, 1]."""
    try:
        low, high = (float(np.ravel((tags or {})[tag])[0]) for tag in (340, 341))
    except (KeyError, TypeError, ValueError, IndexError):
        return (0.0, 1.0)
    return (low, high) if low < high else (0.0, 1.0)
