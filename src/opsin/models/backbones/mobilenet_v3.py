"""MobileNet v3: inverted residuals whose sizes were searched for, with squeeze-and-excitation and hard swish.

Paper: Searching for MobileNetV3, 2019, https://arxiv.org/abs/1905.02244.
Implements: tables 1 (large) and 2 (small), the efficient last stage of figure 5, with a width multiplier.
Differs from the paper: the squeeze has a quarter of the expanded channels rounded to a multiple of 8; the dropout rate
    0.2 as the published weights were trained.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients, parameter counts 2,542,856 (small) and
    5,483,032 (large) (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from opsin.layers.channels import rounded_channels
from opsin.models import Classified, Feature

NAMES = ("mobilenet_v3_small", "mobilenet_v3_large")


class Row(NamedTuple):
    """One block as the paper's tables print it."""

    kernel: int
    expanded: int
    out: int
    squeeze: bool
    hard_swish: bool
    stride: int


LARGE = (
    Row(3, 16, 16, False, False, 1),
    Row(3, 64, 24, False, False, 2),
    Row(3, 72, 24, False, False, 1),
    Row(5, 72, 40, True, False, 2),
    Row(5, 120, 40, True, False, 1),
    Row(5, 120, 40, True, False, 1),
    Row(3, 240, 80, False, True, 2),
    Row(3, 200, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 184, 80, False, True, 1),
    Row(3, 480, 112, True, True, 1),
    Row(3, 672, 112, True, True, 1),
    Row(5, 672, 160, True, True, 2),
    Row(5, 960, 160, True, True, 1),
    Row(5, 960, 160, True, True, 1),
)
SMALL = (
    Row(3, 16, 16, True, False, 2),
    Row(3, 72, 24, False, False, 2),
    Row(3, 88, 24, False, False, 1),
    Row(5, 96, 40, True, True, 2),
    Row(5, 240, 40, True, True, 1),
    Row(5, 240, 40, True, True, 1),
    Row(5, 120, 48, True, True, 1),
    Row(5, 144, 48, True, True, 1),
    Row(5, 288, 96, True, True, 2),
    Row(5, 576, 96, True, True, 1),
    Row(5, 576, 96, True, True, 1),
)

_norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.01)


def _convolution(
    in_channels: int,
    out_channels: int,
    kernel: int,
    activation: type[nn.ReLU] | type[nn.Hardswish] | None,
    stride: int = 1,
    groups: int = 1,
) -> nn.Sequential:
    """Convolution, batch norm, and the activation if there is one."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        _norm(out_channels),
        *([] if activation is None else [activation(inplace=True)]),
    )


class SqueezeExcitation(nn.Module):
    """Scales each channel by a number in [0, 1] that depends on the means of all channels (section 5.3)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))  # (B, channels, 1, 1)
        out: Tensor = self.scale_activation(scale) * x
        return out


class InvertedResidual(nn.Module):
    """1x1 to more channels, depthwise k x k, squeeze-and-excitation, linear 1x1, and a shortcut (figure 4)."""

    def __init__(self, in_channels: int, expanded: int, out_channels: int, row: Row) -> None:
        super().__init__()
        activation = nn.Hardswish if row.hard_swish else nn.ReLU
        layers: list[nn.Module] = []
        if expanded != in_channels:
            layers.append(_convolution(in_channels, expanded, 1, activation))
        layers.append(_convolution(expanded, expanded, row.kernel, activation, row.stride, groups=expanded))
        if row.squeeze:
            layers.append(SqueezeExcitation(expanded, rounded_channels(expanded // 4)))
        layers.append(_convolution(expanded, out_channels, 1, None))
        self.block = nn.Sequential(*layers)
        self.shortcut = row.stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(x)  # (B, out_channels, H/stride, W/stride)
        return x + out if self.shortcut else out


class MobileNetV3(nn.Module):
    """Stem, inverted residuals, a 1x1 convolution, global average pooling, a dense layer, logits.

    Args:
        rows: the blocks.
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels, which are rounded to multiples of 8.
        hidden: width of the dense layer before the logits, times `width`.
        dropout: rate before the last layer.
    """

    head_names = ("classifier.3",)

    def __init__(
        self, rows: Sequence[Row], num_classes: int, in_channels: int, width: float, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        channels, stride = rounded_channels(16 * width), 2
        layers: list[nn.Module] = [_convolution(in_channels, channels, 3, nn.Hardswish, stride=2)]
        levels: dict[int, tuple[int, Feature]] = {}  # by stride: the last layer with it
        for row in rows:
            expanded, out_channels = rounded_channels(row.expanded * width), rounded_channels(row.out * width)
            layers.append(InvertedResidual(channels, expanded, out_channels, row))
            channels, stride = out_channels, stride * row.stride
            levels[stride] = (len(layers) - 1, Feature(channels, stride))
        layers.append(_convolution(channels, 6 * channels, 1, nn.Hardswish))
        self.features = nn.Sequential(*layers)
        kept = [level for stride, level in levels.items() if stride >= 4]
        self.level_ends = tuple(end for end, _ in kept)
        self.feature_info = [feature for _, feature in kept]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, rounded_channels(hidden * width)),
            nn.Hardswish(inplace=True),
            nn.Dropout(dropout),
            nn.Linear(rounded_channels(hidden * width), num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features before each halving from stride 4 on, and before the last convolution; finest first."""
        x, features = images, []
        for i, layer in enumerate(self.features[:-1]):
            x = layer(x)
            if i in self.level_ends:
                features.append(x)
        return features

    def forward(self, images: Tensor) -> Classified:
        x = self.features[-1](self.forward_pyramid(images)[-1])  # (B, 6 * channels, H/32, W/32)
        return Classified(self.classifier(self.avgpool(x).flatten(1)))  # (B, K)


def mobilenet_v3_small(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    hidden: int = 1024,
    dropout: float = 0.2,
    reduced_tail: bool = False,
) -> MobileNetV3:
    """Build MobileNet v3 small (table 2); `reduced_tail` halves the channels of stride 32, for detection (table 6)."""
    return MobileNetV3(_tail(SMALL, reduced_tail), num_classes, in_channels, width, hidden, dropout)


def mobilenet_v3_large(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    hidden: int = 1280,
    dropout: float = 0.2,
    reduced_tail: bool = False,
) -> MobileNetV3:
    """Build MobileNet v3 large (table 1); `reduced_tail` halves the channels of stride 32, for detection (table 6)."""
    return MobileNetV3(_tail(LARGE, reduced_tail), num_classes, in_channels, width, hidden, dropout)


def _tail(rows: Sequence[Row], reduced: bool) -> Sequence[Row]:
    if not reduced:
        return rows
    first = rows[-3]._replace(out=rows[-3].out // 2)
    return (*rows[:-3], first, *(row._replace(expanded=row.expanded // 2, out=row.out // 2) for row in rows[-2:]))
