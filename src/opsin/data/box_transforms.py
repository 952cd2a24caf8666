"""Training views and random augmentation of pictures with boxes and points; every number comes from the sample's key.

Two stages, as for classes (`opsin.data.transforms`):

* one picture while it is prepared: `fit` and `training_view` bring it to the model's size with one resampling;
* a batch of pictures of one size: `augment`, made of `mosaic`, `copy_paste`, `mixup`, `flip_horizontal`, `flip_vertical`,
  colour jitter and `multi_scale`.

Boxes are continuous (the left edge of pixel i is i) and stay on the host as `Objects`; pixels are touched on the device
of the pictures. A box that a cut leaves too little of is dropped, a point that falls outside becomes unlabeled; both are
counted in `Dropped`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from opsin.data import transforms
from opsin.data.objects import Objects
from opsin.data.resize import Size, resize
from opsin.errors import ShapeError, UnknownName
from opsin.metrics.boxes import intersection, iou, pairwise
from opsin.recipe import Settings
from opsin.seeding import Keys, derive, uniform, uniform_one
from opsin.task import Geometry

How = Literal["letterbox", "stretch"]
GRAY = 114.0
"""Background of uint8 pictures; about the mean of photos."""
OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0)
"""SSD's choices: least IoU of the crop with an object; None is any crop, 1 the whole picture."""
_TRIES = 50
_PASTE_TRIES = 8
_EXACT = 1e-6  # rounding errors below this do not take one more pixel


class DetectAugment(Settings):
    """Which random changes a training picture with boxes gets; everything is off by default."""

    view: Literal["zoom", "ssd"] = "zoom"
    """`zoom`: one factor for the whole picture, then shifted (large-scale jitter); `ssd`: expand and crops of least IoU."""
    zoom: tuple[float, float] = (1.0, 1.0)
    """For `zoom`: least and greatest factor, drawn evenly on a logarithmic scale; below 1 is smaller on a background."""
    aspect: float = Field(default=1.0, ge=1)
    """For `zoom`: width over height changes by up to this factor either way."""
    shift: float = Field(default=0.0, ge=0, le=1)
    """For `zoom`: share of the free way that the picture is moved; 1 puts it anywhere, 0 in the middle."""
    expand: float = Field(default=4.0, ge=1)
    """For `ssd`: half of the pictures are put on a background with sides up to so many times theirs."""
    crop: tuple[float, float] = (0.3, 1.0)
    """For `ssd`: sides of a crop as shares of the picture's."""
    flip_horizontal: float = Field(default=0.0, ge=0, le=1)
    """Chance of mirroring left to right; wrong for letters and left/right classes."""
    flip_vertical: float = Field(default=0.0, ge=0, le=1)
    """Chance of mirroring top to bottom (cells, satellites)."""
    color: float = Field(default=1.0, ge=0, le=1)
    """Chance that a picture's colors change; by how much is said by brightness, contrast and saturation."""
    brightness: float = Field(default=0.0, ge=0, le=1)
    """Multiply values by a factor in 1 +- this."""
    contrast: float = Field(default=0.0, ge=0, le=1)
    """Move values from or to the mean gray by a factor in 1 +- this."""
    saturation: float = Field(default=0.0, ge=0, le=1)
    """Move colors from or to gray by a factor in 1 +- this."""
    mosaic: float = Field(default=0.0, ge=0, le=1)
    """Chance of putting the picture together with three others around a random center."""
    mosaic_zoom: tuple[float, float] = (0.5, 1.0)
    """Least and greatest factor of each of the four pictures."""
    copy_paste: float = Field(default=0.0, ge=0, le=1)
    """Chance of pasting objects of another picture where they hide none."""
    paste_most: int = Field(default=5, ge=1)
    """Most objects that are pasted into a picture."""
    mixup: float = Field(default=0.0, ge=0, le=1)
    """Chance of laying another picture over this one, with the objects of both."""
    mixup_alpha: float = Field(default=8.0, gt=0)
    """Both shares are drawn from Beta(alpha, alpha); 8 gives mostly 0.3 to 0.7."""
    mix_until: float = Field(default=1.0, ge=0, le=1)
    """Share of the training with mosaic, copy_paste and mixup; its last epochs see pictures as they are."""
    multi_scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest factor of the batch's size, rounded to the network's stride; drawn anew for every batch."""
    keep_share: float = Field(default=0.25, ge=0, le=1)
    """A box of which a cut leaves a smaller share of its area is dropped."""
    keep_side: float = Field(default=2.0, ge=0)
    """A box with a shorter side, in pixels of the model's input, is dropped."""

    @property
    def views(self) -> bool:
        """Whether the view of a picture is random, so that it cannot be prepared once for all epochs."""
        return self.view == "ssd" or self.zoom != (1.0, 1.0) or self.aspect != 1.0 or self.shift > 0

    @property
    def partners(self) -> int:
        """How many other pictures of the global batch a sample may need: 0, 1 or 3."""
        return 3 if self.mosaic else int(bool(self.copy_paste or self.mixup))


