"""RetinaNet: dense anchors on a feature pyramid, trained with a loss in which easy background hardly counts.

Paper: Focal Loss for Dense Object Detection, 2017, https://arxiv.org/abs/1708.02002.
Implements: section 4: levels P3 to P7, 9 anchors a cell (3 ratios, 3 sizes a third of an octave apart), two heads of four
    3x3 convolutions shared by all levels, sigmoid focal loss (alpha .25, gamma 2), prior .01. `retinanet_v2` has group norm
    in the heads, a GIoU loss for boxes, and P6 made from C5, as torchvision's second version and the paper.
Differs from the paper: P6 of `retinanet` comes from P5; L1 in place of smooth L1; thresholds .5 and .4 as there; an anchor
    that is the best of an object is positive however little it overlaps. As torchvision. Both terms are divided by the
    positive anchors of the whole batch, as in the paper; torchvision divides in each picture, then averages over pictures,
    which gives an object less weight where there are many. There is no output for background: torchvision's first class,
    which nothing ever has, is left out when its files are read.
Checked against: torchvision 0.29: losses, gradients, outputs and detections after merging; 34,014,999 parameters with its
    91 classes, 38,198,935 the second version (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged, with 80 classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, generalized_box_iou_loss, sigmoid_focal_loss

from opsin.layers.anchors import cell_anchors, grid_anchors
from opsin.layers.box_coding import clipped, decode_deltas, encode_deltas
from opsin.layers.candidates import best_scores, taken
from opsin.layers.fpn import Norm, PyramidBackbone, Top, with_norm
from opsin.layers.matching import IGNORED, match_by_iou
from opsin.layers.torchvision_files import adapted
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.task import Part

NAMES = ("retinanet", "retinanet_v2")

RATIOS = (0.5, 1.0, 2.0)
CLASSIFIER = "head.classification_head.cls_logits"


class Raw(NamedTuple):
    """What the heads say, per level."""

    logits: list[Tensor]  # (B, cells * A, K)
    deltas: list[Tensor]  # (B, cells * A, 4)
    anchors: list[Tensor]  # (cells * A, 4)


class Tower(nn.Module):
    """Four 3x3 convolutions and a last one, the same for every level.

    Args:
        channels: of the maps.
        outputs: values per anchor.
        anchors: A.
        name: of the last convolution.
        groups: whether group norm follows the four convolutions.
        bias: the last convolution's at the start.
    """

    def __init__(self, channels: int, outputs: int, anchors: int, name: str, groups: bool, bias: float = 0.0) -> None:
        super().__init__()

        def norm(width: int) -> nn.Module:
            return nn.GroupNorm(math.gcd(32, width // 4), width)

        self.conv = nn.Sequential(
            *(Conv2dNormActivation(channels, channels, norm_layer=norm if groups else None) for _ in range(4))
        )
        self.outputs, self.last = outputs, name
        setattr(self, name, nn.Conv2d(channels, anchors * outputs, 3, padding=1))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.constant_(getattr(self, name).bias, bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        last = getattr(self, self.last)
        maps = [last(self.conv(feature)) for feature in features]  # (B, A * outputs, H, W) each
        return [one.permute(0, 2, 3, 1).unflatten(3, (-1, self.outputs)).flatten(1, 3) for one in maps]


class RetinaNet(Detector):
    """Backbone, pyramid, two heads.

    Args:
        backbone: gives maps of `channels` channels.
        channels: of the maps.
        num_classes: K.
        octave: length of the shortest anchor, in cells of its level.
        giou: whether boxes are learned by their GIoU instead of their deltas.
        groups: whether the heads have group norm.
        candidates: kept per level and picture.
        threshold: least score of a candidate.
    """

    stride = 32
    overlap = 0.5
    head_names = (CLASSIFIER,)

    def __init__(
        self,
        backbone: PyramidBackbone,
        channels: int,
        num_classes: int,
        octave: float,
        giou: bool,
        groups: bool,
        candidates: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.giou, self.candidates, self.threshold = num_classes, giou, candidates, threshold
        sizes = [
            tuple(int(octave * stride * 2 ** (i / 3)) if i else octave * stride for i in range(3))
            for stride in backbone.strides
        ]
        self.cells = [cell_anchors(one, RATIOS) for one in sizes]
        self.backbone = backbone
        anchors = len(self.cells[0])
        prior = -math.log((1 - 0.01) / 0.01)
        self.head = nn.ModuleDict(
            {
                "classification_head": Tower(channels, num_classes, anchors, "cls_logits", groups, prior),
                "regression_head": Tower(channels, 4, anchors, "bbox_reg", groups),
            }
        )

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Logits and deltas of all anchors; `targets` are not looked at."""
        del targets
        features = self.backbone(images)
        anchors = grid_anchors(self.cells, features, (images.shape[-2], images.shape[-1]))
        return Raw(self.head["classification_head"](features), self.head["regression_head"](features), anchors)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`classes` (sigmoid focal loss) and `boxes`, both per positive anchor."""
        anchors = torch.cat(raw.anchors)
        logits, deltas = torch.cat(raw.logits, dim=1), torch.cat(raw.deltas, dim=1)
        logits, deltas = logits.to(anchors.dtype), deltas.to(anchors.dtype)
        classes, places = logits.sum() * 0, deltas.sum() * 0
        count = torch.zeros((), dtype=torch.int64, device=logits.device)
        for logit, delta, boxes, labels in zip(logits, deltas, targets.boxes, targets.labels, strict=True):
            boxes = boxes.to(anchors.dtype)
            matched = match_by_iou(boxes, anchors, 0.5, 0.4, keep_best=True)
            positive = torch.where(matched >= 0)[0]
            own = matched[positive]
            truth = torch.zeros_like(logit)
            truth[positive, labels[own]] = 1
            counted = matched != IGNORED
            classes = classes + sigmoid_focal_loss(logit[counted], truth[counted], reduction="sum")
            places = places + self._box_loss(delta[positive], anchors[positive], boxes[own])
            count = count + len(positive)
        return {"classes": Part(classes, count), "boxes": Part(places, count)}

    def _box_loss(self, deltas: Tensor, anchors: Tensor, boxes: Tensor) -> Tensor:
        if self.giou:
            loss: Tensor = generalized_box_iou_loss(decode_deltas(deltas, anchors), boxes, reduction="sum")
            return loss
        return F.l1_loss(deltas, encode_deltas(boxes, anchors), reduction="sum")

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best pairs of anchor and class of every level."""
        found = []
        for logits, deltas, anchors in zip(raw.logits, raw.deltas, raw.anchors, strict=True):
            scores, places, labels = best_scores(logits.to(anchors.dtype).sigmoid(), self.candidates, self.threshold)
            boxes = decode_deltas(taken(deltas, places), anchors[places])
            found.append((clipped(boxes, size), scores, labels))
        boxes, scores, labels = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
        return boxes, scores, labels

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Tensors of a file of torchvision's with the classes and names here."""
        classifiers = {CLASSIFIER: (len(self.cells[0]), 1)}
        return adapted(state, self.state_dict(), classifiers, self.num_classes, background=False)


