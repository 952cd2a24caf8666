"""FCOS: no anchors; every cell inside an object says how far the object's four sides are.

Paper: FCOS: Fully Convolutional One-Stage Object Detection, 2019, https://arxiv.org/abs/1904.01355; A simple and strong
    anchor-free object detector, 2020, https://arxiv.org/abs/2006.09214.
Implements: the second paper: levels P3 to P7, two heads of four 3x3 convolutions with group norm, center sampling (radius 1.5
    strides), center-ness beside the box head, focal loss, GIoU loss; an object belongs to the level whose range has its
    farthest side ((0, 64), (64, 128), ..., (512, inf)), a cell in several objects to the smallest one.
Differs from the paper: distances in strides through a ReLU in place of an exponential with a learned scale; a cell's point is
    its upper left corner, not its center; the score is the root of class times center-ness; boxes and center-ness are
    divided by the positive cells instead of being weighted by center-ness. As torchvision. There is no output for
    background: torchvision's first class, which nothing ever has, is left out when its files are read.
Checked against: torchvision 0.29: losses, gradients, outputs and detections after merging; 32,269,600 parameters with its 91
    classes (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file (BSD-3-Clause) loads unchanged, with 80 classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from opsin.layers.anchors import cell_anchors, grid_anchors
from opsin.layers.box_coding import clipped, decode_distances, encode_distances
from opsin.layers.candidates import best_scores, taken
from opsin.layers.fpn import Norm, PyramidBackbone, with_norm
from opsin.layers.matching import BACKGROUND
from opsin.layers.torchvision_files import adapted
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.task import Part

NAMES = ("fcos",)

CLASSIFIER = "head.classification_head.cls_logits"


class Raw(NamedTuple):
    """What the heads say, per level; a cell stands as a square box of its stride's length."""

    logits: list[Tensor]  # (B, cells, K)
    distances: list[Tensor]  # (B, cells, 4), in strides
    centerness: list[Tensor]  # (B, cells, 1), before the sigmoid
    cells: list[Tensor]  # (cells, 4)


