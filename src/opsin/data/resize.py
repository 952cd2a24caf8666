"""Single pictures brought to the size of a model's input, each with the Geometry that leads back to the original.

Pictures are (C, H, W) tensors. uint8 is resized in integer arithmetic (antialiased, the pixels of
`torchvision.transforms.v2.functional.resize`), so results are the same for every thread count. Decoders give rows of
pixels with interleaved channels; that memory layout is kept, because it is what the resizing kernel and channels-last
convolutions read fastest: use `stack` to put such pictures into a batch without reordering bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from opsin.errors import ShapeError
from opsin.seeding import uniform_one
from opsin.task import Geometry

Size = tuple[int, int]
Interpolation = Literal["bilinear", "bicubic"]


def _interleaved(image: Tensor) -> Tensor:
    """A batch of one, (1, C, H, W), whose strides say channels-last beyond doubt when the pixels are interleaved."""
    channels, height, width = image.shape
    if channels > 1 and image.stride(0) == 1:
        rows = image.permute(1, 2, 0).contiguous()  # (H, W, C), copies only a crop
        return rows.as_strided(
            (1, channels, height, width), (rows.numel(), 1, width * channels, channels), rows.storage_offset()
        )
    return image.contiguous()[None]


def resize(image: Tensor, size: Size, interpolation: Interpolation = "bilinear") -> tuple[Tensor, Geometry]:
    """Resize to exactly (H, W), antialiased.

    Args:
        image: (C, H, W), uint8, uint16 or float.
        size: (H, W) of the result.
        interpolation: bicubic overshoots at edges: whole numbers are cut off at the ends of their type, floats are not.

    Raises:
        ShapeError: if the image is not (C, H, W) or the size is not positive.
    """
    if image.ndim != 3 or min(size) < 1:
        raise ShapeError(f"Expected an image (C, H, W) and a positive size, got {tuple(image.shape)} and {size}.")
    height, width = image.shape[1:]
    geometry = Geometry((height, width), size, (width / size[1], height / size[0]))
    if (height, width) == tuple(size):
        return image, geometry
    native = image.dtype == torch.uint8 and image.device.type == "cpu"
    values = _interleaved(image) if native else image[None].to(torch.float32)
    values = F.interpolate(values, size, mode=interpolation, antialias=True, align_corners=False)
    if native:
        return values[0], geometry
    if not image.is_floating_point():
        values = values.round_().clamp_(0, torch.iinfo(image.dtype).max)
    return values[0].to(image.dtype), geometry


def chain(first: Geometry, second: Geometry) -> Geometry:
    """Geometry of two steps in a row: `first` was applied to the original, `second` to the result of `first`."""
    scale = (first.scale[0] * second.scale[0], first.scale[1] * second.scale[1])
    offset = (
        first.scale[0] * second.offset[0] + first.offset[0],
        first.scale[1] * second.offset[1] + first.offset[1],
    )
    return Geometry(first.original_size, second.input_size, scale, offset)


def resize_shortest(image: Tensor, size: int, interpolation: Interpolation = "bilinear") -> tuple[Tensor, Geometry]:
    """Resize so that the shorter side is `size`, the longer one in proportion (rounded down, as torchvision does)."""
    height, width = image.shape[-2:]
    short, long = sorted((height, width))
    other = max(size, int(size * long / short))
    return resize(image, (size, other) if height <= width else (other, size), interpolation)


def crop(image: Tensor, top: int, left: int, size: Size) -> tuple[Tensor, Geometry]:
    """Cut out (H, W) pixels; what lies outside the picture is 0."""
    height, width = image.shape[-2:]
    y, x = max(top, 0), max(left, 0)
    part = image[:, y : max(top + size[0], y), x : max(left + size[1], x)]
    pads = (x - left, size[1] - part.shape[2] - (x - left), y - top, size[0] - part.shape[1] - (y - top))
    if any(pads):
        part = F.pad(part, pads)
    return part, Geometry((height, width), size, (1.0, 1.0), (float(left), float(top)))


def center_crop(image: Tensor, size: Size) -> tuple[Tensor, Geometry]:
    """Cut the middle (H, W) out; smaller pictures are padded with 0."""
    height, width = image.shape[-2:]
    top, left = (
        round((side - wanted) / 2) if side >= wanted else -((wanted - side) // 2)
        for side, wanted in zip((height, width), size)
    )
    return crop(image, top, left, size)


def resize_center_crop(
    image: Tensor, size: int, share: float = 0.875, interpolation: Interpolation = "bilinear"
) -> tuple[Tensor, Geometry]:
    """The usual way to show a photo to a classifier: shorter side to `size / share`, then the middle square."""
    resized, first = resize_shortest(image, max(size, round(size / share)), interpolation)
    cut, second = center_crop(resized, (size, size))
    return cut, chain(first, second)


def letterbox(image: Tensor, size: Size, fill: float = 114.0) -> tuple[Tensor, Geometry]:
    """Resize to fit inside (H, W) keeping proportions, centred on a plain background.

    Args:
        image: (C, H, W).
        size: (H, W) of the result.
        fill: background in the values of the image; 114 is the gray that detectors were trained with.
    """
    height, width = image.shape[-2:]
    ratio = min(size[0] / height, size[1] / width)
    inner = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    resized, first = resize(image, inner)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    pads = (left, size[1] - inner[1] - left, top, size[0] - inner[0] - top)
    placed = F.pad(resized, pads, value=fill) if any(pads) else resized
    return placed, chain(first, Geometry(inner, size, (1.0, 1.0), (-float(left), -float(top))))


def random_box(
    height: int, width: int, key: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Box (top, left, height, width) with a random share of the area and aspect, drawn from the key alone.

    Like torchvision's `RandomResizedCrop`: ten tries, then the largest central box inside the allowed aspects.
    """
    draws = uniform_one(key, "random box")
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(10):
        share, shape, y, x = next(draws), next(draws), next(draws), next(draws)
        area = height * width * (scale[0] + (scale[1] - scale[0]) * share)
        aspect = math.exp(low + (high - low) * shape)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    w, h = width, height
    if width / height < ratio[0]:
        h = min(height, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w = min(width, round(height * ratio[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
    image: Tensor,
    key: int,
    size: Size,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: Interpolation = "bilinear",
) -> tuple[Tensor, Geometry]:
    """Cut a random box and resize it to (H, W); which box depends on the key and the size of the picture alone.

    Args:
        image: (C, H, W).
        key: the sample's key.
        size: (H, W) of the result.
        scale: lowest and highest share of the picture's area.
        ratio: lowest and highest width / height.
        interpolation: of the resizing.
    """
    height, width = image.shape[-2:]
    top, left, h, w = random_box(height, width, key, scale, ratio)
    resized, geometry = resize(image[:, top : top + h, left : left + w], size, interpolation)
    return resized, geometry._replace(original_size=(height, width), offset=(float(left), float(top)))


def stack(images: Sequence[Tensor]) -> Tensor:
    """Put pictures (C, H, W) of one size into a batch (B, C, H, W), keeping interleaved pixels as channels-last.

    Raises:
        ShapeError: if the pictures differ in size, naming the first that does.
    """
    first = images[0]
    odd = next((i for i, image in enumerate(images) if image.shape != first.shape), None)
    if odd is not None:
        raise ShapeError(
            f"Picture {odd} of the batch is {tuple(images[odd].shape)}, the first one {tuple(first.shape)}."
        )
    if first.shape[0] > 1 and all(image.stride(0) == 1 for image in images):
        return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # (B, C, H, W)
    return torch.stack(list(images))