def _build(
    num_classes: int,
    in_channels: int,
    image_size: tuple[int, int],
    backbone: str,
    backbone_kwargs: Mapping[str, Any] | None,
    norm: Norm,
    norm_eps: float | None,
    channels: int,
    octave: float,
    candidates: int,
    threshold: float,
    second: bool,
) -> RetinaNet:
    body, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (8, 16, 32))
    top: Top = "c5" if second else "p5"
    pyramid = PyramidBackbone(
        with_norm(body, norm, norm_eps),
        levels,
        [one.channels for one in info],
        [one.stride for one in info],
        channels,
        top,
    )
    return RetinaNet(pyramid, channels, num_classes, octave, second, second, candidates, threshold)


def retinanet(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    octave: float = 4,
    candidates: int = 1000,
    threshold: float = 0.05,
) -> RetinaNet:
    """Build RetinaNet.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), for backbones that have to know it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen; 0 for torchvision's first files.
        channels: of the pyramid and the heads.
        octave: length of a level's shortest anchor, in its cells: smaller for small objects.
        candidates: kept per level and picture.
        threshold: least score of a candidate.
    """
    return _build(
        num_classes, in_channels, image_size, backbone, backbone_kwargs, norm, norm_eps, channels, octave, candidates,
        threshold, second=False,
    )  # fmt: skip


def retinanet_v2(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (640, 640),
    backbone: str = "resnet50",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    channels: int = 256,
    octave: float = 4,
    candidates: int = 1000,
    threshold: float = 0.05,
) -> RetinaNet:
    """Build RetinaNet's second version: group norm in the heads, GIoU for boxes. Arguments as of `retinanet`."""
    return _build(
        num_classes, in_channels, image_size, backbone, backbone_kwargs, norm, norm_eps, channels, octave, candidates,
        threshold, second=True,
    )  # fmt: skip
