"""SSD: boxes straight from maps of several sizes, each with default boxes of its own scale.

Paper: SSD: Single Shot MultiBox Detector, 2015, https://arxiv.org/abs/1512.02325.
Implements: SSD300 on VGG-16: conv4_3 scaled to a learned length, fc6 and fc7 as convolutions (dilated), four further blocks; maps
    38, 19, 10, 5, 3, 1 with 4, 6, 6, 6, 4, 4 default boxes a cell: 8,732; matching, hard negatives 3:1, loss. On other backbones:
    levels of stride 8, 16 and 32 as they are, and blocks of stride 2 up to six maps.
Differs from the paper: fc6 is dilated by 6 as in its code; scales .07, .15, .33, .51, .69, .87, 1.05 (its COCO model) instead of
    .2 to .9; default boxes longer than the picture are cut to its sides. As torchvision.
Checked against: torchvision 0.29: losses, gradients, outputs and detections after merging; 35,641,826 parameters with its 91
    classes (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file (BSD-3-Clause) loads unchanged, with 80 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.layers.anchors import default_boxes
from opsin.layers.default_boxes import ExtendedBackbone, MapHead, default_box_candidates, default_box_losses
from opsin.layers.fpn import Norm, with_norm
from opsin.layers.torchvision_files import adapted
from opsin.models.backbones.vgg import VGG
from opsin.models.builder import build_backbone
from opsin.models.detectors import Detector, Targets
from opsin.task import Part

NAMES = ("ssd",)

MAPS = 6
RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SCALES = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)
STEPS = {(300, 300): (8, 16, 32, 64, 100, 300)}  # of VGG's maps; the paper's, which differ from 300 / 38, ..., 300 / 3


class Raw(NamedTuple):
    """What the heads say of all default boxes."""

    logits: Tensor  # (B, N, K + 1), background first
    deltas: Tensor  # (B, N, 4)
    anchors: Tensor  # (N, 4)


class VGGTrunk(nn.Module):
    """VGG without its dense layers, and what SSD puts behind it (figure 2).

    Args:
        vgg: changed: its third pooling rounds up, so that 300 pixels give a map of 38 cells.
        image_size: (H, W); the last two blocks are not padded where the map is large enough.
    """

    def __init__(self, vgg: VGG, image_size: tuple[int, int]) -> None:
        super().__init__()
        layers = list(vgg.features)
        pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
        layers[pools[2]].ceil_mode = True  # type: ignore[assignment]
        c = vgg.feature_info[-1].channels
        self.scale_weight = nn.Parameter(torch.full((c,), 20.0))
        self.features = nn.Sequential(*layers[: pools[3]])
        dense = nn.Sequential(
            nn.MaxPool2d(3, stride=1, padding=1),
            nn.Conv2d(c, 2 * c, 3, padding=6, dilation=6),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * c, 2 * c, 1),
            nn.ReLU(inplace=True),
        )
        self.extra = nn.ModuleList([nn.Sequential(*layers[pools[3] : -1], dense)])
        padded = min(image_size) <= 256  # else the map before has 5 cells or more
        widths = [(2 * c, c // 2, c), (c, c // 4, c // 2), (c // 2, c // 4, c // 2), (c // 2, c // 4, c // 2)]
        for i, (before, inside, after) in enumerate(widths):
            stride, padding = (2, 1) if i < 2 else (1, int(padded))
            self.extra.append(_block(before, inside, after, stride, padding))
        _initialize(dense)
        _initialize(self.extra[1:])
        self.channels = [c, 2 * c, c, c // 2, c // 2, c // 2]

    def forward(self, images: Tensor) -> list[Tensor]:
        x = self.features(images)
        features = [self.scale_weight[:, None, None] * F.normalize(x)]
        for block in self.extra:
            x = block(x)
            features.append(x)
        return features


def _block(before: int, inside: int, after: int, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, inside, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(inside, after, 3, stride, padding),
        nn.ReLU(inplace=True),
    )


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)


class SSD(Detector):
    """Maps of six sizes, one prediction layer each.

    Args:
        backbone: gives six maps.
        channels: of the maps.
        num_classes: K.
        steps: pixels between default boxes of each map, by size of the picture; where it has none, they follow the map.
        candidates: kept per class and picture.
        threshold: least score of a candidate.
    """

    stride = 1
    overlap = 0.45

    def __init__(
        self,
        backbone: nn.Module,
        channels: Sequence[int],
        num_classes: int,
        steps: Mapping[tuple[int, int], Sequence[float]],
        candidates: int,
        threshold: float,
    ) -> None:
        super().__init__()
        self.num_classes, self.steps, self.candidates, self.threshold = num_classes, steps, candidates, threshold
        self.backbone = backbone
        anchors = [2 + 2 * len(ratios) for ratios in RATIOS]
        heads = [
            MapHead([nn.Conv2d(c, a * outputs, 3, padding=1) for c, a in zip(channels, anchors, strict=True)], outputs)
            for outputs in (num_classes + 1, 4)
        ]
        self.head = nn.ModuleDict({"classification_head": heads[0], "regression_head": heads[1]})
        _initialize(self.head)
        self.classifiers = {f"head.classification_head.module_list.{i}": (a, 1) for i, a in enumerate(anchors)}
        self.head_names = tuple(self.classifiers)

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Logits and deltas of all default boxes; `targets` are not looked at."""
        del targets
        features = self.backbone(images)
        size = (images.shape[-2], images.shape[-1])
        anchors = torch.cat(default_boxes(features, size, RATIOS, SCALES, self.steps.get(size)))
        return Raw(self.head["classification_head"](features), self.head["regression_head"](features), anchors)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """`classes` and `boxes`, both per matched default box."""
        return default_box_losses(*raw, targets.boxes, targets.labels)

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The best default boxes of every class."""
        return default_box_candidates(*raw, size, self.candidates, self.threshold)

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Tensors of a file of torchvision's with the classes here."""
        return adapted(state, self.state_dict(), self.classifiers, self.num_classes, background=True)


def ssd(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (300, 300),
    backbone: str = "vgg16",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    candidates: int = 400,
    threshold: float = 0.01,
) -> SSD:
    """Build SSD.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures; default boxes are shares of it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`. A VGG becomes that of the paper.
        backbone_kwargs: its keyword arguments.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen.
        candidates: kept per class and picture.
        threshold: least score of a candidate.
    """
    body, levels, info = build_backbone(backbone, backbone_kwargs or {}, in_channels, image_size, (8, 16, 32))
    body = with_norm(body, norm, norm_eps)
    if isinstance(body, VGG):
        trunk = VGGTrunk(body, image_size)
        return SSD(trunk, trunk.channels, num_classes, STEPS, candidates, threshold)
    channels = [level.channels for level in info]
    extra = []
    while len(channels) < MAPS:
        after = min(512, channels[-1])
        extra.append(_block(channels[-1], max(1, after // 2), after, 2, 1))
        channels.append(after)
        _initialize(extra[-1])
    return SSD(ExtendedBackbone(body, levels, extra), channels, num_classes, {}, candidates, threshold)
