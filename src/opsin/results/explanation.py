"""The result of explaining one picture: a map over its pixels, drawn over it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from opsin.errors import ShapeError

# Anchors in OKLab (lightness, green-red, blue-yellow): lightness rises in equal steps, so that equal differences of the
# values look equally large, also in gray and to people who see no red or green.
_SEQUENTIAL = ((0.20, 0.02, -0.10), (0.40, 0.14, -0.08), (0.60, 0.17, 0.07), (0.80, 0.04, 0.14), (0.97, -0.02, 0.09))
_NEGATIVE, _POSITIVE = (0.55, -0.04, -0.18), (0.55, 0.19, 0.10)  # equally light; between them lies the gray picture
_BAND, _TEXT = "#111827", "#f9fafb"
_SMALLEST = 256  # pixels of the shorter side as drawn; smaller pictures are enlarged without smoothing
CLIP = 0.995  # share of the pixels that the scale reaches; single pixels stand far above all others in some methods


@dataclass(frozen=True)
class Region:
    """A connected part of the map: `box_xyxy` in pixels of the original, its share of all positive values in [0, 1]."""

    box_xyxy: tuple[int, int, int, int]
    share: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"box_xyxy": list(self.box_xyxy), "share": round(self.share, 4)}


@dataclass(frozen=True)
class Explanation:
    """Why a model gave a class its score.

    Args:
        id: of the picture.
        method: that made the map.
        head: which question of the model.
        class_name: whose score is explained.
        score: that was explained, before softmax or sigmoid.
        probability: the same as the model's answer says it, in [0, 1].
        map: (H, W) float32 over the original picture; larger speaks more for the class.
        signed: whether values below 0 speak against it; without, all are 0 or more.
        seen_xyxy: the part that the model saw, in pixels of the original; outside the map is 0.
        details: how the method was set, and what it says of its own accuracy.

    Raises:
        ShapeError: if the map is not (H, W) float32, finite, and as signed as said.
    """

    id: str
    method: str
    head: str
    class_name: str
    score: float
    probability: float
    map: NDArray[np.float32]
    signed: bool
    seen_xyxy: tuple[float, float, float, float]
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.map.ndim != 2 or self.map.dtype != np.float32 or self.map.size == 0:
            raise ShapeError(f"{self.id}: the map is {self.map.shape} {self.map.dtype}; expected (H, W) float32.")
        if not np.isfinite(self.map).all():
            raise ShapeError(f"{self.id}: the map of {self.method} is not finite; are the model's scores?")
        if not self.signed and bool((self.map < 0).any()):
            raise ShapeError(f"{self.id}: the map of {self.method} has values below 0, but is said to have none.")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the original picture."""
        return self.map.shape[0], self.map.shape[1]

    def regions(self, most: int = 3, threshold: float = 0.5) -> list[Region]:
        """The parts that speak most for the class, by their share of all that does.

        Args:
            most: how many.
            threshold: a region is where the map is above this share of its (clipped) largest value, in (0, 1).
        """
        from scipy import ndimage

        values = np.clip(self.map, 0, None)
        limit, total = _top(values), float(values.sum(dtype=np.float64))
        if limit == 0 or total == 0:
            return []
        labels, count = ndimage.label(values > threshold * limit)
        shares = ndimage.sum_labels(values, labels, np.arange(1, count + 1)) / total
        boxes = ndimage.find_objects(labels)
        order = np.argsort(-shares, kind="stable")[:most]
        return [
            Region((boxes[i][1].start, boxes[i][0].start, boxes[i][1].stop, boxes[i][0].stop), float(shares[i]))
            for i in order
        ]

    def to_dict(self, *, with_map: bool = False) -> dict[str, Any]:
        """Plain values for JSON; the map, a number for each pixel, only if it is asked for."""
        values = {
            "id": self.id,
            "method": self.method,
            "head": self.head,
            "class": self.class_name,
            "score": round(self.score, 6),
            "probability": round(self.probability, 6),
            "size": list(self.size),
            "seen_xyxy": [round(value, 2) for value in self.seen_xyxy],
            "signed": self.signed,
            "range": [float(self.map.min()), float(self.map.max())],
            "regions": [region.to_dict() for region in self.regions()],
            "details": self.details,
        }
        return {**values, "map": self.map.tolist()} if with_map else values

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture, and beside it the map in color over the picture in gray, with its scale below.

        Args:
            image: the original picture, turned as EXIF says.

        Raises:
            ShapeError: if it has another size than the map.
        """
        if (image.height, image.width) != self.size:
            raise ShapeError(
                f"{self.id}: the picture is {image.height} x {image.width}, the map {self.size[0]} x {self.size[1]}."
            )
        picture = _eight_bit(image)
        factor = max(1, -(-_SMALLEST // min(picture.size)))
        overlay = Image.fromarray(self._overlay(np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)))
        if factor > 1:
            wanted = (picture.width * factor, picture.height * factor)
            picture, overlay = (one.resize(wanted, Image.Resampling.NEAREST) for one in (picture, overlay))
        self._mark_seen(overlay, factor)
        gap = max(4, picture.width // 80)
        width = 2 * picture.width + gap
        font_size = max(13, width // 42)
        band = 3 * font_size + 16
        canvas = Image.new("RGB", (width, picture.height + band), _BAND)
        canvas.paste(picture, (0, 0))
        canvas.paste(overlay, (picture.width + gap, 0))
        self._legend(canvas, picture.height + 6, font_size)
        return canvas

    def _overlay(self, gray: NDArray[np.float32]) -> NDArray[np.uint8]:
        """(H, W, 3): the picture in gray; where the model saw it, in the color of the map."""
        limit = _top(np.abs(self.map))
        share = np.clip(self.map / (limit or 1), -1, 1)  # (H, W)
        left, top, right, bottom = (round(side) for side in self.seen_xyxy)
        found = _mixed(np.zeros_like(share), gray, signed=True)
        seen = slice(top, bottom), slice(left, right)
        found[seen] = _mixed(share[seen], gray[seen], self.signed)
        return found

    def _mark_seen(self, overlay: Image.Image, factor: int) -> None:
        box = [round(side * factor) for side in self.seen_xyxy]
        if box != [0, 0, overlay.width, overlay.height]:
            ImageDraw.Draw(overlay).rectangle([box[0], box[1], box[2] - 1, box[3] - 1], outline=_TEXT)

    def _legend(self, canvas: Image.Image, top: int, size: int) -> None:
        draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size=size)
        words = f"{self.method}: {self.class_name}  {self.probability:.1%}"
        while len(words) > 8 and draw.textlength(words, font=font) > canvas.width - 16:
            words = words[:-4] + "..."
        draw.text((8, top), words, fill=_TEXT, font=font)
        limit = _top(np.abs(self.map))
        low, high = (f"{-limit:.2g}" if self.signed else "0"), f"{limit:.2g}"
        y, left = top + size + 8, 8 + round(draw.textlength(low, font=font)) + 6
        right = canvas.width - 8 - round(draw.textlength(high, font=font)) - 6
        draw.text((8, y), low, fill=_TEXT, font=font)
        draw.text((right + 6, y), high, fill=_TEXT, font=font)
        if right > left:
            share = np.linspace(-1.0 if self.signed else 0.0, 1.0, right - left, dtype=np.float32)
            bar = _mixed(np.tile(share, (size, 1)), np.full((size, right - left), 0.5, np.float32), self.signed)
            canvas.paste(Image.fromarray(bar), (left, y + 2))


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB; deep pictures from their darkest to their brightest pixel."""
    if image.mode[0] not in "IF":
        return image.convert("RGB")
    values = np.asarray(image, np.float64)
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")


