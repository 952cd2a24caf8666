"""Automatic augmentation: each sample of a batch gets random operations at random strengths, each run once per batch.

The operations and their ranges are torchvision's; the numbers come from the samples' keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from opsin.data import augment_ops as ops
from opsin.seeding import Keys, uniform

Floats = NDArray[np.float64]

_OPERATIONS = (
    "identity",
    *("shear_x", "shear_y", "translate_x", "translate_y", "rotate"),
    *("brightness", "saturation", "contrast", "sharpness"),
    *("posterize", "solarize", "autocontrast", "equalize"),
)
_SIGNED = frozenset(_OPERATIONS[1:10])
_AFFINE = frozenset(_OPERATIONS[1:6])
_BINS = 31


def trivial_augment(images: Tensor, keys: Keys, fill: float = 0.0) -> Tensor:
    """TrivialAugment Wide (Müller and Hutter, 2021): one of 14 operations at a random one of 31 strengths.

    Ranges are those of torchvision's `TrivialAugmentWide`; geometric operations are bilinear.
    """
    draws = uniform(keys, "trivial augment", 3)
    levels = np.floor(draws[:, 1] * _BINS) / (_BINS - 1)
    ranges = {"shear": 0.99, "translate_x": 32.0, "translate_y": 32.0, "rotate": 135.0, "color": 0.99, "bits": 6.0}
    return _apply_policy(images, _choices(draws[:, 0]), levels, draws[:, 2] < 0.5, ranges, fill)


def rand_augment(images: Tensor, keys: Keys, count: int = 2, magnitude: int = 9, fill: float = 0.0) -> Tensor:
    """RandAugment (Cubuk et al., 2019): `count` random operations in a row at one strength of 0 to 30.

    Ranges are those of torchvision's `RandAugment`; geometric operations are bilinear.
    """
    height, width = images.shape[2:]
    ranges = {"shear": 0.3, "rotate": 30.0, "color": 0.9, "bits": 4.0}
    ranges |= {"translate_x": 150.0 / 331.0 * width, "translate_y": 150.0 / 331.0 * height}
    draws = uniform(keys, "rand augment", 2 * count)
    levels = np.full(len(keys), magnitude / (_BINS - 1))
    for i in range(count):
        images = _apply_policy(images, _choices(draws[:, 2 * i]), levels, draws[:, 2 * i + 1] < 0.5, ranges, fill)
    return images


def _choices(draws: Floats) -> NDArray[np.int64]:
    return np.floor(draws * len(_OPERATIONS)).astype(np.int64)


def _apply_policy(
    images: Tensor,
    choices: NDArray[np.int64],
    levels: Floats,
    negative: NDArray[np.bool_],
    ranges: dict[str, float],
    fill: float,
) -> Tensor:
    """Run every operation once, on the samples that chose it; choices, levels in [0, 1] and signs are (B,)."""
    output = images.clone()
    signs = np.where(negative, -1.0, 1.0)
    geometric = np.flatnonzero(np.isin(choices, [i for i, name in enumerate(_OPERATIONS) if name in _AFFINE]))
    if len(geometric):
        matrices = _policy_matrices(choices[geometric], (levels * signs)[geometric], ranges, images.shape[2:])
        index = ops.to_device(geometric, images.device)
        output.index_copy_(0, index, ops.affine(images.index_select(0, index), matrices, fill=fill))
    for number, name in enumerate(_OPERATIONS):
        chosen = np.flatnonzero(choices == number)
        if name == "identity" or name in _AFFINE or not len(chosen):
            continue
        index = ops.to_device(chosen, images.device)
        level = (levels * signs if name in _SIGNED else levels)[chosen]
        output.index_copy_(0, index, _COLOR_OPERATIONS[name](images.index_select(0, index), level, ranges))
    return output


_COLOR_OPERATIONS: dict[str, Callable[[Tensor, Floats, dict[str, float]], Tensor]] = {
    "brightness": lambda images, level, ranges: ops.brightness(images, 1 + level * ranges["color"]),
    "saturation": lambda images, level, ranges: ops.saturation(images, 1 + level * ranges["color"]),
    "contrast": lambda images, level, ranges: ops.contrast(images, 1 + level * ranges["color"]),
    "sharpness": lambda images, level, ranges: ops.sharpness(images, 1 + level * ranges["color"]),
    "posterize": lambda images, level, ranges: ops.posterize(
        images, np.round(8 - level * ranges["bits"]).astype(np.int64)
    ),
    "solarize": lambda images, level, _: ops.solarize(images, (1 - level) * ops.bound(images)),
    "autocontrast": lambda images, _, __: ops.autocontrast(images),
    "equalize": lambda images, _, __: ops.equalize(images),
}


def _policy_matrices(
    choices: NDArray[np.int64], levels: Floats, ranges: dict[str, float], size: Sequence[int]
) -> Floats:
    """Inverse matrices (B, 2, 3) of the geometric operations with signed levels (B,); shears keep the first corner."""

    def where(name: str, amounts: Floats) -> Floats:
        return np.where(choices == _OPERATIONS.index(name), amounts, 0.0)

    slope = np.degrees(np.arctan(levels * ranges["shear"]))
    shear = np.stack([where("shear_x", slope), where("shear_y", slope)], 1)
    pixels = [where(name, np.trunc(levels * ranges[name])) for name in ("translate_x", "translate_y")]
    angles = where("rotate", -levels * ranges["rotate"])  # a positive rotation is counter-clockwise
    corner = np.array([-0.5 * size[1], -0.5 * size[0]])
    center = np.where(shear.any(1, keepdims=True), corner, 0.0)
    return ops.affine_matrices(angles, np.stack(pixels, 1), np.ones(len(levels)), shear, center)
