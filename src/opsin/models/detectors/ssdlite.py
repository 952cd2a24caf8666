"""SSDLite: SSD whose blocks and heads are separable convolutions, on a MobileNet: a detector for phones.

Paper: MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, https://arxiv.org/abs/1801.04381, section 6.2; Searching for
    MobileNetV3, 2019, https://arxiv.org/abs/1905.02244, section 6.3.
Implements: on MobileNet v3: the first map is the expansion of the first block of stride 32 (so of stride 16), the second the last
    layer before pooling; four further blocks; six default boxes a cell, scales .2 to .95; at 320 x 320 maps 20, 10, 5, 3, 2, 1. On
    other backbones: levels of stride 16 and 32 and blocks up to six maps.
Differs from the paper: 2 and 3 are the ratios of every map; batch norm remembers with momentum .03; only blocks and heads start
    from a deviation of .03. As torchvision but for the last.
Checked against: torchvision 0.29: losses, gradients, outputs and detections after merging; 3,440,060 parameters with its 91
    classes (tests/oracles/test_detectors_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file (BSD-3-Clause) loads unchanged, with 80 classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from opsin.errors import ConfigError
from opsin.layers.anchors import default_boxes
from opsin.layers.default_boxes import ExtendedBackbone, MapHead, default_box_candidates, default_box_losses
from opsin.layers.fpn import Norm, with_norm
from opsin.layers.torchvision_files import adapted
from opsin.models import ModelSpec
from opsin.models.backbones.mobilenet_v3 import InvertedResidual, MobileNetV3
from opsin.models.builder import build_backbone, build_model
from opsin.models.detectors import Detector, Targets
from opsin.task import Part

NAMES = ("ssdlite",)

MAPS = 6
RATIOS = ((2, 3),) * MAPS
SCALES = (0.2, 0.35, 0.5, 0.65, 0.8, 0.95, 1.0)
MOMENTUM = 0.03

_convolution = partial(
    Conv2dNormActivation,
    norm_layer=partial(nn.BatchNorm2d, eps=0.001, momentum=MOMENTUM),
    activation_layer=nn.ReLU6,
)


class Raw(NamedTuple):
    """What the heads say of all default boxes."""

    logits: Tensor  # (B, N, K + 1), background first
    deltas: Tensor  # (B, N, 4)
    anchors: Tensor  # (N, 4)


class MobileTrunk(nn.Module):
    """MobileNet v3 cut in two inside its first block of stride 32, and further blocks.

    Args:
        net: its layers are taken over; `extra` is filled by who builds it.
    """

    def __init__(self, net: MobileNetV3) -> None:
        super().__init__()
        layers = list(net.features)
        cut = len(layers) - 1
        while not (isinstance(layers[cut], InvertedResidual) and _stride(layers[cut]) == 2):
            cut -= 1
        block = layers[cut].block
        self.features = nn.Sequential(
            nn.Sequential(*layers[:cut], block[0]),  # type: ignore[index, arg-type]
            nn.Sequential(block[1:], *layers[cut + 1 :]),  # type: ignore[index, arg-type]
        )
        self.extra = nn.ModuleList()
        expansion, last = block[0][0], net.features[-1][0]  # type: ignore[index]
        self.channels = [expansion.out_channels, last.out_channels]  # type: ignore[union-attr]

    def forward(self, images: Tensor) -> list[Tensor]:
        x, features = images, []
        for block in (*self.features, *self.extra):
            x = block(x)
            features.append(x)
        return features


def _stride(block: nn.Module) -> int:
    return max(layer.stride[0] for layer in block.modules() if isinstance(layer, nn.Conv2d))


def _block(before: int, after: int) -> nn.Sequential:
    inside = after // 2
    return nn.Sequential(
        _convolution(before, inside, kernel_size=1),
        _convolution(inside, inside, kernel_size=3, stride=2, groups=inside),
        _convolution(inside, after, kernel_size=1),
    )


def _prediction(channels: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        _convolution(channels, channels, kernel_size=3, groups=channels), nn.Conv2d(channels, outputs, 1)
    )


def _initialize(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.03)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class SSDLite(Detector):
    """Maps of six sizes, one prediction layer each.

    Args:
        backbone: gives six maps.
        channels: of the maps.
        num_classes: K.
        candidates: kept per class and picture.
        threshold: least score of a candidate.
    """

    stride = 1
    overlap = 0.55

    def __init__(
        self, backbone: nn.Module, channels: Sequence[int], num_classes: int, candidates: int, threshold: float
    ) -> None:
        super().__init__()
        self.num_classes, self.candidates, self.threshold = num_classes, candidates, threshold
        self.backbone = backbone
        anchors = 2 + 2 * len(RATIOS[0])
        heads = [
            MapHead([_prediction(c, anchors * outputs) for c in channels], outputs) for outputs in (num_classes + 1, 4)
        ]
        self.head = nn.ModuleDict({"classification_head": heads[0], "regression_head": heads[1]})
        _initialize(self.head)
        self.classifiers = {f"head.classification_head.module_list.{i}.1": (anchors, 1) for i in range(len(channels))}
        self.head_names = tuple(self.classifiers)

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """Logits and deltas of all default boxes; `targets` are not looked at."""
        del targets
        features = self.backbone(images)
        anchors = torch.cat(default_boxes(features, (images.shape[-2], images.shape[-1]), RATIOS, SCALES))
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


def ssdlite(
    num_classes: int = 80,
    in_channels: int = 3,
    image_size: tuple[int, int] = (320, 320),
    backbone: str = "mobilenet_v3_large",
    backbone_kwargs: Mapping[str, Any] | None = None,
    norm: Norm = "batch",
    norm_eps: float | None = None,
    widths: Sequence[int] = (512, 256, 256, 128),
    candidates: int = 300,
    threshold: float = 0.001,
) -> SSDLite:
    """Build SSDLite.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures, for backbones that have to know it; default boxes are shares of it.
        backbone: a network with a feature pyramid: a registered name or `timm/NAME`.
        backbone_kwargs: its keyword arguments; MobileNet v3 has `reduced_tail=True` unless they say otherwise.
        norm: "frozen" makes the backbone's batch norms constants.
        norm_eps: their eps, if frozen.
        widths: channels of the further maps; the last ones where the backbone gives fewer than two.
        candidates: kept per class and picture.
        threshold: least score of a candidate.
    """
    given = dict(backbone_kwargs or {})
    if backbone in ("mobilenet_v3_small", "mobilenet_v3_large"):
        net = build_model(ModelSpec(backbone, {"reduced_tail": True, **given}, in_channels, 2, image_size), check=False)
        if not isinstance(net, MobileNetV3):
            raise ConfigError(f"backbone = '{backbone}' was replaced by {type(net).__name__}; expected a MobileNetV3.")
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = MOMENTUM
        with_norm(net, norm, norm_eps)
        mobile = MobileTrunk(net)
        trunk: MobileTrunk | ExtendedBackbone = mobile
        channels = list(mobile.channels)
    else:
        body, levels, info = build_backbone(backbone, given, in_channels, image_size, (16, 32))
        trunk = ExtendedBackbone(with_norm(body, norm, norm_eps), levels, [])
        channels = [level.channels for level in info]
    for after in (*widths, *(widths[-1],) * MAPS)[: MAPS - len(channels)]:
        trunk.extra.append(_block(channels[-1], after))
        channels.append(after)
    _initialize(trunk.extra)
    return SSDLite(trunk, channels, num_classes, candidates, threshold)
