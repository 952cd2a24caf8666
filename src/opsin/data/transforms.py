"""Random augmentation of whole batches on their device; every number comes from the sample's own key.

A sample's result depends on its key alone, never on the batch it is in, so worker count, batch size and number of
processes change nothing. All choices are made on the host from keys (a few hundred numbers), so an accelerator never
waits for them; pixels are touched on the device.

Order: affine, shift and flips (one gather), policy, colour jitter, erasing; then `mix` with partners. Geometry of
single pictures (resize, crop, letterbox) is in `opsin.data.resize`, TrivialAugment and RandAugment are in
`opsin.data.policies`, the operations themselves in `opsin.data.augment_ops`.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from opsin.data import augment_ops as ops
from opsin.data.policies import Floats, rand_augment, trivial_augment
from opsin.errors import ShapeError, UnknownName
from opsin.recipe import Settings
from opsin.seeding import Keys, uniform


class AugmentSettings(Settings):
    """Which random changes a training picture gets; everything is off by default."""

    shift: float = Field(default=0.0, ge=0, le=1)
    """Move by up to this share of the side (pad and crop); 0.125 is 4 pixels of 32."""
    padding: Literal["constant", "reflect", "edge"] = "constant"
    """What fills the border that a shift uncovers."""
    flip_horizontal: bool = False
    """Mirror half of the pictures left to right; wrong for digits, letters and left/right classes."""
    flip_vertical: bool = False
    """Mirror half of the pictures top to bottom (cells, satellites)."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Turn by up to this many degrees either way."""
    scale: float = Field(default=0.0, ge=0, lt=1)
    """Zoom by a factor between 1 - scale and 1 + scale."""
    shear: float = Field(default=0.0, ge=0, lt=90)
    """Shear by up to this many degrees along x."""
    brightness: float = Field(default=0.0, ge=0, le=1)
    """Multiply values by a factor in 1 +- this."""
    contrast: float = Field(default=0.0, ge=0, le=1)
    """Move values from or to the mean gray by a factor in 1 +- this."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Move colours from or to gray by a factor in 1 +- this."""
    policy: Literal["none", "trivial", "rand"] = "none"
    """`trivial`: TrivialAugment Wide (one random operation); `rand`: RandAugment."""
    rand_ops: int = Field(default=2, ge=1, le=8)
    """For `rand`: operations in a row."""
    rand_magnitude: int = Field(default=9, ge=0, le=30)
    """For `rand`: strength of every operation, of 30."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Chance of painting over a random rectangle of 2 to 33 % of the area with the picture's mean."""
    cutout: float = Field(default=0.0, ge=0, le=1)
    """Paint over one square of this share of the side in every picture, cut at the border."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of mixup, 0 is off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha of CutMix, 0 is off; with mixup too, each sample gets one of them."""
    mix: float = Field(default=1.0, ge=0, le=1)
    """Share of samples that are mixed when mixup or cutmix is on."""
    fill: float = Field(default=0.0, ge=0, le=1)
    """Value outside the picture (rotation, shear, constant padding), as a share of the range."""
    crop_scale: tuple[float, float] | None = None
    """For photos, while they are prepared: share of the area that a random crop keeps; None takes the middle."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """For photos: width / height of the random crop."""

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with partners."""
        return self.mix > 0 and (self.mixup > 0 or self.cutmix > 0)


def preset(name: str, *, small: bool, flip: bool) -> AugmentSettings:
    """The augmentation behind `--augment`.

    Args:
        name: `plain` (none beyond resizing), `standard` or `strong`.
        small: pictures are stored at the model's size (up to about 64 pixels), so they are shifted, not cropped.
        flip: mirrored pictures keep their class; False for digits and letters, which also limits rotation.

    Raises:
        UnknownName: if there is no such preset.
    """
    if name == "plain":
        return AugmentSettings()
    place = (
        AugmentSettings(shift=0.125, padding="reflect" if flip else "constant")
        if small
        else AugmentSettings(crop_scale=(0.25, 1.0), brightness=0.2, contrast=0.2, saturation=0.2)
    )
    if name == "standard":
        return place.model_copy(update={"flip_horizontal": flip})
    if name == "strong":
        strong = {"policy": "trivial" if flip else "rand", "erase": 0.1, "mixup": 0.2, "cutmix": 1.0}
        gentle = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}  # the policy changes colours already
        crop = {} if small else {"crop_scale": (0.08, 1.0)}
        return place.model_copy(update={"flip_horizontal": flip, **gentle, **strong, **crop})
    raise UnknownName("augmentation", name, ("plain", "standard", "strong"))


