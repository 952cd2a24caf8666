"""The region proposal network: which anchors have an object in them, whatever it is, and where its sides are.

Source: Faster R-CNN, 2015, https://arxiv.org/abs/1506.01497, section 3.1, on the levels of a feature pyramid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation

from opsin.layers.anchors import cell_anchors, grid_anchors
from opsin.layers.box_coding import clipped, decode_deltas, encode_deltas
from opsin.layers.candidates import kept_by_nms, taken, without_small
from opsin.layers.matching import match_by_iou, sample_balanced
from opsin.task import Part

RATIOS = (0.5, 1.0, 2.0)
SMALLEST = 1e-3  # pixels of a proposal's side
BETA = 1 / 9  # where smooth L1 turns from a parabola into a line, here and in the second stage


class Proposals(NamedTuple):
    """What the network says: of every anchor, and the best of them."""

    objectness: Tensor  # (B, N), before the sigmoid
    deltas: Tensor  # (B, N, 4)
    anchors: Tensor  # (N, 4)
    boxes: Tensor  # (B, P, 4), without gradient, best first
    scores: Tensor  # (B, P), negative where there is no proposal


class Drawn(NamedTuple):
    """Anchors drawn for the loss, over all pictures of a batch."""

    objectness: Tensor  # (S,)
    positive: Tensor  # (S,) 0 or 1
    deltas: Tensor  # (positives, 4)
    targets: Tensor  # (positives, 4)


class ProposalHead(nn.Module):
    """3x3 convolutions, and two 1x1 convolutions for objectness and deltas, shared by all levels.

    Args:
        channels: of the maps.
        anchors: of a cell.
        depth: 3x3 convolutions.
    """

    def __init__(self, channels: int, anchors: int, depth: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(*(Conv2dNormActivation(channels, channels, norm_layer=None) for _ in range(depth)))
        self.cls_logits = nn.Conv2d(channels, anchors, 1)
        self.bbox_pred = nn.Conv2d(channels, anchors * 4, 1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness (B, cells * A) and deltas (B, cells * A, 4) per level."""
        maps = [self.conv(feature) for feature in features]
        objectness = [self.cls_logits(one).permute(0, 2, 3, 1).flatten(1) for one in maps]
        return objectness, [self.bbox_pred(one).permute(0, 2, 3, 1).unflatten(3, (-1, 4)).flatten(1, 3) for one in maps]


class RegionProposals(nn.Module):
    """The head, and what becomes of its answers.

    Args:
        channels: of the maps.
        strides: of the maps.
        octave: length of a level's anchors, in cells.
        depth: 3x3 convolutions of the head.
        before: proposals kept per level before suppression, in training and in evaluation.
        after: proposals kept per picture, in training and in evaluation.
        drawn: anchors per picture in the loss, at most half of them positive.
    """

    def __init__(
        self,
        channels: int,
        strides: Sequence[int],
        octave: float,
        depth: int,
        before: tuple[int, int],
        after: tuple[int, int],
        drawn: int,
    ) -> None:
        super().__init__()
        self.cells = [cell_anchors([octave * stride], RATIOS) for stride in strides]
        self.head = ProposalHead(channels, len(RATIOS), depth)
        self.before, self.after, self.drawn = before, after, drawn

    def forward(self, features: Sequence[Tensor], size: tuple[int, int], learning: bool) -> Proposals:
        """Proposals in pixels of pictures of `size` (H, W); `learning` takes as many as training wants."""
        before, after = self.before[not learning], self.after[not learning]
        objectness, deltas = self.head(features)
        anchors = grid_anchors(self.cells, features, size)
        boxes, scores = [], []
        for logits, shifts, around in zip(objectness, deltas, anchors, strict=True):
            best, places = logits.detach().to(around.dtype).topk(min(before, logits.shape[1]), dim=1)
            found = clipped(decode_deltas(taken(shifts.detach(), places), around[places]), size)
            score = without_small(best.sigmoid(), found, SMALLEST, instead=-1.0)
            kept = kept_by_nms(found, score, 0.7)
            boxes.append(found)
            scores.append(torch.where(kept, score, -1.0))
        score = torch.cat(scores, dim=1)
        score, places = score.topk(min(after, score.shape[1]), dim=1)
        return Proposals(
            torch.cat(objectness, 1),
            torch.cat(deltas, 1),
            torch.cat(anchors),
            taken(torch.cat(boxes, 1), places),
            score,
        )

    def draw(self, proposals: Proposals, boxes: Sequence[Tensor]) -> Drawn:
        """Anchors for the loss, from torch's default generator: IoU .7 or best of an object against IoU below .3.

        Args:
            proposals: what was said.
            boxes: objects (M, 4) of every picture.
        """
        anchors = proposals.anchors
        labels, positives, targets = [], [], []
        for i, objects in enumerate(boxes):
            objects = objects.to(anchors.dtype)
            matched = match_by_iou(objects, anchors, 0.7, 0.3, keep_best=True)
            kind = torch.where(matched >= 0, 1, matched + 1)  # background is 0, ignored -1
            positive, background = sample_balanced(kind, self.drawn, 0.5)
            truth = torch.zeros(len(positive) + len(background), dtype=anchors.dtype, device=anchors.device)
            truth[: len(positive)] = 1
            labels.append((proposals.objectness[i, torch.cat((positive, background))], truth))
            positives.append(proposals.deltas[i, positive])
            targets.append(encode_deltas(objects[matched[positive]], anchors[positive]))
        said, truths = (torch.cat(parts) for parts in zip(*labels, strict=True))
        return Drawn(said.to(anchors.dtype), truths, torch.cat(positives).to(anchors.dtype), torch.cat(targets))


def proposal_losses(drawn: Drawn) -> dict[str, Part]:
    """`objectness` and `proposals` (smooth L1 of the deltas), both per drawn anchor."""
    count = len(drawn.positive)
    return {
        "objectness": Part(
            F.binary_cross_entropy_with_logits(drawn.objectness, drawn.positive, reduction="sum"), count
        ),
        "proposals": Part(F.smooth_l1_loss(drawn.deltas, drawn.targets, reduction="sum", beta=BETA), count),
    }
