"""What a keypoint model's rows come to: metrics for the task, tables, curves and pictures for its report.

Shapes: N objects, K points, R replicates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.metrics import keypoints
from opsin.metrics.inputs import FloatArray, Weights, over_replicates, ratio
from opsin.results.rows import Rows
from opsin.results.section import Curve, Gallery, Note, Picture, Section, Table

FAILED = (0.10, 0.08)
PCK_SHARE = 0.2  # of the longer side of the box; Yang and Ramanan 2013
SHOWN = 8  # worst objects
WORDS = {
    "inter-ocular": "the distance of the eyes",
    "box": "the diagonal of the object's box",
}


@dataclass(frozen=True, eq=False)
class Judged:
    """Rows, measured.

    Args:
        ids: (N,).
        errors: (N, K) distances over the normalizer, nan where a point is not labeled.
        near: (N, K) whether a point lies within `PCK_SHARE` of the box, nan where it is not labeled.
        nme: (N,) mean over the labeled points.
        scores: (N,) of the detections.
        right: (N, T) whether each is right at each OKS threshold; None without sigmas.
        normalize: what errors are divided by.
        replaced: objects whose eyes are not labeled, and whose errors are divided by the box's diagonal.
    """

    ids: NDArray[np.str_]
    errors: FloatArray
    near: FloatArray
    nme: FloatArray
    scores: FloatArray
    right: NDArray[np.bool_] | None
    normalize: str
    replaced: int


def judged(rows: Rows, sigmas: Sequence[float], eyes: tuple[int, int] | None, normalize: str) -> Judged:
    """Measure the rows of the task keypoints.

    Args:
        rows: with `box`, `area`, `picture`, `found_points` (K, 3) and `true_points` (K, 3).
        sigmas: (K,) for OKS, or none.
        eyes: positions of the two eyes.
        normalize: `inter-ocular` or `box`.
    """
    found, true = (np.stack(list(rows[name])).astype(np.float64) for name in ("found_points", "true_points"))
    sides = rows["box"][:, 2:] - rows["box"][:, :2]
    diagonal = np.hypot(sides[:, 0], sides[:, 1])
    scale, replaced = diagonal, 0
    if normalize == "inter-ocular" and eyes is not None:
        known = (true[:, list(eyes), 2] > 0).all(1)
        apart = np.linalg.norm(true[:, eyes[0], :2] - true[:, eyes[1], :2], axis=1)
        usable = known & (apart > 0)
        scale, replaced = np.where(usable, apart, diagonal), int((~usable).sum())
    away = keypoints.distances(found, true)
    near = np.where(np.isnan(away), np.nan, away <= PCK_SHARE * sides.max(1)[:, None])
    errors = away / scale[:, None]
    scores = found[:, :, 2].mean(1)
    right = None
    if len(sigmas):
        spread = np.asarray(sigmas, np.float64)
        right = np.zeros((len(rows), len(keypoints.THRESHOLDS)), np.bool_)
        pictures = np.unique(rows["picture"], return_inverse=True)[1].reshape(-1)
        order = np.argsort(pictures, kind="stable")
        for members in np.split(order, np.flatnonzero(np.diff(pictures[order])) + 1):
            overlaps = keypoints.similarities(found[members], true[members], rows["area"][members], spread)
            right[members] = keypoints.matched(overlaps, scores[members], keypoints.THRESHOLDS)
    return Judged(rows.ids, errors, near, np.nanmean(errors, axis=1), scores, right, normalize, replaced)


def metrics(given: Judged, weights: Weights = None) -> dict[str, FloatArray]:
    """NME, failure rates, area under the CED curve, PCK, and OKS-AP where spreads are known; shape () or (R,)."""
    known = ~np.isnan(given.near)
    hits, seen = np.where(known, given.near, 0.0).sum(1), known.sum(1).astype(np.float64)
    columns = {
        "nme": given.nme,
        "failure_rate": (given.nme > FAILED[0]).astype(np.float64),
        "failure_rate_08": (given.nme > FAILED[1]).astype(np.float64),
        "ced_auc": np.clip(1 - given.nme / FAILED[0], 0, 1),
    }

    def means(chunk: FloatArray) -> FloatArray:
        total = chunk.sum(1)
        found = [ratio(chunk @ values, total) for values in columns.values()]
        return np.stack([*found, ratio(chunk @ hits, chunk @ seen)], axis=-1)

    table = over_replicates(means, weights, len(given.nme))
    found = {name: table[..., i] for i, name in enumerate([*columns, "pck"])}
    if given.right is None:
        return found
    precision = keypoints.average_precision(given.right, given.scores, weights)
    own = {"oks_ap": precision.mean(-1), "oks_ap50": precision[..., 0], "oks_ap75": precision[..., 5]}
    return {**own, **found}


def sections(given: Judged, names: Sequence[str]) -> list[Section]:
    """Error per point, the CED curve, the worst objects."""
    words = WORDS[given.normalize]
    note = f"Errors are distances divided by {words}."
    if given.replaced:
        note += f" {given.replaced} objects have no labeled eyes; theirs are divided by {WORDS['box']}."
    lines = []
    for k, name in enumerate(names):
        own = given.errors[:, k][~np.isnan(given.errors[:, k])]
        close = given.near[:, k][~np.isnan(given.near[:, k])]
        if len(own):
            lines.append(
                (name, len(own), float(own.mean()), float(np.median(own)), float(own.max()), float(close.mean()))
            )
        else:
            lines.append((name, 0, None, None, None, None))
    columns = ("point", "labeled", "mean error", "median", "largest", f"within {PCK_SHARE:g} of the box (PCK)")
    ordered = np.sort(given.nme)
    shares = np.arange(1, len(ordered) + 1) / len(ordered)
    reach = max(2 * FAILED[0], float(np.quantile(ordered, 0.95)))
    shown = ordered <= reach
    x, y = np.concatenate([[0.0], ordered[shown]]), np.concatenate([[0.0], shares[shown]])
    curve = Curve(
        "Cumulative error",
        f"mean error of an object, as a share of {words}",
        "share of objects",
        {"objects": (x, y)},
        note=f"The share of objects whose mean error is at most x; a failure is an error above {FAILED[0]:g}.",
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