# A whole batch ------------------------------------------------------------------------------------------------------


def augment(
    images: Tensor, keys: Keys, settings: AugmentSettings, value_range: tuple[float, float] | None = None
) -> Tensor:
    """Apply everything in the settings but mixing.

    Args:
        images: (B, C, H, W) uint8, uint16 or float, on any device; not changed.
        keys: (B,) one key per sample.
        settings: what to do.
        value_range: (low, high) of float and uint16 pictures; by default (0, 1) and (0, 65535).

    Returns:
        (B, C, H, W) of the same type.

    Raises:
        ShapeError: if there is not one key for every image.
    """
    if images.ndim != 4 or len(images) != len(keys):
        raise ShapeError(
            f"Expected images (B, C, H, W) with one key each, got {tuple(images.shape)} and {len(keys)} keys."
        )
    if images.dtype != torch.uint8:
        low, high = value_range or ((0.0, 65535.0) if images.dtype == torch.uint16 else (0.0, 1.0))
        work = (images.float() - low) / (high - low)
        work = _augment(work, keys, settings) * (high - low) + low
        return work.to(images.dtype) if images.is_floating_point() else work.round_().clamp_(low, high).to(images.dtype)
    return _augment(images, keys, settings)


def _augment(images: Tensor, keys: Keys, settings: AugmentSettings) -> Tensor:
    if settings.rotate or settings.scale or settings.shear:
        images = _random_affine(images, keys, settings)
    if settings.shift:
        images = shift_and_flip(images, keys, settings)
    else:
        if settings.flip_horizontal:
            images = _flip(images, _coins(keys, "flip horizontal"), -1)
        if settings.flip_vertical:
            images = _flip(images, _coins(keys, "flip vertical"), -2)
    if settings.policy == "trivial":
        images = trivial_augment(images, keys, settings.fill)
    elif settings.policy == "rand":
        images = rand_augment(images, keys, settings.rand_ops, settings.rand_magnitude, settings.fill)
    if settings.brightness or settings.contrast or settings.saturation:
        images = color_jitter(images, keys, settings.brightness, settings.contrast, settings.saturation)
    if settings.erase:
        images = _random_erasing(images, keys, settings.erase)
    if settings.cutout:
        images = _cutout(images, keys, settings.cutout)
    return images


def _coins(keys: Keys, purpose: str, chance: float = 0.5) -> NDArray[np.bool_]:
    return uniform(keys, purpose)[:, 0] < chance


def _flip(images: Tensor, chosen: NDArray[np.bool_], axis: int) -> Tensor:
    index = ops.to_device(np.flatnonzero(chosen), images.device)
    flipped = images.clone()
    return flipped.index_copy_(0, index, images.index_select(0, index).flip(axis))


def shift_and_flip(images: Tensor, keys: Keys, settings: AugmentSettings) -> Tensor:
    """Shift by whole pixels and flip, as one gather per batch; (B, C, H, W)."""
    size, channels, height, width = images.shape
    reach = (round(settings.shift * height), round(settings.shift * width))
    draws = uniform(keys, "shift", 2)
    rows = _source_index(
        draws[:, 0], height, reach[0], _coins(keys, "flip vertical") if settings.flip_vertical else None
    )
    columns = _source_index(
        draws[:, 1], width, reach[1], _coins(keys, "flip horizontal") if settings.flip_horizontal else None
    )
    if settings.padding == "constant":
        rows, columns = rows + reach[0], columns + reach[1]
        images = F.pad(images, (reach[1], reach[1], reach[0], reach[0]), value=settings.fill * ops.bound(images))
    else:
        fold = _reflected if settings.padding == "reflect" else _clamped
        rows, columns = fold(rows, height), fold(columns, width)
    stride = images.shape[3]
    index = ops.to_device(rows * stride, images.device)[:, :, None] + ops.to_device(columns, images.device)[:, None, :]
    flat = index.view(size, 1, height * width).expand(size, channels, height * width)
    return images.reshape(size, channels, -1).gather(2, flat).view(size, channels, height, width)


