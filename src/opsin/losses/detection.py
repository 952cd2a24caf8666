"""Losses of detectors with anchors or default boxes, as sums with counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from opsin.task import Part


def multibox_loss(
    logits: Tensor,
    deltas: Tensor,
    labels: Tensor,
    targets: Sequence[Tensor],
    negatives: float = 3.0,
) -> dict[str, Part]:
    """SSD's loss: cross-entropy of matched boxes and of the hardest background, smooth L1 of the matched.

    Source: SSD, 2015, equations 1 to 3 and "hard negative mining". Both terms are divided by the matched default boxes of
    the whole batch; a picture without objects adds no background.

    Args:
        logits: (B, N, K + 1), background first.
        deltas: (B, N, 4).
        labels: (B, N) from 1, 0 for background.
        targets: encoded boxes of the matched default boxes, (matched, 4) each picture.
        negatives: how many boxes of background count for each matched one, in each picture.

    Returns:
        The terms `classes` and `boxes`.
    """
    logits, deltas = logits.to(torch.promote_types(logits.dtype, torch.float32)), deltas.to(targets[0].dtype)
    matched = labels > 0
    count = matched.sum()
    each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").reshape(labels.shape)
    hardness = each.detach().masked_fill(matched, -torch.inf)
    rank = hardness.argsort(dim=1, descending=True).argsort(dim=1)
    hard = (rank < negatives * matched.sum(1, keepdim=True)) & ~matched
    boxes = F.smooth_l1_loss(deltas[matched], torch.cat(list(targets)), reduction="sum")
    return {"classes": Part(each[matched | hard].sum(), count), "boxes": Part(boxes, count)}
