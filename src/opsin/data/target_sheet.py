"""A training batch as a picture: what the model is given, with the boxes and points that it must find."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from opsin.data.objects import Objects
from opsin.errors import ShapeError
from opsin.results.detection import COLORS
from opsin.results.sheet import Cell, Row, Sheet

_SIDE, _COLUMNS = 320, 4


def draw_objects(
    picture: Image.Image,
    objects: Objects,
    scale: tuple[float, float] = (1.0, 1.0),
    *,
    class_names: Sequence[str] = (),
    colors: Sequence[str | tuple[int, int, int]] = (),
    skeleton: Sequence[tuple[int, int]] = (),
    least: Sequence[float] = (),
) -> Image.Image:
    """A picture with the boxes of its objects as lines and their labeled points as dots (hidden ones hollow).

    Args:
        picture: any Pillow picture; not changed.
        objects: M of them; the last is drawn on top.
        scale: pixels of the picture per pixel of the objects' coordinates, x and y.
        class_names: written at the boxes if given.
        colors: of each object; by default that of its class.
        skeleton: pairs of points joined by lines.
        least: side of each object's drawn box at least, in pixels of the picture; 0 draws it as it is.
    """
    drawn = picture.convert("RGB")
    pen, font = ImageDraw.Draw(drawn), ImageFont.load_default(size=10)
    for k, (box, label) in enumerate(zip(np.nan_to_num(objects.boxes_xyxy), objects.labels.tolist())):
        color = colors[k] if colors else COLORS[label % len(COLORS)]
        (x1, x2), (y1, y2) = sorted(box[::2] * scale[0]), sorted(box[1::2] * scale[1])
        if least:  # a box of one pixel would not be seen
            grow_x, grow_y = (max(0.0, (least[k] - side) / 2) for side in (x2 - x1, y2 - y1))
            x1, x2, y1, y2 = x1 - grow_x, x2 + grow_x, y1 - grow_y, y2 + grow_y
        pen.rectangle((x1, y1, max(x2 - 1, x1), max(y2 - 1, y1)), outline=color)
        points = objects.points[k] * [*scale, 1.0]
        for a, b in skeleton:
            if points[a, 2] > 0 and points[b, 2] > 0:
                pen.line((*points[a, :2], *points[b, :2]), fill=color)
        for x, y, visibility in points[points[:, 2] > 0]:
            dot = (x - 1, y - 1, x, y) if visibility > 1 else (x - 2, y - 2, x + 1, y + 1)
            pen.rectangle(dot, fill=color if visibility > 1 else None, outline=color)
        if class_names:
            pen.text((x1 + 2, y1 - 11 if y1 >= 11 else y1), class_names[label], fill=color, font=font)
    return drawn


def target_sheet(
    images: Tensor,
    objects: Sequence[Objects],
    class_names: Sequence[str],
    *,
    ids: Sequence[str] = (),
    skeleton: Sequence[tuple[int, int]] = (),
    value_range: tuple[float, float] = (0.0, 255.0),
    most: int = 16,
) -> Sheet:
    """The first pictures of a training batch, as augmented, with what is in them; `save` writes it as PNG.

    Args:
        images: (B, C, H, W), on any device; the first three channels are shown, one channel in gray.
        objects: of the B pictures, in their pixels.
        class_names: of the labels.
        ids: of the samples, for the captions.
        skeleton: pairs of points joined by lines.
        value_range: lowest and highest value of the pixels.
        most: most pictures shown.

    Raises:
        ShapeError: if there are no objects for some picture.
    """
    if images.ndim != 4 or len(objects) != len(images):
        raise ShapeError(
            f"Expected images (B, C, H, W) with objects each, got {tuple(images.shape)} and {len(objects)} of objects."
        )
    low, high = value_range
    shown = images[:most, :3] if images.shape[1] >= 3 else images[:most, :1]
    eight = ((shown.float() - low) * (255 / (high - low))).round().clamp(0, 255).to(torch.uint8).cpu()
    scale = _SIDE / max(images.shape[2:])
    scale = float(int(scale)) if scale >= 1 else scale  # small pictures pixel by pixel
    size = (max(1, round(images.shape[3] * scale)), max(1, round(images.shape[2] * scale)))
    smooth = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BILINEAR
    cells = []
    for k, pixels in enumerate(eight.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else np.ascontiguousarray(pixels))
        ratio = (size[0] / images.shape[3], size[1] / images.shape[2])
        drawn = draw_objects(
            picture.resize(size, smooth), objects[k], ratio, class_names=class_names, skeleton=skeleton
        )
        words = f"{len(objects[k])} object{'s' if len(objects[k]) != 1 else ''}"
        cells.append(Cell(drawn, f"{ids[k]}\n{words}" if ids else words))
    count = sum(len(one) for one in objects)
    note = (
        f"{len(images)} pictures of {images.shape[3]} x {images.shape[2]} as the model gets them, {count} objects in all. "
        "Boxes that do not fit their objects mean wrong labels or a wrong format."
    )
    return Sheet((Row("Training targets", tuple(cells)),), note, _SIDE, _COLUMNS)