class Tower(nn.Module):
    """Four 3x3 convolutions with group norm, then one convolution for each kind of output.

    Args:
        channels: of the maps.
        outputs: names and channels of the last convolutions.
    """

    def __init__(self, channels: int, outputs: Mapping[str, int]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(4):
            groups = nn.GroupNorm(math.gcd(32, channels // 4), channels)
            layers += [nn.Conv2d(channels, channels, 3, padding=1), groups, nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.names = tuple(outputs)
        for name, count in outputs.items():
            setattr(self, name, nn.Conv2d(channels, count, 3, padding=1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each kind of output, (B, cells, channels) per level."""
        maps = [self.conv(feature) for feature in features]
        return [[getattr(self, name)(one).flatten(2).transpose(1, 2) for one in maps] for name in self.names]


class FCOS(Detector):
    """Backbone, pyramid, two heads.

    Args:
        backbone: gives maps of `channels` channels.
        channels: of the maps.
        num_classes: K.
        radius: of center sampling, in strides.
        candidates: kept per level and picture.
        threshold: least score of a candidate.
    """

    stride = 32
    overlap = 0.6
    head_names = (CLASSIFIER,)

    def __init__(
        self,
        backbone: PyramidBackbone,
        channels: int,
        num_classes: int,
        radius: float,
        candidates: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.radius, self.candidates, self.threshold = num_classes, radius, candidates, threshold
        self.cells = [cell_anchors([stride], [1.0]) for stride in backbone.strides]
        self.backbone = backbone
        classifier = Tower(channels, {"cls_logits": num_classes})
        nn.init.constant_(classifier.cls_logits.bias, -math.log((1 - 0.01) / 0.01))  # type: ignore[union-attr, arg-type]
        regressor = Tower(channels, {"bbox_reg": 4, "bbox_ctrness": 1})
        self.head = nn.ModuleDict({"classification_head": classifier, "regression_head": regressor})

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Logits, distances and center-ness of all cells; `targets` are not looked at."""
        del targets
        features = self.backbone(images)
        (logits,) = self.head["classification_head"](features)
        distances, centerness = self.head["regression_head"](features)
        cells = grid_anchors(self.cells, features, (images.shape[-2], images.shape[-1]))
        return Raw(logits, [F.relu(one) for one in distances], centerness, cells)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`classes` (sigmoid focal loss), `boxes` (GIoU) and `centerness`, each per positive cell."""
        cells = torch.cat(raw.cells)
        logits, distances, centerness = (
            torch.cat(parts, dim=1).to(cells.dtype) for parts in (raw.logits, raw.distances, raw.centerness)
        )
        truth, chosen, goals = torch.zeros_like(logits), [], []
        for i, (boxes, labels) in enumerate(zip(targets.boxes, targets.labels, strict=True)):
            boxes = boxes.to(cells.dtype)
            matched = self._match(boxes, raw.cells)
            positive = torch.where(matched >= 0)[0]
            truth[i, positive, labels[matched[positive]]] = 1
            chosen.append(torch.stack((torch.full_like(positive, i), positive)))
            goals.append(boxes[matched[positive]])
        picture, place = torch.cat(chosen, dim=1)
        goal, count = torch.cat(goals), len(place)
        found = decode_distances(distances[picture, place], cells[place])
        sides = encode_distances(goal, cells[place]).reshape(-1, 2, 2)  # (left, top), (right, bottom)
        central = (sides.amin(1) / sides.amax(1)).prod(1).sqrt()
        said = centerness[picture, place, 0]
        return {
            "classes": Part(sigmoid_focal_loss(logits, truth, reduction="sum"), count),
            "boxes": Part(generalized_box_iou_loss(found, goal, reduction="sum"), count),
            "centerness": Part(F.binary_cross_entropy_with_logits(said, central, reduction="sum"), count),
        }

    def _match(self, boxes: Tensor, levels: Sequence[Tensor]) -> Tensor:
        """The object (or BACKGROUND) of every cell, (cells,)."""
        cells = torch.cat(list(levels))
        if not len(boxes):
            return torch.full((len(cells),), BACKGROUND, dtype=torch.int64, device=cells.device)
        stride = cells[:, 2] - cells[:, 0]
        least, most = stride * 4, stride * 8
        least[: len(levels[0])] = 0
        most[len(cells) - len(levels[-1]) :] = torch.inf
        point, center = (cells[:, :2] + cells[:, 2:]) / 2, (boxes[:, :2] + boxes[:, 2:]) / 2
        near = (point[:, None] - center).abs().amax(2) < self.radius * stride[:, None]  # (cells, M)
        sides = torch.cat((point[:, None] - boxes[:, :2], boxes[:, 2:] - point[:, None]), dim=2)
        farthest = sides.amax(2)
        fits = near & (sides.amin(2) > 0) & (farthest > least[:, None]) & (farthest < most[:, None])
        area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
        smallest, matched = torch.where(fits, area, torch.inf).min(1)
        return torch.where(smallest.isfinite(), matched, BACKGROUND)

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of cell and class of every level."""
        found = []
        for logits, distances, centerness, cells in zip(*raw, strict=True):
            score = (logits.to(cells.dtype).sigmoid() * centerness.to(cells.dtype).sigmoid()).sqrt()
            scores, places, labels = best_scores(score, self.candidates, self.threshold)
            boxes = decode_distances(taken(distances, places), cells[places])
            found.append((clipped(boxes, size), scores, labels))
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return boxes, scores, labels

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Tensors of a file of torchvision's with the classes and names here."""
        return adapted(state, self.state_dict(), {CLASSIFIER: (1, 1)}, self.num_classes, background=False)


def fcos(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    radius: float = 1.5,
    candidates: int = 1000,
    threshold: float = 0.2,
) -> FCOS:
    """Build FCOS.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen.
        channels: of the pyramid and the heads.
        radius: of center sampling, in strides.
        candidates: kept per level and picture.
        threshold: least score of a candidate.
    """
    body, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (8, 16, 32))
    pyramid = PyramidBackbone(
        with_norm(body, norm, norm_eps),
        levels,
        [one.channels for one in info],
        [one.stride for one in info],
        channels,
        "p5",
    )
    return FCOS(pyramid, channels, num_classes, radius, candidates, threshold)