def _source_index(draws: Floats, side: int, reach: int, flips: NDArray[np.bool_] | None) -> NDArray[np.int64]:
    """Which row or column (B, side) each output pixel is read from, maybe outside [0, side)."""
    index = np.arange(side)[None, :] + (np.floor(draws * (2 * reach + 1)).astype(np.int64) - reach)[:, None]
    return index if flips is None else np.where(flips[:, None], index[:, ::-1], index)


def _reflected(index: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    index = np.abs(index) % max(2 * side - 2, 1)
    return np.where(index < side, index, 2 * side - 2 - index)


def _clamped(index: NDArray[np.int64], side: int) -> NDArray[np.int64]:
    return np.clip(index, 0, side - 1)


def _random_affine(images: Tensor, keys: Keys, settings: AugmentSettings) -> Tensor:
    draws = uniform(keys, "affine", 3) * 2 - 1
    zeros = np.zeros_like(draws[:, :2])
    shear = zeros + [1.0, 0.0] * (draws[:, 2:] * settings.shear)
    matrices = ops.affine_matrices(draws[:, 0] * settings.rotate, zeros, 1 + draws[:, 1] * settings.scale, shear, zeros)
    return ops.affine(images, matrices, fill=settings.fill)


def color_jitter(images: Tensor, keys: Keys, brightness: float, contrast: float, saturation: float) -> Tensor:
    """Brightness, then contrast, then saturation by random factors, in one pass that rounds and clamps once at the end.

    All three are linear in a pixel, its gray and the mean gray of the picture, so they are applied together.
    """
    draws = uniform(keys, "color jitter", 3) * 2 - 1
    b, c, s = (1 + draws * [brightness, contrast, saturation]).T
    if images.shape[1] != 3:
        s = np.ones_like(s)
    gray = ops.grayscale(images) if contrast or images.shape[1] == 3 else None
    output = images * _column(s * c * b, images)
    if gray is not None:
        if contrast:
            output += gray.mean((1, 2, 3), keepdim=True) * _column((1 - c) * b, images)
        if saturation and images.shape[1] == 3:
            output += gray * _column((1 - s) * c * b, images)
    if not images.is_floating_point():
        output.round_()
    return output.clamp_(0, ops.bound(images)).to(images.dtype)


def _column(values: Floats, images: Tensor) -> Tensor:
    return ops.to_device(values.astype(np.float32), images.device).view(-1, 1, 1, 1)


# Rectangles and mixing -----------------------------------------------------------------------------------------------


class _Boxes(NamedTuple):
    """One box per sample, in pixels, stop excluded; each (B,)."""

    top: NDArray[np.int64]
    bottom: NDArray[np.int64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]

    def mask(self, images: Tensor) -> Tensor:
        """Where the boxes are: (B, 1, H, W) bool."""
        height, width = images.shape[2:]
        y, x = np.arange(height)[None], np.arange(width)[None]
        rows = (y >= self.top[:, None]) & (y < self.bottom[:, None])  # (B, H)
        columns = (x >= self.left[:, None]) & (x < self.right[:, None])  # (B, W)
        return (
            ops.to_device(rows, images.device)[:, None, :, None]
            & ops.to_device(columns, images.device)[:, None, None, :]
        )


def _around(center: Floats, side: Floats, limit: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    start = np.floor(center * limit).astype(np.int64) - np.floor(side / 2).astype(np.int64)
    return np.clip(start, 0, limit), np.clip(start + np.floor(side).astype(np.int64), 0, limit)


def _paint(images: Tensor, boxes: _Boxes) -> Tensor:
    mean = images.mean((2, 3), keepdim=True, dtype=torch.float32).to(images.dtype)  # (B, C, 1, 1)
    return torch.where(boxes.mask(images), mean, images)


def _random_erasing(images: Tensor, keys: Keys, chance: float) -> Tensor:
    draws = uniform(keys, "erase", 5)
    chosen = np.flatnonzero(draws[:, 0] < chance)
    if not len(chosen):
        return images
    height, width = images.shape[2:]
    draws = draws[chosen]
    area = (0.02 + 0.31 * draws[:, 1]) * height * width
    aspect = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * draws[:, 2])
    h = np.clip(np.round(np.sqrt(area * aspect)), 1, height).astype(np.int64)
    w = np.clip(np.round(np.sqrt(area / aspect)), 1, width).astype(np.int64)
    top, left = (draws[:, 3] * (height - h + 1)).astype(np.int64), (draws[:, 4] * (width - w + 1)).astype(np.int64)
    index = ops.to_device(chosen, images.device)
    output = images.clone()
    output.index_copy_(0, index, _paint(images.index_select(0, index), _Boxes(top, top + h, left, left + w)))
    return output


def _cutout(images: Tensor, keys: Keys, share: float) -> Tensor:
    draws = uniform(keys, "cutout", 2)
    height, width = images.shape[2:]
    sides = np.full(len(keys), max(1.0, round(share * min(height, width))))
    return _paint(images, _Boxes(*_around(draws[:, 0], sides, height), *_around(draws[:, 1], sides, width)))


def partners(keys: Keys) -> NDArray[np.int64]:
    """Whom each sample of the global batch is mixed with: (B,), a random cycle, so never oneself if B > 1."""
    order = np.argsort(uniform(keys, "partners")[:, 0], kind="stable")
    chosen = np.empty(len(keys), np.int64)
    chosen[order] = np.roll(order, -1)
    return chosen


def mix(images: Tensor, partners: NDArray[np.int64], keys: Keys, settings: AugmentSettings) -> tuple[Tensor, Tensor]:
    """mixup (Zhang et al., 2017) or CutMix (Yun et al., 2019) of every sample with its partner.

    Args:
        images: (B + extra, C, H, W), augmented already.
        partners: (B,) positions in `images`.
        keys: (B,) or (B + extra,); the first B are used.
        settings: `mixup` and `cutmix` are the alphas, `mix` the share of samples.

    Returns:
        Mixed images (B, C, H, W) of the same type, and lam (B,) float32 on their device: the share of the own picture,
        so that the target is `lam * own + (1 - lam) * partner`.
    """
    size, keys = len(partners), keys[: len(partners)]
    height, width = images.shape[2:]
    draws = uniform(keys, "mix", 5)
    active = draws[:, 0] < settings.mix
    cut = active & (draws[:, 1] < 0.5 if settings.mixup > 0 and settings.cutmix > 0 else settings.cutmix > 0)
    lam = np.ones(size)
    for alpha, chosen in ((settings.mixup, active & ~cut), (settings.cutmix, cut)):
        if alpha > 0 and chosen.any():
            lam[chosen] = _beta(draws[chosen, 2], alpha)
    side = np.sqrt(1 - lam)
    boxes = _Boxes(*_around(draws[:, 3], side * height, height), *_around(draws[:, 4], side * width, width))
    covered = (boxes.bottom - boxes.top) * (boxes.right - boxes.left) / (height * width)
    lam = np.where(cut, 1 - covered, lam)
    own, other = images[:size], images.index_select(0, ops.to_device(partners, images.device))
    share = ops.to_device(lam.astype(np.float32), images.device)  # (B,)
    if cut.all():
        return torch.where(boxes.mask(images), other, own), share
    weight = share.view(-1, 1, 1, 1)
    if cut.any():
        is_cut = ops.to_device(cut, images.device).view(-1, 1, 1, 1)
        weight = torch.where(is_cut, (~boxes.mask(images)).float(), weight)  # (B, 1, H, W)
    mixed = torch.lerp(other.float(), own.float(), weight)
    return (mixed if images.is_floating_point() else mixed.round_()).to(images.dtype), share


def _beta(draws: Floats, alpha: float) -> Floats:
    """Beta(alpha, alpha) numbers from uniform ones, by the inverse of the distribution function."""
    if alpha == 1:
        return draws
    from scipy.special import betaincinv  # slow to import, and only mixing needs it

    return np.asarray(betaincinv(alpha, alpha, draws), np.float64)
