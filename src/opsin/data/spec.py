"""What pictures are (ImageSpec), what a whole data set is, and the step from one to another.

A conversion has a name and is reported; it is never a side effect of decoding.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from opsin.errors import ShapeError
from opsin.task import ImageSpec

_CHANNELS = {1: "grey", 2: "grey+alpha", 3: "RGB", 4: "RGBA"}
_DEPTHS = {"uint8": 0, "uint16": 1, "float32": 2}


def conversion_name(have: ImageSpec, want: ImageSpec) -> str | None:
    """What `convert` would do, in words for reports; None if nothing.

    >>> conversion_name(ImageSpec(1), ImageSpec(3))
    'grey to RGB (repeated)'
    """
    steps = []
    if have.channels != want.channels:
        how = []
        if have.channels in (2, 4) and want.channels in (1, 3):
            how.append("alpha composited on white")
        if have.channels <= 2 < want.channels:
            how.append("repeated")
        elif want.channels <= 2 < have.channels:
            how.append("Rec. 601")
        if have.channels in (1, 3) and want.channels in (2, 4):
            how.append("opaque alpha added")
        names = (
            _CHANNELS.get(have.channels, f"{have.channels} channels"),
            _CHANNELS.get(want.channels, f"{want.channels} channels"),
        )
        steps.append(f"{names[0]} to {names[1]} ({', '.join(how)})")
    if have.dtype != want.dtype or (have.range != want.range):
        steps.append(f"{_values(have)} to {_values(want)}")
    return "; ".join(steps) or None


def spec_of(image: Tensor) -> ImageSpec:
    """The spec of an image tensor (C, H, W) with the full range of its type; floats are taken to lie in [0, 1]."""
    dtype = str(image.dtype).removeprefix("torch.")
    return ImageSpec(image.shape[0], dtype, {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}.get(dtype, (0.0, 1.0)))


def common_spec(specs: Iterable[ImageSpec], alpha: bool) -> ImageSpec:
    """The least spec that every given one can be turned into without loss of color or depth.

    Args:
        specs: of some pictures, at least one.
        alpha: whether transparency says something in these pictures; if not, it is dropped.
    """
    given = set(specs)
    color = any(spec.channels >= 3 for spec in given)
    every_alpha = all(spec.channels in (2, 4) for spec in given)
    dtype = max((spec.dtype for spec in given), key=_DEPTHS.__getitem__)
    ranges = [spec.range for spec in given if spec.dtype == dtype]
    value_range = (min(low for low, _ in ranges), max(high for _, high in ranges))
    return ImageSpec((3 if color else 1) + (alpha and every_alpha), dtype, value_range)


def loses(have: ImageSpec, want: ImageSpec) -> bool:
    """Whether a conversion may drop information: color, or depth of values."""
    return (want.channels <= 2 < have.channels) or _DEPTHS[want.dtype] < _DEPTHS[have.dtype]


def convert(image: Tensor, have: ImageSpec, want: ImageSpec) -> Tensor:
    """Turn an image into another spec.

    Alpha is composited on white. Grey becomes RGB by repetition, RGB becomes grey with the weights of Rec. 601 (rounded
    as Pillow does). Values go linearly from the old range to the new one, rounded when the new type is an integer;
    16 bits become 8 only because `want` says so. Float ranges are mapped too, unless both are float.

    Args:
        image: (C, H, W) as `have` says.

    Returns:
        (want.channels, H, W) in want.dtype.

    Raises:
        ShapeError: if the image is not what `have` says, or channels other than 1 to 4 would have to be changed.
    """
    if image.shape[0] != have.channels or str(image.dtype) != f"torch.{have.dtype}":
        raise ShapeError(
            f"The image is {tuple(image.shape)} {image.dtype}; its spec says {have.channels} channels of {have.dtype}."
        )
    if have.channels != want.channels:
        if have.channels not in _CHANNELS or want.channels not in _CHANNELS:
            raise ShapeError(f"Pictures with {have.channels} channels cannot be turned into {want.channels} channels.")
        image = _channels(image, have, want.channels)
    same_range = have.range == want.range or (have.dtype == want.dtype == "float32")
    if have.dtype == want.dtype and same_range:
        return image
    (low, high), (new_low, new_high) = have.range, want.range
    values = (image.to(torch.float64) - low) * ((new_high - new_low) / (high - low)) + new_low
    if want.dtype == "float32":
        return values.to(torch.float32)
    return values.round().clamp(new_low, new_high).to(getattr(torch, want.dtype))


def _channels(image: Tensor, have: ImageSpec, wanted: int) -> Tensor:
    dtype, top = image.dtype, have.range[1]
    whole = not dtype.is_floating_point
    work = image.to(torch.int64) if whole else image  # (C, H, W)
    alpha = None
    if have.channels in (2, 4):
        work, alpha = work[:-1], work[-1:]
        if wanted in (1, 3):
            white = int(top) if whole else top
            mixed = work * alpha + white * (white - alpha)
            work = torch.div(mixed + white // 2, white, rounding_mode="floor") if whole else mixed / white
    if wanted <= 2 and work.shape[0] == 3:
        red, green, blue = work[0:1], work[1:2], work[2:3]
        if whole:
            work = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
        else:
            work = 0.299 * red + 0.587 * green + 0.114 * blue
    elif wanted >= 3 and work.shape[0] == 1:
        work = work.expand(3, -1, -1)
    if wanted in (2, 4):
        work = torch.cat([work, torch.full_like(work[:1], int(top) if whole else top) if alpha is None else alpha])
    return work.to(dtype).contiguous()


def _values(spec: ImageSpec) -> str:
    low, high = spec.range
    return f"{spec.dtype} in [{low:g}, {high:g}]"
