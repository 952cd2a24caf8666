"""What a keypoint model's rows come to: metrics for the task, tables, curves and pictures for its report.

Shapes: N objects, K points, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from opsin.metrics import keypoints
from opsin.metrics.inputs import FloatArray, IntArray, Weights, over_replicates, ratio
from opsin.metrics.keypoints import CED_END, FAILURE, Normalizer
from opsin.results.rows import Rows
from opsin.results.section import Curve, Gallery, Note, Picture, Section, Table

LOW_FAILURE = 0.08
PCK_LIMIT = 0.2  # of the box's size
SHOWN = 8  # worst objects
WORDS: dict[str, str] = {
    "interocular": "the distance of the eyes",
    "box": "the size of the object's box (the root of its area)",
    "area": "the diagonal of the box around the labeled points",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows of the task keypoints, measured.

    Args:
        ids: (N,).
        errors: (N, K) distances over the normalizer, nan where a point is not labeled.
        near: (N, K) whether a point lies within `PCK_LIMIT` of the box's size, nan where it is not labeled.
        nme: (N,) mean over the labeled points.
        picture: (N,) position of the object's picture in `poses`.
        poses: one row per picture, as the task detect has them: each object's points are one detection.
        replaced: objects whose eyes are not labeled, and whose errors are divided by the size of the box.
    """

    ids: NDArray[np.str_]
    errors: FloatArray
    near: FloatArray
    nme: FloatArray
    picture: IntArray
    poses: Rows
    replaced: int


_KEPT: WeakKeyDictionary[Rows, dict[tuple[Any, ...], Judged]] = WeakKeyDictionary()


def judged(rows: Rows, eyes: tuple[int, int] | None, normalize: Normalizer) -> Judged:
    """Measure rows; done once for each table and kept as long as it lives.

    Args:
        rows: with `box` (4,), `area` (), `picture` (str), `found_points` (K, 3) and `true_points` (K, 3).
        eyes: positions of the two eyes, for `interocular`.
        normalize: what distances are divided by.
    """
    kept = _KEPT.setdefault(rows, {})
    key = (eyes, normalize)
    if key not in kept:
        kept[key] = _measured(rows, eyes, normalize)
    return kept[key]


def _measured(rows: Rows, eyes: tuple[int, int] | None, normalize: Normalizer) -> Judged:
    found, true = (np.stack(list(rows[name])).astype(np.float64) for name in ("found_points", "true_points"))
    size = keypoints.normalizers("box", true, rows["box"])
    places = None if eyes is None else ([eyes[0]], [eyes[1]])
    scale = keypoints.normalizers(normalize, true, rows["box"], places)
    unknown = np.isnan(scale)
    errors = keypoints.distances(found, true, np.where(unknown, size, scale))
    in_boxes = keypoints.distances(found, true, size)
    near = np.where(np.isnan(in_boxes), np.nan, in_boxes <= PCK_LIMIT)
    picture, poses = _poses(rows, found, true)
    return Judged(rows.ids, errors, near, keypoints.nme(errors), picture, poses, int(unknown.sum()))


