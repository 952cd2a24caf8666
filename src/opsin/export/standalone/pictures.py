"""Pictures for an exported model, with numpy and Pillow only: decoded, converted and resized as opsin itself does.

The same as `opsin.data.image`, `opsin.data.spec` and `opsin.data.resize`, which need torch (tests/e2e/
test_standalone_predict.py compares them). 8-bit pictures are resized in the integer arithmetic of torch, to the same
bits; 16-bit and float pictures in float32, where the last digit may differ (below 1e-6 of the range, or one level of
65,535).
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from opsin.data.deep_png import decode_deep_png
from opsin.data.headers import PNG_MAGIC, Exif, deep_pnm, jpeg_header, lost_depth, parse_exif, png_fault, png_header
from opsin.errors import DataError

Pixels = NDArray[Any]  # (H, W, C)
MAX_PIXELS = 200_000_000
FULL_RANGE = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0), "float32": (0.0, 1.0)}
PRECISION_LIMIT = 22  # bits of a resizing weight


class Picture(NamedTuple):
    """A decoded picture: pixels (H, W, C), turned upright, and when it was taken, as EXIF writes it."""

    pixels: Pixels
    taken: str | None


# Decoding -------------------------------------------------------------------------------------------------------------


def read_picture(path: str | os.PathLike[str], reduce_to: int | None = None, max_pixels: int = MAX_PIXELS) -> Picture:
    """Decode one picture.

    Args:
        path: of the file.
        reduce_to: JPEG files are decoded smaller, with a short side of at least this many pixels.
        max_pixels: refuse larger pictures.

    Raises:
        DataError: if the file is missing, no picture, damaged, too large, or of a depth that would be lost.
    """
    try:
        data = Path(path).read_bytes()
        Image.MAX_IMAGE_PIXELS = None  # the limit here is max_pixels
        pixels, exif = _decode(data, reduce_to, max_pixels)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error.__cause__
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise DataError(f"{path}: cannot be decoded ({str(error).rstrip('.') or type(error).__name__}).") from error
    return Picture(np.ascontiguousarray(_upright(pixels, exif.orientation)), exif.taken)


def _decode(data: bytes, reduce_to: int | None, max_pixels: int) -> tuple[Pixels, Exif]:
    if not data:
        raise DataError("the file is empty (0 bytes).")
    if (deep := deep_pnm(data)) is not None:
        return deep[0], Exif()
    png = png_header(data) if data[:8] == PNG_MAGIC else None
    if png is not None and (fault := png_fault(data)):
        raise DataError(f"{fault}.")
    jpeg = jpeg_header(data) if data[:3] == b"\xff\xd8\xff" else None
    with Image.open(io.BytesIO(data)) as image:
        if image.height * image.width > max_pixels:
            raise DataError(f"{image.height}x{image.width} is more than the limit of {max_pixels} pixels.")
        exif = jpeg.exif if jpeg is not None else _exif(image)
        if png is not None and png.bits == 16 and png.color in (2, 4, 6):
            return decode_deep_png(data), exif
        tags = dict(image.tag_v2) if image.format == "TIFF" and hasattr(image, "tag_v2") else None
        if lost := lost_depth(data, str(image.format), tags):
            raise DataError(f"{lost} would be read with 8 bits, and the rest lost.")
        if reduce_to is not None and jpeg is not None:
            scale = next((s for s in (8, 4, 2) if -(-min(image.size) // s) >= reduce_to), 1)
            image.draft(None, (image.width // scale, image.height // scale))
        image.load()
        return _pixels(image), exif


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


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _pixels(image: Image.Image) -> Pixels:
    mode = image.mode
    if mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None]
    if mode in ("I", "F"):
        return np.array(image).astype(np.float32)[..., None]
    if mode == "LAB":
        raise DataError("it is a LAB picture, which only opsin itself reads. Convert it to RGB.")
    grey = mode in ("1", "L", "LA", "La")
    clear = "transparency" in image.info and mode in ("1", "L", "P", "RGB")
    alpha = clear or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    wanted = ("LA" if grey else "RGBA") if alpha else ("L" if grey else "RGB")
    if mode == "PA":
        image = image.convert("RGBA")
    pixels = np.array(image if image.mode == wanted else image.convert(wanted))
    return pixels[..., None] if pixels.ndim == 2 else pixels


# Channels and values --------------------------------------------------------------------------------------------------


def convert(pixels: Pixels, channels: int, dtype: str, value_range: tuple[float, float]) -> Pixels:
    """Pixels (H, W, C) with other channels, type and range; values of another type count over its whole range."""
    have = str(pixels.dtype)
    low, high = value_range if have == dtype else FULL_RANGE.get(have, value_range)
    if pixels.shape[2] != channels:
        pixels = _channels(pixels, channels, high)
    if have == dtype and ((low, high) == tuple(value_range) or dtype == "float32"):
        return pixels
    new_low, new_high = value_range
    values = (pixels.astype(np.float64) - low) * ((new_high - new_low) / (high - low)) + new_low
    if dtype == "float32":
        return values.astype(np.float32)
    return values.round().clip(new_low, new_high).astype(dtype)


def _channels(pixels: Pixels, wanted: int, top: float) -> Pixels:
    """Alpha is laid on white, gray repeated, color weighted by Rec. 601."""
    have, dtype = pixels.shape[2], pixels.dtype
    if have > 4 or wanted > 4:
        raise DataError(f"pictures with {have} channels cannot be turned into {wanted} channels")
    whole = dtype.kind == "u"
    work: Pixels = pixels.astype(np.int64) if whole else pixels
    white = int(top) if whole else top
    alpha = None
    if have in (2, 4):
        work, alpha = work[..., :-1], work[..., -1:]
        if wanted in (1, 3):
            mixed = work * alpha + white * (white - alpha)
            work = (mixed + white // 2) // white if whole else mixed / white
    if wanted <= 2 and work.shape[2] == 3:
        red, green, blue = work[..., 0:1], work[..., 1:2], work[..., 2:3]
        if whole:
            work = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        else:
            work = (0.299 * red + 0.587 * green + 0.114 * blue).astype(dtype)
    elif wanted >= 3 and work.shape[2] == 1:
        work = np.repeat(work, 3, axis=2)
    if wanted in (2, 4):
        work = np.concatenate([work, np.full_like(work[..., :1], white) if alpha is None else alpha], axis=2)
    return work.astype(dtype)


# Size -----------------------------------------------------------------------------------------------------------------


def resize(pixels: Pixels, size: tuple[int, int], how: str = "bilinear") -> Pixels:
    """Pixels (H, W, C) resized to exactly (H, W), antialiased, as `torch.nn.functional.interpolate` does.

    Args:
        pixels: (H, W, C).
        size: (H, W) of the result.
        how: bilinear or bicubic.
    """
    one_axis = _resize_bytes if pixels.dtype == np.uint8 else _resize_floats
    found = pixels
    for axis in (1, 0):  # torch goes along the rows first, and rounds 8-bit pixels in between
        if found.shape[axis] != size[axis]:
            found = np.moveaxis(one_axis(np.ascontiguousarray(np.moveaxis(found, axis, 0)), size[axis], how), 0, axis)
    if pixels.dtype.kind == "u" and found.dtype.kind == "f":
        found = found.round().clip(0, np.iinfo(pixels.dtype).max).astype(pixels.dtype)
    return found


def _resize_bytes(pixels: Pixels, size: int, how: str) -> Pixels:
    """The first axis to `size`, with weights of 16 bits."""
    weights = _weights(len(pixels), size, np.float64, how)
    largest, bits = max(float(some.max()) for _, some in weights), 0
    while bits < PRECISION_LIMIT and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    out = np.empty((size, *pixels.shape[1:]), np.uint8)
    for place, (start, some) in enumerate(weights):
        whole = np.trunc(np.copysign(0.5, some) + some * (1 << bits))
        total = np.tensordot(whole, pixels[start : start + len(some)].astype(np.float64), 1)  # whole numbers: exact
        out[place] = ((total.astype(np.int64) + (1 << (bits - 1))) >> bits).clip(0, 255)
    return out


def _resize_floats(pixels: Pixels, size: int, how: str) -> Pixels:
    weights = _weights(len(pixels), size, np.float32, how)
    rows = [np.tensordot(some, pixels[start : start + len(some)].astype(np.float32), 1) for start, some in weights]
    return np.stack(rows)


def _weights(length: int, size: int, dtype: Any, how: str) -> list[tuple[int, NDArray[Any]]]:
    """For each of `size` pixels: the first of the `length` pixels that it is made of, and their weights."""
    scale = dtype(length) / dtype(size)
    stretch = max(scale, dtype(1))
    support = stretch * dtype(2 if how == "bicubic" else 1)
    found = []
    for place in range(size):
        center = scale * dtype(place + 0.5)
        start = max(int(center - support + dtype(0.5)), 0)
        stop = min(int(center + support + dtype(0.5)), length)
        distance = (np.arange(start, stop).astype(dtype) - center + dtype(0.5)) / stretch
        weights = (_cubic if how == "bicubic" else _triangle)(np.abs(distance)).astype(dtype)
        found.append((start, weights / weights.sum()))
    return found


def _triangle(distance: NDArray[Any]) -> NDArray[Any]:
    found: NDArray[Any] = np.clip(1 - distance, 0, None)
    return found


def _cubic(distance: NDArray[Any]) -> NDArray[Any]:
    """Keys' cubic with a = -1/2, as Pillow and torch's antialiasing have it."""
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    found: NDArray[Any] = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return found


def crop_middle(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    """The middle (H, W) of pixels (H, W, C), which are at least as large."""
    top, left = (round((have - want) / 2) for have, want in zip(pixels.shape[:2], size))
    return pixels[top : top + size[0], left : left + size[1]]
