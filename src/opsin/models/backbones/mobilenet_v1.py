"""MobileNet v1: every 3x3 convolution is cut in two, one that looks (per channel) and one that mixes (per pixel).

Paper: MobileNets: Efficient Convolutional Neural Networks for Mobile Vision Applications, 2017,
    https://arxiv.org/abs/1704.04861.
Implements: table 1; the width multiplier of section 3.3 (`width`), the resolution multiplier of 3.4 (any picture size
    is taken), the shallow network of table 5 (`depths=(1, 2, 2, 1, 2)`).
Differs from the paper: ReLU6 instead of ReLU, as in the authors' own code and the published weights.
Checked against: timm's mobilenetv1_100: same state-dict keys, outputs, gradients, parameter counts 4,231,976 and, at
    width 0.75 / 0.5 / 0.25, 2,585,560 / 1,331,592 / 470,072 (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; timm's published file (Apache-2.0) for mobilenetv1_100 loads unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.layers.channels import rounded_channels
from opsin.models import Classified, Feature

NAMES = ("mobilenet_v1",)
WEIGHTS_FROM = {"mobilenet_v1": "timm:mobilenetv1_100"}  # whose published file fits

CHANNELS = (64, 128, 256, 512, 1024)  # per stage; each but the first halves the picture


class SeparableConvolution(nn.Module):
    """Depthwise 3x3, then pointwise 1x1, each with batch norm and ReLU6 (figure 3, right)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.act = nn.ReLU6(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn1(self.conv_dw(x)))  # (B, in_channels, H/stride, W/stride)
        out: Tensor = self.act(self.bn2(self.conv_pw(x)))  # (B, out_channels, H/stride, W/stride)
        return out


class MobileNetV1(nn.Module):
    """Stem, five stages of separable convolutions, global average pooling, logits.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels, which are rounded to multiples of 8.
        depths: convolutions per stage.
        dropout: rate before the last layer.
    """

    head_names = ("classifier",)

    def __init__(self, num_classes: int, in_channels: int, width: float, depths: Sequence[int], dropout: float) -> None:
        super().__init__()
        if len(depths) != len(CHANNELS) or min(depths) < 1:
            raise ConfigError(f"depths = {list(depths)}; expected {len(CHANNELS)} numbers of 1 or more, one per stage.")
        channels = rounded_channels(32 * width)
        self.conv_stem = nn.Conv2d(in_channels, channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.act = nn.ReLU6(inplace=True)
        stages: list[nn.Module] = []
        self.feature_info: list[Feature] = []
        for i, (depth, wide) in enumerate(zip(depths, CHANNELS)):
            blocks = []
            for j in range(depth):
                out_channels = rounded_channels(wide * width)
                blocks.append(SeparableConvolution(channels, out_channels, 2 if i > 0 and j == 0 else 1))
                channels = out_channels
            stages.append(nn.Sequential(*blocks))
            if i > 0:
                self.feature_info.append(Feature(channels, 2 ** (i + 1)))
        self.blocks = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features after each stage but the first, finest first: (B, channels, H / stride, W / stride)."""
        x = self.act(self.bn1(self.conv_stem(images)))  # (B, 32 width, H/2, W/2)
        features = []
        for stage in self.blocks:
            x = stage(x)
            features.append(x)
        return features[1:]

    def forward(self, images: Tensor) -> Classified:
        x = self.avgpool(self.forward_pyramid(images)[-1]).flatten(1)  # (B, 1024 width)
        return Classified(self.classifier(self.dropout(x)))  # (B, K)


def mobilenet_v1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    depths: Sequence[int] = (1, 2, 2, 6, 2),
    dropout: float = 0.0,
) -> MobileNetV1:
    """Build MobileNet v1; `width` 0.75, 0.5 and 0.25 are the smaller networks of the paper."""
    return MobileNetV1(num_classes, in_channels, width, depths, dropout)
