"""From scores of all places and classes to a fixed number of candidates, in a form that torch.export can trace."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import nms


def best_scores(scores: Tensor, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best of all pairs of place and class.

    Args:
        scores: (B, N, K).
        count: how many are taken, if there are as many pairs.
        threshold: scores up to it become 0.

    Returns:
        Scores, places and labels, (B, M) each, M = min(count, N * K), best first.
    """
    classes = scores.shape[2]
    flat = scores.flatten(1)
    best, position = flat.topk(min(count, flat.shape[1]), dim=1)
    return torch.where(best > threshold, best, 0), position // classes, position % classes


def best_of_classes(scores: Tensor, count: int, threshold: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best places of every class.

    Args:
        scores: (B, N, K).
        count: how many are taken of every class, if there are as many places.
        threshold: scores up to it become 0.

    Returns:
        Scores, places and labels, (B, K * M) each, M = min(count, N), by class and then best first.
    """
    best, places = scores.transpose(1, 2).topk(min(count, scores.shape[1]), dim=2)  # (B, K, M)
    labels = torch.arange(scores.shape[2], device=scores.device)[:, None].expand_as(places)
    return torch.where(best > threshold, best, 0).flatten(1), places.flatten(1), labels.flatten(1)


def taken(values: Tensor, places: Tensor) -> Tensor:
    """Rows (B, M, D) of `values` (B, N, D) at `places` (B, M)."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def without_small(scores: Tensor, boxes: Tensor, least: float, instead: float = 0.0) -> Tensor:
    """Scores (...) of boxes (..., 4), those with a side shorter than `least` pixels replaced."""
    fits = ((boxes[..., 2:] - boxes[..., :2]) >= least).all(dim=-1)
    return torch.where(fits, scores, instead)


def kept_by_nms(boxes: Tensor, scores: Tensor, overlap: float, groups: Tensor | None = None) -> Tensor:
    """Which boxes greedy non-maximum suppression keeps, as a mask of fixed shape.

    While exporting, all pictures are suppressed in one call, far enough apart in double precision not to touch.

    Args:
        boxes: (B, N, 4), inside the pictures.
        scores: (B, N).
        overlap: IoU above which the weaker of two boxes is dropped.
        groups: (B, N) int64 from 0; only boxes of one group drop each other. One group by default.

    Returns:
        (B, N) bool.
    """
    if not torch.compiler.is_exporting():
        if groups is not None:
            boxes = boxes.double() + groups.double()[..., None] * _apart(boxes)
        kept = torch.zeros_like(scores, dtype=torch.bool)
        for mask, own, score in zip(kept, boxes, scores, strict=True):
            mask[nms(own, score.to(own.dtype), overlap)] = True
        return kept
    batch, count = scores.shape
    island = torch.arange(batch, device=boxes.device)[:, None].expand(batch, count)
    if groups is not None:
        island = island * (groups.max() + 1) + groups
    flat = (boxes.double() + island.double()[..., None] * _apart(boxes)).reshape(-1, 4)
    keep = nms(flat, scores.double().flatten(), overlap)
    mask = torch.zeros(batch * count, dtype=torch.bool, device=boxes.device)
    return mask.index_fill(0, keep, True).reshape(batch, count)


def _apart(boxes: Tensor) -> Tensor:
    return boxes.max().double().ceil() + 1
