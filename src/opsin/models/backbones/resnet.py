"""ResNet: each block adds a correction to its input, so that very deep networks still train.

Paper: Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385.
Implements: table 1, 18, 34 and 50 layers, projection shortcuts where the size changes (option B); the 3x3 stem without
    pooling is that of section 4.2 (CIFAR-10) in front of the four ImageNet stages.
Differs from the paper: a bottleneck strides in its 3x3 convolution, not in the first 1x1 ("ResNet v1.5", as torchvision
    and the published weights do); `zero_init_residual` (Goyal et al., 2017, section 5.1) starts blocks as the identity.
Checked against: torchvision 0.29: same state-dict keys, outputs, input gradients and parameter counts
    11,689,512 / 21,797,672 / 25,557,032 (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models import Classified, Feature

NAMES = ("resnet18", "resnet34", "resnet50")

Stem = Literal["imagenet", "cifar"]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left)."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _projection(in_channels, channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalization before the addition."""
        return self.bn2

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        out: Tensor = self.relu(x + shortcut)  # (B, channels, H/stride, W/stride)
        return out


class Bottleneck(nn.Module):
    """1x1 to fewer channels, 3x3, 1x1 to four times as many, and a shortcut (figure 5, right)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _projection(in_channels, out_channels, stride)

    @property
    def last_norm(self) -> nn.BatchNorm2d:
        """The normalization before the addition."""
        return self.bn3

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        out: Tensor = self.relu(x + shortcut)  # (B, 4 * channels, H/stride, W/stride)
        return out


def _projection(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


class ResNet(nn.Module):
    """Stem, four stages, global average pooling, logits.

    Args:
        block: BasicBlock or Bottleneck.
        depths: blocks per stage.
        num_classes: K.
        in_channels: C of the pictures.
        stem: "imagenet" (7x7 stride 2 and pooling: stride 32 in all) or "cifar" (3x3 stride 1: stride 8 in all).
        width: channels of the first stage; each later stage doubles them.
        zero_init_residual: start every block as the identity.
    """

    head_names = ("fc",)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int,
        stem: Stem,
        width: int,
        zero_init_residual: bool,
    ) -> None:
        super().__init__()
        if stem not in ("imagenet", "cifar"):
            raise ConfigError(f"stem = '{stem}'; expected 'imagenet' or 'cifar'.")
        if stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
            self.maxpool: nn.Module = nn.MaxPool2d(3, stride=2, padding=1)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
            self.maxpool = nn.Identity()
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        channels, stride = width, 4 if stem == "imagenet" else 1
        self.feature_info: list[Feature] = []
        for i, depth in enumerate(depths):
            first_stride = 1 if i == 0 else 2
            blocks = []
            for j in range(depth):
                blocks.append(block(channels, width * 2**i, first_stride if j == 0 else 1))
                channels = width * 2**i * block.expansion
            stages.append(nn.Sequential(*blocks))
            stride *= first_stride
            self.feature_info.append(Feature(channels, stride))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        self._initialize(zero_init_residual)

    def _initialize(self, zero_init_residual: bool) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
                nn.init.zeros_(module.last_norm.weight)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features after each stage, finest first: (B, channels, H / stride, W / stride) as in `feature_info`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, width, H/4, W/4), or (B, width, H, W)
        features = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
            features.append(x)
        return features

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1]
        x = self.avgpool(x).flatten(1)  # (B, channels)
        return Classified(self.fc(x))  # (B, K)


def resnet18(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """Build ResNet-18: basic blocks 2-2-2-2."""
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, in_channels, stem, width, zero_init_residual)


def resnet34(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """Build ResNet-34: basic blocks 3-4-6-3."""
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, in_channels, stem, width, zero_init_residual)


def resnet50(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
) -> ResNet:
    """Build ResNet-50: bottleneck blocks 3-4-6-3."""
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, in_channels, stem, width, zero_init_residual)
