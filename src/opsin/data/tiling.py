"""Large pictures in overlapping tiles: a data set of tiles to train on, and the tiles' answers joined again.

A detector sees a small object of a large picture only if the picture is not shrunk; so it is cut. Tiles that hold a part
of an object overlap, and an object that two of them find is merged (Akyon et al., "Slicing Aided Hyper Inference", 2022).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from opsin.data.box_transforms import clip, move
from opsin.data.columns import StringColumn
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn
from opsin.data.sources import Problem
from opsin.errors import ConfigError, DataError
from opsin.metrics.boxes import area, intersection, iou

LEAST = 0.4
"""Share of an object that a tile must show for the object to be in it."""


def tiles(height: int, width: int, size: int | tuple[int, int], overlap: float = 0.2) -> NDArray[np.int64]:
    """Tiles that cover a picture: (T, 4) of left, top, right, bottom, row after row.

    All have the size asked for (or the picture's, where that is smaller), and neighbors overlap by at least the share
    asked for; the room that is left over is spread evenly.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        size: side of a tile, or (H, W).
        overlap: share of a tile's side, in [0, 1).

    Raises:
        ConfigError: if size or overlap are out of range.
    """
    tall, wide = (size, size) if isinstance(size, int) else size
    if min(tall, wide, height, width) < 1 or not 0 <= overlap < 1:
        raise ConfigError(
            f"Tiles of {tall} x {wide} with overlap {overlap:g}: expected at least 1 pixel and a share from 0 to below 1."
        )
    rows, columns = _starts(height, tall, overlap), _starts(width, wide, overlap)
    found = [(x, y, min(x + wide, width), min(y + tall, height)) for y, x in itertools.product(rows, columns)]
    return np.array(found, np.int64)


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if tile >= side:
        return [0]
    step = max(1, int(tile * (1 - overlap)))
    count = -(-(side - tile) // step) + 1
    return [int(place) for place in np.linspace(0, side - tile, count)]


class Tiled(NamedTuple):
    """A data set of tiles.

    `pictures` (T,) are the positions in the data set that was cut: take the tiles whose picture is in a part for that
    part. `offsets` (T, 2) are the x and y of a tile's corner in its picture.
    """

    dataset: Dataset
    pictures: NDArray[np.int64]
    offsets: NDArray[np.int64]


def tile_dataset(
    dataset: Dataset,
    size: int | tuple[int, int],
    overlap: float = 0.2,
    keep_empty: bool = True,
    least: float = LEAST,
) -> Tiled:
    """Cut every picture of a data set into tiles; pictures are read and cut when a tile is read.

    A tile's id is `picture#x,y`. The column "picture" says where it is from and is the group of the tiles unless the data
    set has groups already, so that `--group group` keeps the tiles of a picture in one part; a given split stays.

    Args:
        dataset: with a head of objects.
        size: side of a tile, or (H, W), in pixels.
        overlap: share of a tile's side.
        keep_empty: keep tiles without objects, as examples of background.
        least: share of an object's box that a tile must show; the rest of the object is cut off.

    Raises:
        DataError: if the data set has no head of objects, or is made of tiles already.
        ConfigError: if size or overlap are out of range.
    """
    head = next((head for head in dataset.heads if head.kind == "objects"), None)
    if head is None or dataset.cuts is not None:
        what = "has no boxes" if head is None else "is made of tiles already"
        raise DataError(f"{dataset.root} {what}, so it cannot be cut into tiles.")
    column: ObjectColumn = dataset.targets[head.name]
    pictures, cuts, found = [], [], []
    whole = np.zeros(len(column.objects), np.bool_)
    for i in range(len(dataset)):
        objects, first = column[i], int(column.starts[i])
        for left, top, right, bottom in tiles(*dataset.size(i), size, overlap).tolist():
            numbered = np.arange(len(objects))
            inside = _shown(objects.boxes_xyxy, (left, top, right, bottom)) >= least - 1e-9
            whole[first + numbered[inside]] = True
            if not inside.any() and not keep_empty:
                continue
            cut, _ = clip(objects.take(inside), (left, top, right, bottom), 0.0, 0.0)
            found.append(move(cut, (1.0, 1.0), (-float(left), -float(top))))
            pictures.append(i)
            cuts.append((left, top, right, bottom))
    places = np.array(pictures, np.int64)
    names = [dataset.id(i) for i in pictures]
    view = dataset.select(places)
    view.cuts = np.array(cuts, np.int64).reshape(-1, 4)
    view.ids = StringColumn(f"{name}#{x},{y}" for name, (x, y, _, _) in zip(names, cuts))
    view.targets[head.name] = ObjectColumn.collect(found, column.objects.points.shape[1])
    view.attributes["picture"] = StringColumn(names)
    view.roles = {"group": "picture", **dataset.roles}
    lost = int((~whole).sum())
    if lost:
        text = f"{lost} of {len(whole)} objects show less than {least:.0%} in every tile and are in none; use more overlap."
        view.problems.append(Problem(dataset.root, text, level="warning"))
    return Tiled(view, places, view.cuts[:, :2].copy())


def _shown(boxes: NDArray[np.float64], window: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Share of each box (M, 4) that lies in a window, (M,)."""
    return np.asarray(intersection(boxes, np.array(window, np.float64)) / np.maximum(area(boxes), 1e-12))


class Boxes(NamedTuple):
    """Found objects: boxes (N, 4) xyxy, scores (N,), labels (N,), and which of all that was given each is, (N,)."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    positions: NDArray[np.int64]


def untile(
    found: Sequence[tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.integer]]],
    offsets: Sequence[Sequence[int]] | NDArray[np.integer],
    how: Literal["merge", "nms"] = "merge",
    threshold: float = 0.5,
    sure: NDArray[np.floating] | None = None,
    agnostic: bool = False,
) -> Boxes:
    """Join what was found in the tiles of one picture, class by class unless `agnostic`, best scores first.

    Args:
        found: per tile boxes (N, 4) in pixels of the tile, scores (N,) and labels (N,).
        offsets: x and y of each tile's corner in the picture.
        how: `merge` puts boxes of which the smaller is covered to more than the threshold into one box around both, with
            the better score, so that halves of a cut object become one; `nms` drops the weaker of two boxes with IoU above
            the threshold.
        threshold: see `how`.
        sure: (K,) for `merge`, score per class that both boxes need for one to grow around the other; a weaker one goes,
            so that the many unsure candidates of a detector blow up no box. None lets all of them grow.
        agnostic: boxes of different classes are one object too, of the class of the surest.

    Returns:
        In pixels of the picture, by falling score; a merged box has the score and the position of its best part.
    """
    if not found:
        return Boxes(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int64))
    places = np.tile(np.asarray(offsets, np.float64), 2)  # (T, 4)
    moved = [np.asarray(b, np.float64).reshape(-1, 4) + o for (b, _, _), o in zip(found, places, strict=True)]
    boxes = np.concatenate(moved)
    scores = np.concatenate([np.asarray(s, np.float64).reshape(-1) for _, s, _ in found])
    labels = np.concatenate([np.asarray(k, np.int64).reshape(-1) for _, _, k in found])
    order = np.argsort(-scores, kind="stable")
    boxes, scores, labels = boxes[order], scores[order], labels[order]
    kept_boxes, kept = boxes.copy(), np.ones(len(boxes), np.bool_)
    grows = np.ones(len(boxes), np.bool_) if sure is None else scores >= np.asarray(sure, np.float64)[labels]
    groups = np.zeros_like(labels) if agnostic else labels
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        while len(members):
            best, rest = members[0], members[1:]
            if how == "nms":
                near = iou(boxes[best], boxes[rest]) > threshold
            else:
                near = _gathered(kept_boxes, int(best), rest, threshold, grows)
            kept[rest[near]] = False
            members = rest[~near]
    return Boxes(kept_boxes[kept], scores[kept], labels[kept], order[kept])


def _cover(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection of a box (4,) with others (N, 4) over the smaller area, (N,)."""
    smaller = np.minimum(area(box), area(others))
    return np.asarray(intersection(box, others) / np.maximum(smaller, 1e-12))


def _gathered(
    boxes: NDArray[np.float64], best: int, rest: NDArray[np.int64], threshold: float, grows: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the rest belong to the best box, which grows around those that may until no more do."""
    near = np.zeros(len(rest), np.bool_)
    while True:
        new = ~near & (_cover(boxes[best], boxes[rest]) > threshold)
        near |= new
        members = boxes[rest[new & grows[rest]]]
        if not grows[best] or not len(members):
            return near
        boxes[best, :2] = np.minimum(boxes[best, :2], members[:, :2].min(0))
        boxes[best, 2:] = np.maximum(boxes[best, 2:], members[:, 2:].max(0))
