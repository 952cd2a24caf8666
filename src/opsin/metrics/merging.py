"""From many candidates to one box per object: non-maximum suppression and its kin, on arrays from any runtime.

Every method works class by class, unless `agnostic`. Scores fall in what comes back.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import batched_nms, nms

from opsin.errors import ConfigError, ShapeError
from opsin.metrics.boxes import iou, pairwise
from opsin.metrics.inputs import FloatArray, IntArray

Method = Literal["nms", "soft", "soft-linear", "matrix", "wbf"]
METHODS: tuple[str, ...] = ("nms", "soft", "soft-linear", "matrix", "wbf")
SIGMA = 0.5  # of the Gaussian decays: exp(-IoU^2 / sigma), Bodla 2017 and, as 1 / 2.0, Wang 2020


class Merged(NamedTuple):
    """What is left of a picture's candidates, best score first.

    Args:
        boxes: (M, 4), dtype as given; fused ones for `wbf`, else those of the candidates.
        scores: (M,), dtype as given; lowered by the soft methods.
        labels: (M,) int64.
        positions: (M,) int64, the candidate that a box is (for `wbf`: the best one of those fused), for points and
            whatever else belongs to it.
    """

    boxes: NDArray[Any]
    scores: NDArray[Any]
    labels: IntArray
    positions: IntArray


def merge(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    labels: NDArray[Any],
    *,
    overlap: float,
    floor: float = 0.0,
    top: int | None = None,
    method: Method = "nms",
    agnostic: bool = False,
) -> Merged:
    """Candidates of one picture to detections.

    Args:
        boxes: (N, 4) x1, y1, x2, y2.
        scores: (N,).
        labels: (N,) integers.
        overlap: IoU above which two boxes are the same object; 1.0 leaves all (the model needs no suppression).
            `soft` and `matrix` lower scores by any overlap, whatever this is below 1.
        floor: candidates, and what a method makes of them, need at least this score.
        top: at most so many come back.
        method: `nms` (equal to torchvision's batched_nms), `soft` and `soft-linear` (Gaussian and linear soft-NMS, Bodla
            2017), `matrix` (matrix NMS, Gaussian; Wang 2020), `wbf` (weighted box fusion, Solovyev 2019).
        agnostic: boxes of different classes compete too.

    Raises:
        ConfigError: unknown method, overlap outside [0, 1].
        ShapeError: shapes that do not fit.
    """
    n = len(boxes)
    if np.shape(boxes) != (n, 4) or np.shape(scores) != (n,) or np.shape(labels) != (n,):
        raise ShapeError(
            f"boxes {np.shape(boxes)}, scores {np.shape(scores)}, labels {np.shape(labels)}; "
            "expected (N, 4), (N,) and (N,)."
        )
    if method not in METHODS:
        raise ConfigError(f"method='{method}'; expected one of {', '.join(METHODS)}.")
    if not 0 <= overlap <= 1:
        raise ConfigError(f"overlap={overlap}; expected an IoU between 0 and 1.")
    kept = np.flatnonzero(scores >= floor)
    boxes, scores, labels = boxes[kept], scores[kept], np.asarray(labels)[kept].astype(np.int64)
    groups = np.zeros_like(labels) if agnostic else labels
    if overlap == 1 or not len(kept):
        found = np.argsort(-scores, kind="stable")
    elif method == "nms":
        found = hard_nms(boxes, scores, None if agnostic else labels, overlap)
    elif method == "wbf":
        boxes, scores, found = weighted_box_fusion(boxes, scores, groups, overlap=overlap)
        order = np.flatnonzero(scores >= floor)[:top]
        return Merged(boxes[order], scores[order], labels[found[order]], kept[found[order]])
    else:
        if method == "matrix":
            scores = matrix_nms(boxes, scores, groups)
        else:
            scores = soft_nms(boxes, scores, groups, overlap=overlap, linear=method == "soft-linear", floor=floor)
        found = np.argsort(-scores, kind="stable")
        found = found[scores[found] >= floor]
    found = found[:top]
    return Merged(boxes[found], scores[found], labels[found], kept[found])


def hard_nms(
    boxes: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any] | None = None, overlap: float = 0.5
) -> IntArray:
    """Positions (M,) of the boxes that no better box of the same group overlaps by more than `overlap`; best first.

    These are torchvision's `nms` and `batched_nms`.

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) integers; None is one group.
        overlap: IoU.
    """
    given = torch.from_numpy(np.ascontiguousarray(boxes)), torch.from_numpy(np.ascontiguousarray(scores))
    kept = (
        nms(*given, overlap)
        if groups is None
        else batched_nms(*given, torch.from_numpy(np.ascontiguousarray(groups)), overlap)
    )
    found: IntArray = kept.numpy()
    return found


def soft_nms(
    boxes: NDArray[Any],
    scores: NDArray[Any],
    groups: NDArray[Any],
    *,
    overlap: float = 0.3,
    linear: bool = False,
    sigma: float = SIGMA,
    floor: float = 0.0,
) -> NDArray[Any]:
    """Scores (N,) lowered by the overlap with better boxes of the same group, one after the other (Bodla 2017, eq. 2 and 3).

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) integers.
        overlap: linear only: IoU from which on a score is multiplied by 1 - IoU.
        linear: else scores are multiplied by exp(-IoU^2 / sigma).
        sigma: see above.
        floor: boxes whose score has fallen below it lower no others.
    """
    found = scores.copy()
    for members in _members(groups):
        own, left, current = boxes[members], np.arange(len(members)), scores[members].astype(np.float64)
        while len(left):
            best = left[int(current[left].argmax())]
            if current[best] < floor:
                break
            left = left[left != best]
            shared = iou(own[best], own[left])
            current[left] *= np.where(shared > overlap, 1 - shared, 1.0) if linear else np.exp(-(shared**2) / sigma)
        found[members] = current
    return found


def matrix_nms(
    boxes: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any], *, linear: bool = False, sigma: float = SIGMA
) -> NDArray[Any]:
    """Scores (N,) lowered by the overlap with all better boxes of the same group at once (SOLOv2, Wang 2020, eq. 4 and 5).

    The decay of box j is min over better boxes i of f(IoU_ij) / f(max over k better than i of IoU_ki).

    Args:
        boxes: (N, 4).
        scores: (N,).
        groups: (N,) integers.
        linear: f(x) = 1 - x, else exp(-x^2 / sigma).
        sigma: see above.
    """
    found = scores.copy()
    for members in _members(groups):
        order = members[np.argsort(-scores[members], kind="stable")]
        shared = np.triu(pairwise(iou, boxes[order], boxes[order]), 1)  # (i, j), i better than j
        covered = shared.max(0)[:, None]  # of i, by those better than i
        if linear:
            decay = (1 - shared) / np.maximum(1 - covered, 1e-12)
        else:
            decay = np.exp((covered**2 - shared**2) / sigma)
        decay[np.tril_indices(len(order))] = np.inf
        found[order] = scores[order] * np.minimum(decay.min(0), 1.0)
    return found


def weighted_box_fusion(
    boxes: NDArray[Any], scores: NDArray[Any], groups: NDArray[Any], *, overlap: float = 0.55, sources: int = 1
) -> tuple[NDArray[Any], NDArray[Any], IntArray]:
    """Boxes of one or several models averaged, weighted by their scores (Solovyev 2019).

    A box joins the fused box of its group that it overlaps most, above `overlap`, or begins a new one. A fused box has
    the mean score of its members, times min(members, sources) / sources.

    Args:
        boxes: (N, 4), of all sources together.
        scores: (N,).
        groups: (N,) integers.
        overlap: IoU.
        sources: models (or tiles, flips) that the boxes come from.

    Returns:
        Boxes (M, 4) and scores (M,), best first, and the best member of each, (M,).
    """
    fused: list[FloatArray] = []
    values: list[float] = []
    best: list[int] = []
    for members in _members(groups):
        order = members[np.argsort(-scores[members], kind="stable")]
        current = np.zeros((len(order), 4))  # fused boxes so far
        sums, mass = np.zeros((len(order), 4)), np.zeros(len(order))
        counts, first = np.zeros(len(order)), np.zeros(len(order), np.int64)
        size = 0
        for i in order.tolist():
            shared = iou(current[:size], boxes[i])
            at = int(shared.argmax()) if size else 0
            if not size or not shared[at] > overlap:
                at = size
                first[at], size = i, size + 1
            weight = float(scores[i])
            sums[at] += weight * boxes[i]
            mass[at] += weight
            counts[at] += 1
            current[at] = sums[at] / mass[at] if mass[at] > 0 else boxes[first[at]]
        fused.append(current[:size])
        values += (mass[:size] / counts[:size] * np.minimum(counts[:size], sources) / sources).tolist()
        best += first[:size].tolist()
    joined, means = np.concatenate([np.zeros((0, 4)), *fused]), np.array(values)
    ranks = np.argsort(-means, kind="stable")
    return joined[ranks].astype(boxes.dtype), means[ranks].astype(scores.dtype), np.array(best, np.int64)[ranks]


def _members(groups: NDArray[Any]) -> Iterator[IntArray]:
    """Positions of each group, in their order."""
    order = np.argsort(groups, kind="stable")
    cuts = np.flatnonzero(np.diff(groups[order])) + 1
    yield from (part for part in np.split(order, cuts) if len(part))
