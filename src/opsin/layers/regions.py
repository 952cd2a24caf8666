"""The second stage of Faster R-CNN: features of a region, its class, and its box once more.

Source: Fast R-CNN, 2015, https://arxiv.org/abs/1504.08083; RoIAlign of Mask R-CNN, 2017; levels by size as in Feature Pyramid
Networks, 2016, equation 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, roi_align

from opsin.layers.box_coding import clipped, decode_deltas, encode_deltas
from opsin.layers.candidates import best_scores, taken, without_small
from opsin.layers.matching import match_by_iou, sample_balanced
from opsin.layers.region_proposals import BETA, Proposals
from opsin.task import Part

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # inverse variances of the deltas
SMALLEST = 1e-2  # pixels of a detection's side
POOLED = 7  # cells of a region, both ways


class Regions(NamedTuple):
    """Regions drawn for the loss, over all pictures of a batch."""

    rois: Tensor  # (R, 5): picture, xyxy
    labels: Tensor  # (R,) from 1, 0 for background
    matched: Tensor  # (R,) position of the object in its picture; 0 for background
    targets: Tensor  # (R, 4) deltas; anything for background


def pool_regions(features: Sequence[Tensor], rois: Tensor, strides: Sequence[int], cells: int) -> Tensor:
    """Features of regions, each from the level that suits its size: 224 pixels belong to stride 16.

    Args:
        features: maps (B, C, H, W), finest first.
        rois: (R, 5): position of the picture, xyxy in pixels.
        strides: of the maps.
        cells: of a region, both ways; each is the mean of 2 x 2 samples.

    Returns:
        (R, C, cells, cells).
    """
    sides = (rois[:, 3:] - rois[:, 1:3]).prod(1).sqrt()
    finest, coarsest = math.log2(strides[0]), math.log2(strides[-1])
    level = (torch.log2(sides / 224) + 4 + 1e-6).floor().clamp(finest, coarsest)
    pooled = features[0].new_zeros((rois.shape[0], features[0].shape[1], cells, cells))
    for feature, stride in zip(features, strides, strict=True):
        own = torch.where(level == math.log2(stride))[0]
        found = roi_align(feature.to(rois.dtype), rois[own], cells, 1 / stride, sampling_ratio=2)
        pooled = pooled.index_copy(0, own, found.to(pooled.dtype))
    return pooled


def as_rois(boxes: Tensor) -> Tensor:
    """Boxes (B, P, 4) as (B * P, 5): picture, xyxy."""
    picture = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)[:, None, None]
    return torch.cat((picture.expand(-1, boxes.shape[1], 1), boxes), dim=2).flatten(0, 1)


def draw_regions(
    proposals: Proposals, boxes: Sequence[Tensor], labels: Sequence[Tensor], count: int, share: float = 0.25
) -> Regions:
    """Proposals and objects for the loss, from torch's default generator: IoU .5 and more is the object's class.

    Args:
        proposals: of the first stage.
        boxes: objects (M, 4) of every picture.
        labels: their classes (M,) from 0.
        count: regions per picture.
        share: largest share of regions with an object.
    """
    rois, classes, matches, targets = [], [], [], []
    for i, (objects, names) in enumerate(zip(boxes, labels, strict=True)):
        objects = objects.to(proposals.boxes.dtype)
        regions = torch.cat((proposals.boxes[i, proposals.scores[i] >= 0], objects))
        matched = match_by_iou(objects, regions, 0.5, 0.5, keep_best=False)
        if len(objects):
            found = torch.where(matched >= 0, names[matched.clamp(min=0)] + 1, 0)
        else:
            found = torch.zeros_like(matched)
        chosen = torch.cat(sample_balanced(found, count, share)).sort().values
        own, place = regions[chosen], matched[chosen].clamp(min=0)
        goal = objects[place] if len(objects) else own
        rois.append(torch.cat((torch.full_like(own[:, :1], i), own), dim=1))
        classes.append(found[chosen])
        matches.append(place)
        targets.append(encode_deltas(goal, own, WEIGHTS))
    return Regions(torch.cat(rois), torch.cat(classes), torch.cat(matches), torch.cat(targets))


class DenseHead(nn.Module):
    """Two dense layers on the features of a region.

    Args:
        channels: of the features.
        hidden: width of the layers.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * POOLED**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class ConvolutionHead(nn.Sequential):
    """Four 3x3 convolutions with batch norm and one dense layer on the features of a region.

    Args:
        channels: of the features and the convolutions.
        hidden: width of the dense layer.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__(
            *(Conv2dNormActivation(channels, channels) for _ in range(4)),
            nn.Flatten(),
            nn.Linear(channels * POOLED**2, hidden),
            nn.ReLU(inplace=True),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


class Predictor(nn.Module):
    """Logits of classes and background, and deltas for every class.

    Args:
        hidden: width of what comes in.
        classes: K + 1.
    """

    def __init__(self, hidden: int, classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, classes)
        self.bbox_pred = nn.Linear(hidden, classes * 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(R, K + 1), background first, and (R, K + 1, 4)."""
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


def region_losses(logits: Tensor, deltas: Tensor, regions: Regions) -> dict[str, Part]:
    """`classes` (cross-entropy) and `boxes` (smooth L1 of the true class's deltas), both per drawn region."""
    dtype, count = regions.rois.dtype, len(regions.labels)
    positive = torch.where(regions.labels > 0)[0]
    said = deltas[positive, regions.labels[positive]].to(dtype)
    return {
        "classes": Part(F.cross_entropy(logits.to(dtype), regions.labels, reduction="sum"), count),
        "boxes": Part(F.smooth_l1_loss(said, regions.targets[positive], reduction="sum", beta=BETA), count),
    }


def region_candidates(
    logits: Tensor, deltas: Tensor, proposals: Proposals, size: tuple[int, int], count: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of proposal and class.

    Args:
        logits: (B * P, K + 1).
        deltas: (B * P, K + 1, 4).
        proposals: (B, P).
        size: (H, W) of the pictures.
        count: candidates per picture, M, if there are as many pairs.
        threshold: least score of a candidate.

    Returns:
        Boxes (B, M, 4), scores and labels (B, M).
    """
    dtype, regions = proposals.boxes.dtype, proposals.boxes.shape[1]
    chances = logits.to(dtype).softmax(1)[:, 1:]
    chances = chances.reshape(-1, regions, chances.shape[1])  # (B, P, K)
    chances = torch.where(proposals.scores[..., None] >= 0, chances, 0)
    classes = chances.shape[2]
    scores, places, labels = best_scores(chances, count, threshold)
    own = taken(deltas[:, 1:].reshape(-1, regions * classes, 4), places * classes + labels)
    boxes = clipped(decode_deltas(own, taken(proposals.boxes, places), WEIGHTS), size)
    return boxes, without_small(scores, boxes, SMALLEST), labels