def preset(name: str, *, flip: bool = True) -> DetectAugment:
    """The augmentation behind `--augment` for boxes.

    Args:
        name: `plain` (none beyond resizing), `standard` or `strong`.
        flip: mirrored pictures keep their classes; False for letters, left/right classes and points without `swaps`.

    Raises:
        UnknownName: if there is no such preset.
    """
    mirrored = 0.5 if flip else 0.0
    if name == "plain":
        return DetectAugment()
    color = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
    if name == "standard":
        return DetectAugment(zoom=(0.7, 1.6), aspect=1.15, shift=1.0, flip_horizontal=mirrored, **color)
    if name == "strong":
        return DetectAugment(
            zoom=(0.6, 2.0), aspect=1.25, shift=1.0, flip_horizontal=mirrored, **(dict.fromkeys(color, 0.4)),
            mosaic=0.5, copy_paste=0.2, mixup=0.1, mix_until=0.9, multi_scale=(0.75, 1.25),
        )  # fmt: skip
    raise UnknownName("augmentation", name, ("plain", "standard", "strong"))


class Dropped(NamedTuple):
    """What a cut took away: objects of which too little was left, and labeled points that fell outside."""

    objects: int = 0
    points: int = 0

    def plus(self, other: Dropped) -> Dropped:
        """Both together."""
        return Dropped(self.objects + other.objects, self.points + other.points)


# Objects alone --------------------------------------------------------------------------------------------------------


def move(objects: Objects, scale: tuple[float, float], offset: tuple[float, float]) -> Objects:
    """Objects at `scale * (x, y) + offset`; areas grow with the scale, unlabeled points stay as they are."""
    factor, way = np.array([*scale, *scale]), np.array([*offset, *offset])
    points = objects.points.copy()
    labeled = points[..., 2] > 0
    points[labeled, :2] = points[labeled, :2] * factor[:2] + way[:2]
    area = objects.area * (scale[0] * scale[1])
    return replace(objects, boxes_xyxy=objects.boxes_xyxy * factor + way, points=points, area=area)


def to_input(objects: Objects, geometry: Geometry) -> Objects:
    """Objects of the original in pixels of the model's input, uncut; the way back is `geometry` itself."""
    scale = (1 / geometry.scale[0], 1 / geometry.scale[1])
    return move(objects, scale, (-geometry.offset[0] * scale[0], -geometry.offset[1] * scale[1]))


def clip(
    objects: Objects, window: tuple[float, float, float, float], keep_share: float = 0.25, keep_side: float = 2.0
) -> tuple[Objects, Dropped]:
    """Cut boxes off at a window (x1, y1, x2, y2); drop those of which too little is left, unlabel points outside.

    Args:
        objects: M objects.
        window: in the same coordinates.
        keep_share: least share of a box's area that must be inside.
        keep_side: least width and height of what is left, in pixels.
    """
    low, high = np.array(window[:2] * 2), np.array(window[2:] * 2)
    boxes = np.clip(objects.boxes_xyxy, low, high)
    sides = boxes[:, 2:] - boxes[:, :2]  # (M, 2)
    before = np.prod(objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2], axis=1)
    share = np.prod(sides, axis=1) / np.maximum(before, 1e-12)
    kept = (share >= keep_share - 1e-9) & (sides.min(1, initial=np.inf) >= max(keep_side, 1e-6) - 1e-9)
    points = objects.points.copy()
    places = points[..., :2]
    outside = (points[..., 2] > 0) & ((places < low[:2]) | (places > high[:2])).any(-1)  # (M, K)
    points[outside] = 0
    cut = replace(objects, boxes_xyxy=boxes, points=points, area=objects.area * np.minimum(share, 1.0))
    return cut.take(kept), Dropped(int((~kept).sum()), int(outside[kept].sum()))


