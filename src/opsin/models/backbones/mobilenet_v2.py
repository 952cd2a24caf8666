"""MobileNet v2: blocks widen, look, and narrow again without an activation; shortcuts join the narrow ends.

Paper: MobileNetV2: Inverted Residuals and Linear Bottlenecks, 2018, https://arxiv.org/abs/1801.04381.
Implements: table 2, with the width multiplier of section 4 (the last convolution is not made narrower than 1280).
Differs from the paper: nothing known.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients, parameter count 3,504,872
    (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn

from opsin.layers.channels import rounded_channels
from opsin.models import Classified, Feature

NAMES = ("mobilenet_v2",)

# Table 2: expansion, output channels, blocks, stride of the first block
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def _convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """1x1 to `expansion` times the channels, depthwise 3x3, linear 1x1, and a shortcut if the size stays (figure 4)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.shortcut = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *([] if expansion == 1 else [_convolution(in_channels, hidden, 1)]),
            _convolution(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, out_channels, 1, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)  # (B, out_channels, H/stride, W/stride)
        return x + out if self.shortcut else out


class MobileNetV2(nn.Module):
    """Stem, inverted residuals, a wide 1x1 convolution, global average pooling, logits.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels, which are rounded to multiples of 8.
        last_channels: of the last convolution, times width where that is above 1.
        dropout: rate before the last layer.
    """

    head_names = ("classifier",)

    def __init__(self, num_classes: int, in_channels: int, width: float, last_channels: int, dropout: float) -> None:
        super().__init__()
        channels, stride = rounded_channels(32 * width), 2
        layers: list[nn.Module] = [_convolution(in_channels, channels, 3, stride=2)]
        levels: dict[int, tuple[int, Feature]] = {}  # by stride: the last layer with it
        for expansion, wide, depth, first_stride in STAGES:
            stride *= first_stride
            for j in range(depth):
                out_channels = rounded_channels(wide * width)
                layers.append(InvertedResidual(channels, out_channels, first_stride if j == 0 else 1, expansion))
                channels = out_channels
            levels[stride] = (len(layers) - 1, Feature(channels, stride))
        last = rounded_channels(last_channels * max(1.0, width))
        layers.append(_convolution(channels, last, 1))
        self.features = nn.Sequential(*layers)
        kept = [level for stride, level in levels.items() if stride >= 4]
        self.level_ends = tuple(end for end, _ in kept)
        self.feature_info = [feature for _, feature in kept]
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(last, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
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
        x = self.features[-1](self.forward_pyramid(images)[-1])  # (B, 1280, H/32, W/32)
        return Classified(self.classifier(self.avgpool(x).flatten(1)))  # (B, K)


def mobilenet_v2(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    last_channels: int = 1280,
    dropout: float = 0.2,
) -> MobileNetV2:
    """Build MobileNet v2; the paper's widths are 0.35, 0.5, 0.75, 1 and 1.4."""
    return MobileNetV2(num_classes, in_channels, width, last_channels, dropout)
