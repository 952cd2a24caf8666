"""Contrastive denoising: true boxes with noise are given as further queries, which have to be told from worse ones.

Paper: DINO, 2022, https://arxiv.org/abs/2203.03605, section 3.3, after DN-DETR, https://arxiv.org/abs/2203.01305.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_convert


class NoisyQueries(NamedTuple):
    """Groups of noisy copies of the true boxes; each group has a near (positive) and a far (negative) copy of each.

    With M the most boxes of a picture, group g has its near copies at 2gM .. 2gM + M - 1 and the far ones after them.
    """

    labels: Tensor  # (B, Q) int64, some of them wrong; K where a picture has fewer than M boxes
    boxes: Tensor  # (B, Q, 4) center x, center y, width, height as shares of the picture
    groups: int  # copies of each pair

    @property
    def total(self) -> int:
        """Q, queries of a picture."""
        return self.labels.shape[1]

    def matches(self, sizes: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """For every picture, its near copies and the objects that they are copies of; `sizes` are numbers of objects."""
        step = self.total // self.groups
        starts = torch.arange(self.groups, device=self.labels.device) * step
        pairs = []
        for size in sizes:
            own = torch.arange(size, device=self.labels.device)
            pairs.append(((starts[:, None] + own).flatten(), own.repeat(self.groups)))
        return pairs

    def mask(self, others: int) -> Tensor:
        """(Q + others, Q + others), true where a query may attend: groups see themselves and the others, which see
        only themselves."""
        step = self.total // self.groups
        group = torch.arange(self.total + others, device=self.labels.device) // step
        group = group.clamp(max=self.groups)  # the others are the last group
        return (group[:, None] == group) | (group == self.groups)


def noisy_queries(
    boxes: Sequence[Tensor],
    labels: Sequence[Tensor],
    num_classes: int,
    count: int = 100,
    label_noise: float = 0.5,
    box_noise: float = 1.0,
) -> NoisyQueries | None:
    """Draw noisy copies of the true boxes, from torch's default generator.

    Args:
        boxes: (M, 4) of every picture: center x, center y, width, height as shares of the picture.
        labels: (M,) of every picture.
        num_classes: K.
        count: near copies wished for, of all boxes of the picture with most; there is one group at least.
        label_noise: twice the share of labels that are drawn anew.
        box_noise: a corner of a near copy moves by up to this share of half the width or height, of a far one by once to
            twice of it.

    Returns:
        The queries; None if `count` is 0 or no picture has a box.
    """
    most = max((len(own) for own in labels), default=0)
    if count <= 0 or most == 0:
        return None
    groups = max(count // most, 1)
    device = labels[0].device
    known = torch.zeros(len(labels), most, dtype=torch.bool, device=device)
    padded = torch.full((len(labels), most), num_classes, device=device)
    true = torch.zeros(len(labels), most, 4, device=device)
    for i, (own, names) in enumerate(zip(boxes, labels, strict=True)):
        known[i, : len(names)] = True
        padded[i, : len(names)] = names
        true[i, : len(own)] = own
    known, padded, true = known.repeat(1, 2 * groups), padded.repeat(1, 2 * groups), true.repeat(1, 2 * groups, 1)
    if label_noise > 0:
        drawn = torch.rand(padded.shape, dtype=torch.float32, device=device) < label_noise / 2
        anything = torch.randint(0, num_classes, padded.shape, dtype=torch.int32, device=device).long()
        padded = torch.where(drawn & known, anything, padded)
    if box_noise > 0:
        far = torch.arange(2 * most * groups, device=device) // most % 2
        sign = torch.randint(0, 2, true.shape, dtype=true.dtype, device=device) * 2 - 1
        size = (torch.rand(true.shape, device=device) + far[:, None]) * sign
        corners = box_convert(true, "cxcywh", "xyxy") + size * true[..., 2:].repeat(1, 1, 2) / 2 * box_noise
        true = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
    return NoisyQueries(padded, true, groups)