def _top(values: NDArray[np.float32]) -> float:
    """The value that all but a few of those above 0 stay below; 0 if there is none."""
    above = values[values > 0]
    return float(np.quantile(above, CLIP)) if above.size else 0.0


def _mixed(share: NDArray[np.float32], gray: NDArray[np.float32], signed: bool) -> NDArray[np.uint8]:
    """Colors of values in [-1, 1] over a gray picture (H, W); the larger a value, the less of the picture shows."""
    index = np.rint((share + 1) * 127.5 if signed else share * 255).astype(np.int64)
    color = _colors(signed)[index]  # (H, W, 3)
    strength = np.abs(share)[..., None]
    weight = 0.9 * np.sqrt(strength) if signed else 0.35 + 0.45 * strength
    found = color * weight + (0.15 + 0.7 * gray[..., None]) * (1 - weight)
    return np.rint(np.clip(found, 0, 1) * 255).astype(np.uint8)


@cache
def _colors(signed: bool) -> NDArray[np.float64]:
    """256 colors (256, 3) in [0, 1]."""
    if signed:
        return _to_rgb(np.repeat(np.array((_NEGATIVE, _POSITIVE)), 128, axis=0))
    anchors = np.array(_SEQUENTIAL)
    place = np.linspace(0, len(anchors) - 1, 256)
    return _to_rgb(np.stack([np.interp(place, np.arange(len(anchors)), part) for part in anchors.T], axis=1))


def _to_rgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """OKLab (N, 3) to sRGB in [0, 1] (Ottosson 2020, https://bottosson.github.io/posts/oklab/)."""
    cones = (
        lab
        @ np.array(
            [
                [1.0, 1.0, 1.0],
                [0.3963377774, -0.1055613458, -0.0894841775],
                [0.2158037573, -0.0638541728, -1.2914855480],
            ]
        )
    ) ** 3
    linear = cones @ np.array(
        [
            [4.0767416621, -1.2684380046, -0.0041960863],
            [-3.3077115913, 2.6097574011, -0.7034186147],
            [0.2309699292, -0.3413193965, 1.7076147010],
        ]
    )
    linear = np.clip(linear, 0, 1)
    found: NDArray[np.float64] = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return found