def join(parts: Sequence[Objects]) -> Objects:
    """Objects of several pictures as those of one."""
    names = ("boxes_xyxy", "labels", "crowd", "difficult", "area", "points")
    return Objects(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def _mirrored(objects: Objects, side: float, axis: int, swaps: Sequence[int]) -> Objects:
    boxes, points = objects.boxes_xyxy.copy(), objects.points.copy()
    boxes[:, axis], boxes[:, axis + 2] = side - objects.boxes_xyxy[:, axis + 2], side - objects.boxes_xyxy[:, axis]
    points[..., axis] = np.where(points[..., 2] > 0, side - points[..., axis], points[..., axis])
    if len(swaps) and points.shape[1]:
        points = points[:, np.asarray(swaps, np.int64)]
    return replace(objects, boxes_xyxy=boxes, points=points)


# One picture ----------------------------------------------------------------------------------------------------------


class _Placed(NamedTuple):
    """A rectangle of a picture and where it is put, all in whole pixels: (top, left, height, width) each."""

    source: tuple[int, int, int, int]
    target: tuple[int, int, int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the source per pixel of the target, x and y."""
        return self.source[3] / self.target[3], self.source[2] / self.target[2]

    @property
    def offset(self) -> tuple[float, float]:
        """What is at the target's origin, x and y."""
        x, y = self.scale
        return self.source[1] - self.target[1] * x, self.source[0] - self.target[0] * y

    @property
    def window(self) -> tuple[float, float, float, float]:
        """The target as (x1, y1, x2, y2)."""
        top, left, height, width = self.target
        return float(left), float(top), float(left + width), float(top + height)

    def carry(self, objects: Objects, share: float, side: float) -> tuple[Objects, Dropped]:
        """Objects of the source in pixels of the target, cut off at its edges."""
        x, y = self.scale
        moved = move(objects, (1 / x, 1 / y), (-self.offset[0] / x, -self.offset[1] / y))
        return clip(moved, self.window, share, side)

    def paint(self, canvas: Tensor, image: Tensor) -> None:
        """Put the resized source into the canvas (C, H, W)."""
        (top, left, height, width), (y, x, h, w) = self.source, self.target
        part = image[:, top : top + height, left : left + width]
        canvas[:, y : y + h, x : x + w] = resize(part, (h, w))[0]


def _along(scale: float, offset: float, low: float, high: float, side: int, room: int) -> tuple[int, int, int, int]:
    """One axis of a placement: start and length in the source, start and length in the target.

    Source pixel p goes to `scale * p + offset`; what shows is [low, high] of the source, of `side` pixels, in a target of
    `room` pixels. A pixel that shows in part is taken whole, so that no seam is left at the target's edge.
    """
    first = min(max(0, math.floor(max(low, -offset / scale) + _EXACT)), side - 1)
    last = min(max(first + 1, math.ceil(min(high, (room - offset) / scale) - _EXACT)), side)
    start = min(max(0, round(scale * first + offset)), room - 1)
    stop = min(max(start + 1, round(scale * last + offset)), room)
    return first, last - first, start, stop - start


def _place(
    shape: Size,
    size: Size,
    scale: tuple[float, float],
    offset: tuple[float, float],
    window: tuple[float, float, float, float] | None = None,
) -> _Placed:
    """Whole pixels for the map `scale * (x, y) + offset` from a picture (H, W) to a canvas, seen through a window of it."""
    x1, y1, x2, y2 = window or (0.0, 0.0, float(shape[1]), float(shape[0]))
    left, width, x, w = _along(scale[0], offset[0], x1, x2, shape[1], size[1])
    top, height, y, h = _along(scale[1], offset[1], y1, y2, shape[0], size[0])
    return _Placed((top, left, height, width), (y, x, h, w))


def _canvas(image: Tensor, size: Size, fill: float) -> Tensor:
    """An empty picture (C, H, W) in the memory layout of another."""
    if image.shape[0] > 1 and image.stride(0) == 1:
        return image.new_full((*size, image.shape[0]), fill).permute(2, 0, 1)
    return image.new_full((image.shape[0], *size), fill)


def _drawn(image: Tensor, placed: _Placed, size: Size, fill: float) -> tuple[Tensor, Geometry]:
    geometry = Geometry((image.shape[1], image.shape[2]), size, placed.scale, placed.offset)
    if placed.target == (0, 0, *size):
        top, left, height, width = placed.source
        return resize(image[:, top : top + height, left : left + width], size)[0], geometry
    canvas = _canvas(image, size, fill)
    placed.paint(canvas, image)
    return canvas, geometry


def _fitting(shape: tuple[float, float], size: Size, how: How) -> tuple[float, float]:
    """Scale (x, y) that brings (H, W) to a size."""
    x, y = size[1] / shape[1], size[0] / shape[0]
    return (x, y) if how == "stretch" else (min(x, y), min(x, y))


def _checked(image: Tensor, size: Size, how: str) -> None:
    if image.ndim != 3 or min(size) < 1 or min(image.shape[1:]) < 1:
        raise ShapeError(f"Expected an image (C, H, W) and a positive size, got {tuple(image.shape)} and {size}.")
    if how not in ("letterbox", "stretch"):
        raise UnknownName("way to fit a picture", how, ("letterbox", "stretch"))


def fit(image: Tensor, size: Size, how: How = "letterbox", fill: float = GRAY) -> tuple[Tensor, Geometry]:
    """Bring a picture to exactly (H, W) for prediction.

    Args:
        image: (C, H, W).
        size: (H, W) of the result.
        how: `letterbox` keeps proportions and leaves background at the right and the bottom, so that the offset is 0;
            `stretch` does not.
        fill: background, in the values of the image.

    Raises:
        ShapeError: if the image is not (C, H, W) or the size is not positive.
        UnknownName: if there is no such way to fit.
    """
    _checked(image, size, how)
    shape = (image.shape[1], image.shape[2])
    return _drawn(image, _place(shape, size, _fitting(shape, size, how), (0.0, 0.0)), size, fill)


class View(NamedTuple):
    """A training picture with what is in it, both in pixels of the model's input."""

    image: Tensor  # (C, H, W)
    objects: Objects
    geometry: Geometry
    dropped: Dropped


def training_view(
    image: Tensor,
    objects: Objects,
    key: int,
    size: Size,
    settings: DetectAugment,
    how: How = "letterbox",
    fill: float = GRAY,
) -> View:
    """A random view of a picture at the model's size, with one resampling from the original.

    Args:
        image: (C, H, W).
        objects: in pixels of the image; not changed.
        key: the sample's key; with the size of the picture (for `ssd` also its boxes) it alone decides.
        size: (H, W) of the result.
        settings: `view` and what belongs to it.
        how: proportions are kept (`letterbox`) or not (`stretch`).
        fill: background, in the values of the image.

    Raises:
        ShapeError: if the image is not (C, H, W) or the size is not positive.
        UnknownName: if there is no such way to fit.
    """
    _checked(image, size, how)
    shape = (image.shape[1], image.shape[2])
    if settings.view == "ssd":
        window = _ssd_window(objects.boxes_xyxy, key, shape, settings)
        scale = _fitting((window[3] - window[1], window[2] - window[0]), size, how)
        placed = _place(shape, size, scale, (-window[0] * scale[0], -window[1] * scale[1]), window)
        middles = (objects.boxes_xyxy[:, :2] + objects.boxes_xyxy[:, 2:]) / 2
        inside = np.asarray(((middles >= window[:2]) & (middles <= window[2:])).all(axis=1), np.bool_)
        found, dropped = placed.carry(objects.take(inside), 0.0, settings.keep_side)
        dropped = dropped.plus(Dropped(int((~inside).sum())))
    else:
        placed = _place(shape, size, *_zoomed(key, shape, size, settings, how))
        found, dropped = placed.carry(objects, settings.keep_share, settings.keep_side)
    picture, geometry = _drawn(image, placed, size, fill)
    return View(picture, found, geometry, dropped)


def _zoomed(
    key: int, shape: Size, size: Size, settings: DetectAugment, how: How
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Scale and offset (x, y each) of a large-scale jitter (Ghiasi et al., "Simple Copy-Paste", 2021, section 3)."""
    draws = uniform_one(key, "zoom")
    low, high = settings.zoom
    factor = math.exp(math.log(low) + (math.log(high) - math.log(low)) * next(draws))
    stretch = math.exp(math.log(settings.aspect) * (next(draws) - 0.5))
    base = _fitting(shape, size, how)
    scale = (base[0] * factor * stretch, base[1] * factor / stretch)
    places = []
    for one, side, room in zip(scale, (shape[1], shape[0]), (size[1], size[0])):
        where = 0.5 + (next(draws) - 0.5) * settings.shift
        places.append((room - one * side) * where)
    if not settings.views:
        places = [0.0, 0.0]  # as `fit`
    return scale, (places[0], places[1])


def _ssd_window(
    boxes: NDArray[np.float64], key: int, shape: Size, settings: DetectAugment
) -> tuple[float, float, float, float]:
    """What SSD shows of a picture (Liu et al., 2016, sections 2.2 and 3.6): (x1, y1, x2, y2), maybe outside of it."""
    draws = uniform_one(key, "ssd")
    height, width = float(shape[0]), float(shape[1])
    window = (0.0, 0.0, width, height)
    if next(draws) < 0.5:
        factor = 1 + next(draws) * (settings.expand - 1)
        x, y = next(draws) * width * (factor - 1), next(draws) * height * (factor - 1)
        window = (-x, -y, factor * width - x, factor * height - y)
    for _ in range(_TRIES):
        least = OVERLAPS[int(next(draws) * len(OVERLAPS))]
        if least == 1.0:
            return window
        for _ in range(_TRIES):
            found = _ssd_crop(window, [next(draws) for _ in range(4)], settings.crop)
            if found is None:
                continue
            middles = (boxes[:, :2] + boxes[:, 2:]) / 2
            inside = ((middles > found[:2]) & (middles < found[2:])).all(1)
            if len(boxes) and not inside.any():
                continue
            crop = np.array([found])
            if least is None or not len(boxes) or pairwise(iou, crop, boxes[inside]).max() >= least:
                return found
    return window


def _ssd_crop(
    window: tuple[float, float, float, float], draws: Sequence[float], sides: tuple[float, float]
) -> tuple[float, float, float, float] | None:
    shares = [sides[0] + (sides[1] - sides[0]) * draw for draw in draws[:2]]
    whole = (window[2] - window[0], window[3] - window[1])
    w, h = shares[0] * whole[0], shares[1] * whole[1]
    if not 0.5 <= w / h <= 2:
        return None
    left, top = window[0] + draws[2] * (whole[0] - w), window[1] + draws[3] * (whole[1] - h)
    return (left, top, left + w, top + h)


# A batch --------------------------------------------------------------------------------------------------------------


class Augmented(NamedTuple):
    """A training batch of B pictures of one size with what is in them."""

    images: Tensor  # (B, C, H, W)
    objects: list[Objects]
    dropped: Dropped


def partners(keys: Keys, count: int) -> NDArray[np.int64]:
    """Whom each sample of the global batch is put together with: (B, count) positions, each column a random cycle."""
    columns = [transforms.partners(derive(keys, f"partners {place}")) for place in range(count)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(keys), 0), np.int64)


def augment(
    images: Tensor,
    objects: Sequence[Objects],
    keys: Keys,
    settings: DetectAugment,
    *,
    partners: NDArray[np.int64] | None = None,
    batch_key: int = 0,
    stride: int = 32,
    swaps: Sequence[int] = (),
    fill: float = GRAY,
    done: float = 0.0,
) -> Augmented:
    """Everything random but the view, in this order: mosaic, copy-paste, mixup, flips, colors, multi-scale.

    Args:
        images: (B + extra, C, H, W) uint8, or floats in [0, 1]; on any device; not changed.
        objects: of the B + extra pictures, in their pixels.
        keys: (B + extra,).
        settings: what to do.
        partners: (B, P) positions in `images`, P at least `settings.partners`; without them nothing is put together.
        batch_key: the same for all samples of the global batch, which share the size that `multi_scale` draws.
        stride: sides of the result are multiples of it if `multi_scale` is on.
        swaps: `PointSpec.swaps`.
        fill: background, in the values of the images.
        done: share of the training that is over; from `settings.mix_until` on pictures are not put together.

    Raises:
        ShapeError: if there are not one key and one list of objects for every picture, or too few partners.
    """
    total, count = len(images), len(images) if partners is None else len(partners)
    if images.ndim != 4 or len(keys) < count or len(objects) != total:
        raise ShapeError(
            f"Expected images (B, C, H, W) with a key and objects each, got {tuple(images.shape)}, {len(keys)} keys and "
            f"{len(objects)} lists of objects."
        )
    own, found, lost = images[:count], list(objects[:count]), Dropped()
    if partners is not None and settings.partners and done < settings.mix_until:
        if partners.ndim != 2 or partners.shape[1] < settings.partners:
            raise ShapeError(f"Expected partners (B, {settings.partners}), got {partners.shape}.")
        if settings.mosaic:
            own, found, lost = mosaic(images, objects, partners[:, :3], keys, settings, fill)
        if settings.copy_paste:
            own, found = copy_paste(own, found, images, objects, partners[:, 0], keys, settings)
        if settings.mixup:
            own, found = mixup(own, found, images, objects, partners[:, 0], keys, settings)
    keys = keys[:count]
    if settings.flip_horizontal:
        own, found = flip_horizontal(own, found, keys, settings.flip_horizontal, swaps)
    if settings.flip_vertical:
        own, found = flip_vertical(own, found, keys, settings.flip_vertical)
    if settings.brightness or settings.contrast or settings.saturation:
        own = _recolored(own, keys, settings)
    if settings.multi_scale != (1.0, 1.0):
        own, found = multi_scale(own, found, batch_key, settings.multi_scale, stride)
    return Augmented(own, found, lost)


def _chosen(keys: Keys, purpose: str, chance: float) -> NDArray[np.int64]:
    """Positions of the samples to which something of this chance happens."""
    return np.flatnonzero(uniform(keys, purpose)[:, 0] < chance)


def _index(positions: NDArray[np.int64], images: Tensor) -> Tensor:
    return torch.from_numpy(positions).to(images.device, non_blocking=True)


def flip_horizontal(
    images: Tensor, objects: Sequence[Objects], keys: Keys, chance: float = 0.5, swaps: Sequence[int] = ()
) -> tuple[Tensor, list[Objects]]:
    """Mirror samples left to right, with `chance` each: x becomes W - x, and points change places with their twins.

    Args:
        images: (B, C, H, W).
        objects: of the B pictures.
        keys: (B,).
        chance: of every sample.
        swaps: (K,) where each point goes (`PointSpec.swaps`); empty if none has a twin.
    """
    return _flipped(images, objects, _chosen(keys, "flip horizontal", chance), 0, swaps)


def flip_vertical(
    images: Tensor, objects: Sequence[Objects], keys: Keys, chance: float = 0.5
) -> tuple[Tensor, list[Objects]]:
    """Mirror samples top to bottom, with `chance` each: y becomes H - y; points keep their names."""
    return _flipped(images, objects, _chosen(keys, "flip vertical", chance), 1, ())


def _flipped(
    images: Tensor, objects: Sequence[Objects], chosen: NDArray[np.int64], axis: int, swaps: Sequence[int]
) -> tuple[Tensor, list[Objects]]:
    found = list(objects)
    if not len(chosen):
        return images, found
    index, side = _index(chosen, images), float(images.shape[3 - axis])
    flipped = images.clone().index_copy_(0, index, images.index_select(0, index).flip(3 - axis))
    for i in chosen.tolist():
        found[i] = _mirrored(found[i], side, axis, swaps)
    return flipped, found


def _recolored(images: Tensor, keys: Keys, settings: DetectAugment) -> Tensor:
    chosen = _chosen(keys, "recolor", settings.color)
    strengths = settings.brightness, settings.contrast, settings.saturation
    if len(chosen) == len(images):
        return transforms.color_jitter(images, keys, *strengths)
    if not len(chosen):
        return images
    index = _index(chosen, images)
    changed = transforms.color_jitter(images.index_select(0, index), keys[chosen], *strengths)
    return images.clone().index_copy_(0, index, changed)


def mosaic(
    images: Tensor,
    objects: Sequence[Objects],
    partners: NDArray[np.int64],
    keys: Keys,
    settings: DetectAugment,
    fill: float = GRAY,
) -> tuple[Tensor, list[Objects], Dropped]:
    """Four pictures around a random center (Bochkovskiy et al., "YOLOv4", 2020), each zoomed and cut on its own.

    The sample itself and its three partners take the corners in a random order. A picture that is larger than its corner
    is cut at random, a smaller one lies at random on the background.

    Args:
        images: (B + extra, C, H, W).
        objects: of the B + extra pictures.
        partners: (B, 3) positions in `images`.
        keys: (B,) or more; the first B are used.
        settings: `mosaic`, `mosaic_zoom`, `keep_share`, `keep_side`.
        fill: background, in the values of the images.

    Returns:
        The own pictures (B, C, H, W), their objects, and what was dropped.
    """
    count = len(partners)
    height, width = int(images.shape[2]), int(images.shape[3])
    output, found, lost = images[:count].clone(), list(objects[:count]), Dropped()
    draws = uniform(keys[:count], "mosaic draws", 18)
    for i in _chosen(keys[:count], "mosaic", settings.mosaic).tolist():
        row = draws[i]
        x, y = (int(side * (0.25 + 0.5 * draw)) for side, draw in ((width, row[0]), (height, row[1])))
        x, y = min(max(x, 1), max(width - 1, 1)), min(max(y, 1), max(height - 1, 1))
        corners = ((0, 0, y, x), (0, x, y, width - x), (y, 0, height - y, x), (y, x, height - y, width - x))
        members = np.array([i, *partners[i]])[np.argsort(row[2:6], kind="stable")]
        parts = []
        canvas = torch.full_like(output[i], fill)
        for k, (top, left, h, w) in enumerate(corners):
            if h < 1 or w < 1:
                continue  # a picture of one pixel has no four corners
            zoom = settings.mosaic_zoom[0] + (settings.mosaic_zoom[1] - settings.mosaic_zoom[0]) * row[6 + k]
            offset = (w - zoom * width) * row[10 + k], (h - zoom * height) * row[14 + k]
            placed = _place((height, width), (h, w), (zoom, zoom), offset)
            placed.paint(canvas[:, top : top + h, left : left + w], images[members[k]])
            part, dropped = placed.carry(objects[members[k]], settings.keep_share, settings.keep_side)
            parts.append(move(part, (1.0, 1.0), (float(left), float(top))))
            lost = lost.plus(dropped)
        output[i], found[i] = canvas, join(parts)
    return output, found, lost


def copy_paste(
    images: Tensor,
    objects: Sequence[Objects],
    others: Tensor,
    other_objects: Sequence[Objects],
    partners: NDArray[np.int64],
    keys: Keys,
    settings: DetectAugment,
) -> tuple[Tensor, list[Objects]]:
    """Paste objects of a partner's picture at random places (after Ghiasi et al., 2021), as boxes with soft edges.

    An object is pasted at its own size, with a rim of a tenth of its sides that fades out, and only where neither it nor
    its rim meets an object; after eight tries in vain it is left out. Crowds are not pasted.

    Args:
        images: (B, C, H, W).
        objects: of these pictures.
        others: (B + extra, C, H, W), where the partners are.
        other_objects: of those pictures.
        partners: (B,) positions in `others`.
        keys: (B,) or more; the first B are used.
        settings: `copy_paste` and `paste_most`.
    """
    output, found = images.clone(), list(objects)
    for i in _chosen(keys[: len(images)], "copy-paste", settings.copy_paste).tolist():
        given = other_objects[partners[i]]
        source = others[partners[i]]
        draws = uniform_one(int(keys[i]), "copy-paste draws")
        order = np.argsort([next(draws) for _ in range(len(given))], kind="stable")
        usable = order[~given.crowd[order]][: 1 + int(next(draws) * settings.paste_most)]
        for k in usable.tolist():
            one = given.take(np.array([k]))
            spot = _free_spot(one.boxes_xyxy[0], found[i].boxes_xyxy, (images.shape[2], images.shape[3]), draws)
            if spot is not None:
                _paste(output[i], source, one.boxes_xyxy[0], spot)
                found[i] = join([found[i], move(one, (1.0, 1.0), (float(spot[0]), float(spot[1])))])
    return output, found


def _rim(box: NDArray[np.float64]) -> tuple[int, int]:
    return max(1, round((box[2] - box[0]) / 10)), max(1, round((box[3] - box[1]) / 10))


def _free_spot(
    box: NDArray[np.float64], taken: NDArray[np.float64], size: Size, draws: Iterator[float]
) -> tuple[int, int] | None:
    """Whole pixels (x, y) by which a box can be moved so that it lies inside and its rim meets no taken box."""
    rim = _rim(box)
    height, width = size
    for _ in range(_PASTE_TRIES):
        x = _whole_shift(next(draws), box[0], box[2], width)
        y = _whole_shift(next(draws), box[1], box[3], height)
        way = np.array([x - rim[0] - 1, y - rim[1] - 1, x + rim[0] + 1, y + rim[1] + 1])
        if not intersection(box + way, taken).any():
            return x, y
    return None


def _whole_shift(draw: float, low: float, high: float, side: int) -> int:
    least, most = -math.floor(low), side - math.ceil(high)
    return least + int(draw * (most - least + 1))


def _paste(canvas: Tensor, source: Tensor, box: NDArray[np.float64], shift: tuple[int, int]) -> None:
    """Blend a box of the source with its rim into the canvas (C, H, W), moved by whole pixels."""
    (rim_x, rim_y), (height, width) = _rim(box), canvas.shape[1:]
    spans = []
    for low, high, rim, way, side in (
        (box[1], box[3], rim_y, shift[1], height),
        (box[0], box[2], rim_x, shift[0], width),
    ):
        first, last = math.floor(low), math.ceil(high)
        start, stop = max(first - rim, 0, -way), min(last + rim, side, side - way)
        places = np.arange(start, stop)
        away = np.maximum(np.maximum(first - places, places - (last - 1)), 0)  # pixels outside of the box
        spans.append((start, stop, 1 - away / (rim + 1), way))
    (top, bottom, rows, down), (left, right, columns, over) = spans
    weight = torch.from_numpy(np.outer(rows, columns).astype(np.float32)).to(canvas.device)  # (h, w)
    target = canvas[:, top + down : bottom + down, left + over : right + over]
    mixed = torch.lerp(target.float(), source[:, top:bottom, left:right].float(), weight)
    target.copy_(mixed if canvas.is_floating_point() else mixed.round_())


def mixup(
    images: Tensor,
    objects: Sequence[Objects],
    others: Tensor,
    other_objects: Sequence[Objects],
    partners: NDArray[np.int64],
    keys: Keys,
    settings: DetectAugment,
) -> tuple[Tensor, list[Objects]]:
    """Two pictures on top of each other with the objects of both (Zhang et al., "Bag of Freebies", 2019).

    Args:
        images: (B, C, H, W).
        objects: of these pictures.
        others: (B + extra, C, H, W), where the partners are.
        other_objects: of those pictures.
        partners: (B,) positions in `others`.
        keys: (B,) or more; the first B are used.
        settings: `mixup` and `mixup_alpha`.
    """
    from scipy.special import betaincinv  # slow to import, and only mixing needs it

    keys, found = keys[: len(images)], list(objects)
    chosen = _chosen(keys, "mixup", settings.mixup)
    if not len(chosen):
        return images, found
    share = betaincinv(settings.mixup_alpha, settings.mixup_alpha, uniform(keys, "mixup share")[chosen, 0])
    index = _index(chosen, images)
    weight = torch.from_numpy(share.astype(np.float32)).to(images.device).view(-1, 1, 1, 1)
    own, other = images.index_select(0, index), others.index_select(0, _index(partners[chosen], images))
    mixed = torch.lerp(other.float(), own.float(), weight)
    mixed = mixed if images.is_floating_point() else mixed.round_()
    for i in chosen.tolist():
        found[i] = join([found[i], other_objects[partners[i]]])
    return images.clone().index_copy_(0, index, mixed.to(images.dtype)), found


def multi_scale(
    images: Tensor, objects: Sequence[Objects], batch_key: int, factors: tuple[float, float], stride: int
) -> tuple[Tensor, list[Objects]]:
    """The whole batch at another size, so that a network meets objects of many sizes (Redmon and Farhadi, 2017).

    Args:
        images: (B, C, H, W).
        objects: of these pictures.
        batch_key: decides the size; the same for all parts of a global batch.
        factors: least and greatest factor of the sides.
        stride: both new sides are multiples of it; every multiple of the shorter side between the factors is as likely.
    """
    height, width = int(images.shape[2]), int(images.shape[3])
    short = min(height, width)
    low, high = (max(1, round(short * factor / stride)) for factor in factors)
    steps = low + int(next(uniform_one(batch_key, "multi-scale")) * (high - low + 1))
    size = (
        max(1, round(height * steps / short)) * stride,
        max(1, round(width * steps / short)) * stride,
    )
    if size == (height, width):
        return images, list(objects)
    resized = torch.stack([resize(image, size)[0] for image in images])
    scale = (size[1] / width, size[0] / height)
    return resized, [move(one, scale, (0.0, 0.0)) for one in objects]
