"""One object cut out of its picture with its points, and the random changes of such cut-outs.

Points are (K, 3) or (B, K, 3): x and y in continuous pixels, and visibility, which nothing here changes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from opsin.data import augment_ops as ops
from opsin.data import transforms
from opsin.data.resize import Interpolation, Size, chain, crop, resize
from opsin.data.transforms import AugmentSettings
from opsin.errors import UnknownName
from opsin.recipe import Settings
from opsin.seeding import Keys, uniform, uniform_one
from opsin.task import Geometry

Box = tuple[float, float, float, float]


class PointAugment(Settings):
    """Which random changes a training object gets."""

    scale: float = Field(0.0, ge=0, lt=1)
    """Cut out a box larger or smaller by up to this share."""
    shift: float = Field(0.0, ge=0, le=1)
    """Move the box by up to this share of its sides."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Turn by up to this many degrees either way."""
    rotate_share: float = Field(0.6, ge=0, le=1)
    """Share of the samples that are turned."""
    brightness: float = Field(0.0, ge=0, le=1)
    """Multiply values by a factor in 1 +- this."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Move values from or to the mean gray by a factor in 1 +- this."""
    saturation: float = Field(0.0, ge=0, le=1)
    """Move colors from or to gray by a factor in 1 +- this."""
    erase: float = Field(0.0, ge=0, le=1)
    """Chance of painting over a random rectangle of 2 to 33 % of the area; its points stay to be found."""


def preset(name: str) -> PointAugment:
    """The augmentation behind `--augment`: `plain`, `standard` or `strong`.

    Raises:
        UnknownName: if there is no such preset.
    """
    color = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    known = {
        "plain": PointAugment(),
        "standard": PointAugment(scale=0.25, shift=0.05, rotate=30, **color),
        "strong": PointAugment(scale=0.35, shift=0.1, rotate=45, erase=0.25, **dict.fromkeys(color, 0.4)),
    }
    if name not in known:
        raise UnknownName("augmentation", name, known)
    return known[name]


def window(box: Box, size: Size, expand: float) -> Box:
    """The box (x1, y1, x2, y2) to cut out: around the same center, widened to the shape of `size` (H, W), and expanded."""
    width, height = max(box[2] - box[0], 1.0), max(box[3] - box[1], 1.0)
    aspect = size[1] / size[0]
    width, height = max(width, height * aspect) * expand, max(height, width / aspect) * expand
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def jittered(box: Box, key: int, settings: PointAugment) -> Box:
    """A box zoomed and moved at random, from the key alone."""
    draws = uniform_one(key, "object view")
    zoom, right, down = (2 * next(draws) - 1 for _ in range(3))
    width, height = box[2] - box[0], box[3] - box[1]
    x = (box[0] + box[2]) / 2 + right * settings.shift * width
    y = (box[1] + box[3]) / 2 + down * settings.shift * height
    factor = (1 + zoom * settings.scale) / 2
    return x - factor * width, y - factor * height, x + factor * width, y + factor * height


def cut_out(image: Tensor, box: Box, size: Size, interpolation: Interpolation) -> tuple[Tensor, Geometry]:
    """Cut a box, rounded to whole pixels, out of a picture (C, H, W) and resize it to (H, W); outside of the picture is 0."""
    left, top = round(box[0]), round(box[1])
    part, first = crop(image, top, left, (max(1, round(box[3]) - top), max(1, round(box[2]) - left)))
    resized, second = resize(part, size, interpolation)
    return resized, chain(first, second)


def to_input(points: NDArray[np.float64], geometry: Geometry) -> NDArray[np.float64]:
    """Points (K, 3) of the original picture in pixels of the input."""
    moved = points.copy()
    moved[:, :2] = (moved[:, :2] - geometry.offset) / geometry.scale
    return moved


def augment(
    images: Tensor,
    points: Tensor,
    keys: Keys,
    settings: PointAugment,
    *,
    flip: bool,
    swaps: Sequence[int],
    value_range: tuple[float, float],
) -> tuple[Tensor, Tensor]:
    """Mirror half of the samples, turn them, and change their colors; each from its own key.

    Args:
        images: (B, C, H, W) uint8, uint16 or float; not changed.
        points: (B, K, 3) in their pixels.
        keys: (B,).
        settings: what to do.
        flip: mirror half of them.
        swaps: (K,) where each point goes when mirrored.
        value_range: (low, high) of the pixels.
    """
    if flip:
        images, points = mirrored(images, points, uniform(keys, "flip horizontal")[:, 0] < 0.5, swaps)
    if settings.rotate:
        draws = uniform(keys, "turn", 2)
        angles = np.where(draws[:, 0] < settings.rotate_share, (2 * draws[:, 1] - 1) * settings.rotate, 0.0)
        images, points = turned(images, points, angles, value_range)
    names = ("brightness", "contrast", "saturation", "erase")
    colors = AugmentSettings.model_validate({name: getattr(settings, name) for name in names})
    return transforms.augment(images, keys, colors, value_range), points


def mirrored(images: Tensor, points: Tensor, chosen: NDArray[np.bool_], swaps: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mirror the chosen samples (B,) left to right: x becomes W - x, and every point takes the place of its twin."""
    which = torch.from_numpy(chosen).to(images.device)
    other = points[:, torch.as_tensor(swaps, device=points.device)].clone()  # swaps are their own inverse
    other[..., 0] = images.shape[3] - other[..., 0]
    return (
        torch.where(which[:, None, None, None], images.flip(3), images),
        torch.where(which[:, None, None], other, points),
    )


def turned(
    images: Tensor, points: Tensor, angles: NDArray[np.floating], value_range: tuple[float, float]
) -> tuple[Tensor, Tensor]:
    """Turn every sample around its center by its own angle (B,), in degrees, clockwise; corners become the lowest value."""
    zeros = np.zeros((len(angles), 2))
    inverse = ops.affine_matrices(angles, zeros, np.ones(len(angles)), zeros, zeros)  # (B, 2, 3), output to input
    if images.dtype == torch.uint8:
        moved = ops.affine(images, inverse)
    else:
        low, high = value_range
        unit = ops.affine((images.float() - low) / (high - low), inverse) * (high - low) + low
        moved = (unit if images.is_floating_point() else unit.round_().clamp_(low, high)).to(images.dtype)
    middle = torch.tensor([images.shape[3] / 2, images.shape[2] / 2], dtype=points.dtype, device=points.device)
    forward = torch.from_numpy(np.linalg.inv(inverse[:, :, :2])).to(points)  # (B, 2, 2)
    places = (points[..., :2] - middle) @ forward.transpose(1, 2) + middle
    return moved, torch.cat([places, points[..., 2:]], -1)
