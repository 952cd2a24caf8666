"""Pages with handwritten digits whose boxes are known: real handwriting (1,797 digits that scikit-learn carries, UCI optical
digits, CC BY 4.0), placed at random on drawn paper.

No digit is on pages of two parts, so that a detector cannot learn the test digits by heart.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from opsin.seeding import numpy_generator

SIZE = (192, 192)  # (H, W) of a page
COUNTS = {"train": 400, "val": 60, "test": 100}
SHARES = {"train": 0.7, "val": 0.1, "test": 0.2}
SMALLEST, LARGEST = 14, 40  # pixels of a digit's height
APART = 2  # pixels between digits


def write_pages(folder: Path, counts: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Write pages as a COCO data set with its parts: `train/`, `val/`, `test/` and `annotations/instances_PART.json`.

    Args:
        folder: is made.
        counts: pages of each part.
        seed: of the choice of digits and places.
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    order = numpy_generator(seed, "pages", "digits").permutation(len(data.target))
    cuts = np.split(order, (np.cumsum([SHARES["train"], SHARES["val"]]) * len(order)).astype(int))
    (folder / "annotations").mkdir(parents=True)
    for (part, count), digits in zip((counts or COUNTS).items(), cuts):
        (folder / part).mkdir()
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number in range(1, count + 1):
            page, found = _page(data.images, data.target, digits, numpy_generator(seed, "pages", part, number))
            name = f"page-{number:04d}.png"
            page.save(folder / part / name)
            images.append({"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
            for label, (left, top, right, bottom) in found:
                bbox = [left, top, right - left, bottom - top]
                one = {"id": len(boxes) + 1, "image_id": number, "category_id": label, "bbox": bbox}
                boxes.append({**one, "area": bbox[2] * bbox[3], "iscrowd": 0})
        categories = [{"id": k, "name": str(k)} for k in range(10)]
        record = {"images": images, "annotations": boxes, "categories": categories}
        path = folder / "annotations" / f"instances_{part}.json"
        path.write_text(json.dumps(record) + "\n", encoding="utf-8")
    return folder


def _page(
    images: NDArray[np.float64], labels: NDArray[np.int64], digits: NDArray[np.int64], draw: np.random.Generator
) -> tuple[Image.Image, list[tuple[int, tuple[int, int, int, int]]]]:
    """A gray page, and class and ink box (left, top, right, bottom) of every digit on it."""
    height, width = SIZE
    page = np.asarray(_paper(draw), np.float32)
    found: list[tuple[int, tuple[int, int, int, int]]] = []
    for _ in range(int(draw.integers(0, 13))):
        which = int(draw.choice(digits))
        ink = _ink(images[which], float(draw.uniform(SMALLEST, LARGEST)), float(draw.uniform(-12, 12)))
        h, w = ink.shape
        for _ in range(20):
            top, left = int(draw.integers(0, height - h + 1)), int(draw.integers(0, width - w + 1))
            box = (left, top, left + w, top + h)
            if all(_apart(box, other) for _, other in found):
                dark = float(draw.uniform(0.55, 0.95))
                place = (slice(top, top + h), slice(left, left + w))
                page[place] *= 1 - dark * ink
                found.append((int(labels[which]), box))
                break
    page += draw.normal(0, 4, page.shape)
    return Image.fromarray(np.clip(np.rint(page), 0, 255).astype(np.uint8)), found


def _paper(draw: np.random.Generator) -> Image.Image:
    """Paper with an uneven light, and lines or squares on some of it."""
    height, width = SIZE
    light = (
        np.linspace(0, float(draw.uniform(-30, 30)), width)[None]
        + np.linspace(0, float(draw.uniform(-30, 30)), height)[:, None]
    )
    paper = Image.fromarray(np.clip(float(draw.uniform(190, 245)) + light, 0, 255).astype(np.uint8))
    pen, gap, kind = ImageDraw.Draw(paper), int(draw.integers(14, 30)), int(draw.integers(0, 3))
    tone = int(draw.integers(140, 190))
    for at in range(gap, max(height, width), gap):
        if kind >= 1:
            pen.line([0, at, width, at], fill=tone)
        if kind == 2:
            pen.line([at, 0, at, height], fill=tone)
    return paper.filter(ImageFilter.GaussianBlur(0.5))


def _ink(pixels: NDArray[np.float64], height: float, degrees: float) -> NDArray[np.float32]:
    """A digit's ink in [0, 1], turned, of about `height` pixels, cut to where there is ink."""
    small = Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8))
    side = max(8, round(height * 8 / 7))
    large = small.resize((side, side), Image.Resampling.BICUBIC)
    framed = Image.new("L", (side + 8, side + 8))
    framed.paste(large, (4, 4))
    turned = np.asarray(framed.rotate(degrees, Image.Resampling.BICUBIC), np.float32) / 255
    rows, columns = (np.flatnonzero((turned > 0.25).any(axis)) for axis in (1, 0))
    return np.asarray(turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], np.float32)


def _apart(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> bool:
    return (
        one[2] + APART <= other[0]
        or other[2] + APART <= one[0]
        or one[3] + APART <= other[1]
        or other[3] + APART <= one[1]
    )