def _poses(rows: Rows, found: FloatArray, true: FloatArray) -> tuple[IntArray, Rows]:
    """The position of each object's picture, and one row per picture."""
    names, picture = np.unique(rows["picture"], return_inverse=True)
    picture = picture.reshape(-1).astype(np.int64)
    order = np.argsort(picture, kind="stable")
    members = np.split(order, np.flatnonzero(np.diff(picture[order])) + 1)
    counts = [len(own) for own in members]
    scores = found[:, :, 2].mean(1)

    def ragged(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
        column = np.empty(len(values), object)
        for i, one in enumerate(values):
            column[i] = one
        return column

    columns = {
        "found_boxes": [rows["box"][own].astype(np.float64) for own in members],
        "found_scores": [scores[own] for own in members],
        "found_labels": [np.zeros(n, np.int64) for n in counts],
        "found_points": [found[own] for own in members],
        "true_boxes": [rows["box"][own].astype(np.float64) for own in members],
        "true_labels": [np.zeros(n, np.int64) for n in counts],
        "true_crowd": [np.zeros(n, np.bool_) for n in counts],
        "true_difficult": [np.zeros(n, np.bool_) for n in counts],
        "true_area": [rows["area"][own].astype(np.float64) for own in members],
        "true_points": [true[own] for own in members],
    }
    return picture, Rows({"id": names, **{name: ragged(parts) for name, parts in columns.items()}})


def metrics(given: Judged, sigmas: Sequence[float], weights: Weights = None) -> dict[str, FloatArray]:
    """OKS-AP where spreads are known, NME, failure rates, area under the CED curve, PCK; shape () or (R,).

    Args:
        given: the rows, measured.
        sigmas: (K,) for OKS, or none.
        weights: None, (N,) or (R, N); those of the objects of one picture are taken together.
    """
    known = ~np.isnan(given.near)
    hits, seen = np.where(known, given.near, 0.0).sum(1), known.sum(1).astype(np.float64)
    columns = {
        "nme": given.nme,
        "failure_rate": (given.nme > FAILURE).astype(np.float64),
        "failure_rate_08": (given.nme > LOW_FAILURE).astype(np.float64),
        "auc_ced": np.maximum(CED_END - given.nme, 0) / CED_END,
    }

    def means(chunk: FloatArray) -> FloatArray:
        total = chunk.sum(1)
        found = [ratio(chunk @ values, total) for values in columns.values()]
        return np.stack([*found, ratio(chunk @ hits, chunk @ seen)], axis=-1)

    table = over_replicates(means, weights, len(given.nme))
    found = {name: table[..., i] for i, name in enumerate([*columns, "pck"])}
    if not len(sigmas):
        return found
    own = None if weights is None else _by_picture(np.asarray(weights), given)
    return {**keypoints.oks_metrics(given.poses, ("object",), own, sigmas=np.asarray(sigmas)), **found}


def _by_picture(weights: NDArray[Any], given: Judged) -> FloatArray:
    """Mean weight of the objects of each picture, (M,) or (R, M) from (N,) or (R, N)."""
    counts = np.bincount(given.picture, minlength=len(given.poses))
    share = np.zeros((len(given.picture), len(given.poses)))
    share[np.arange(len(share)), given.picture] = 1.0 / counts[given.picture]
    return np.asarray(weights.astype(np.float64) @ share)


def sections(given: Judged, names: Sequence[str], normalize: Normalizer) -> list[Section]:
    """Error per point, the CED curve, the worst objects."""
    words = WORDS[normalize]
    note = f"Errors are distances divided by {words}."
    if given.replaced:
        note += f" {given.replaced} objects have no labeled eyes; theirs are divided by {WORDS['box']}."
    lines: list[tuple[Any, ...]] = []
    for k, name in enumerate(names):
        own = given.errors[:, k][~np.isnan(given.errors[:, k])]
        close = given.near[:, k][~np.isnan(given.near[:, k])]
        if len(own):
            lines.append(
                (name, len(own), float(own.mean()), float(np.median(own)), float(own.max()), float(close.mean()))
            )
        else:
            lines.append((name, 0, None, None, None, None))
    columns = ("point", "labeled", "mean error", "median", "largest", f"within {PCK_LIMIT:g} of the box (PCK)")
    x, y = keypoints.ced(given.nme, max(2 * FAILURE, float(np.quantile(given.nme, 0.95))))
    curve = Curve(
        "Cumulative error",
        f"mean error of an object, as a share of {words}",
        "share of objects",
        {"objects": (x, y)},
        note=f"The share of objects whose mean error is at most x; a failure is an error above {FAILURE:g}.",
    )
    worst = np.argsort(-given.nme, kind="stable")[:SHOWN]
    pictures = tuple(
        Picture(str(given.ids[i]), f"error {given.nme[i]:.3f}", _worst_point(given, i, names)) for i in worst
    )
    return [
        Table("Error per point", columns, tuple(lines), note),
        curve,
        Gallery(
            "Largest errors", pictures, "Objects by mean error, the largest first; #k is the object in its picture."
        ),
    ]


def _worst_point(given: Judged, i: int, names: Sequence[str]) -> str:
    k = int(np.nanargmax(given.errors[i]))
    return f"worst point: {names[k]} ({given.errors[i, k]:.3f})"


def warnings(given: Judged, train_metrics: Mapping[str, float], found: Mapping[str, Any], split: str) -> list[Note]:
    """Few objects, eyes that are not labeled, and a gap to the training part."""
    notes = []
    count = len(given.nme)
    if count < 30:
        text = f"Only {count} objects in {split}: every number here is uncertain; look at its interval."
        notes.append(Note("few_objects", text, "warning", {"objects": count}))
    if given.replaced:
        text = f"{given.replaced} of {count} objects have no labeled eyes: their errors are divided by {WORDS['box']}."
        notes.append(Note("eyes_missing", text, "info", {"objects": given.replaced}))
    trained, here = train_metrics.get("nme"), found.get("nme")
    if trained is not None and here is not None and here.value > 2 * trained and here.low > 1.5 * trained:
        text = f"The error on {split} is {here.value / max(trained, 1e-9):.1f} times that on the training part: overfitted."
        notes.append(Note("overfitted", text, "warning", {"train": trained, split: here.value}))
    return notes
