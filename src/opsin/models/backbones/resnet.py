"""ResNet: each block adds a correction to its input, so that very deep networks still train.

Paper: Deep Residual Learning for Image Recognition, 2015, https://arxiv.org/abs/1512.03385; ResNeXt: Aggregated Residual
    Transformations for Deep Neural Networks, 2016, https://arxiv.org/abs/1611.05431; wide: Wide Residual Networks, 2016,
    https://arxiv.org/abs/1605.07146; vd: Bag of Tricks for Image Classification, 2018, https://arxiv.org/abs/1812.01187.
Implements: table 1, 18, 34, 50, 101 and 152 layers, projection shortcuts where the size changes (option B); the 3x3 stem
    without pooling is that of section 4.2 (CIFAR-10) in front of the four ImageNet stages. ResNeXt (32x4d, 32x8d,
    64x4d): the 3x3 convolution of a bottleneck has that many groups of that many channels. Wide (x2): bottlenecks have
    twice the channels inside, the same outside. vd (ResNet-D of section 4.2, figure 2, as PaddleClas names it): three 3x3
    convolutions in the stem, shortcuts that halve by average pooling before a 1x1 convolution.
Differs from the paper: a bottleneck strides in its 3x3 convolution, not in the first 1x1 ("ResNet v1.5", as torchvision
    and the published weights do); `zero_init_residual` (Goyal et al., 2017, section 5.1) starts blocks as the identity.
    Initialization after He et al., 2015 (fan out), as in torchvision. The first block of 18 and 34 layers vd projects its
    shortcut although nothing changes its size, as PaddleClas and the RT-DETR files have it.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients and parameter counts 11,689,512 / 21,797,672 /
    25,557,032 / 44,549,160 / 60,192,808, ResNeXt 25,028,904 / 88,791,336 / 83,455,272, wide 68,883,240 / 126,886,696
    (tests/oracles/test_models_torchvision.py); vd: the backbones of RT-DETRv2 in transformers and resnet50d of timm
    (tests/oracles/test_rt_detr.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models import Classified, Feature

NAMES = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnet18_vd",
    "resnet34_vd",
    "resnet50_vd",
    "resnet101_vd",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)

Stem = Literal["imagenet", "cifar", "deep"]
STEMS = ("imagenet", "cifar", "deep")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (figure 5, left); `pooled` halves the shortcut by average pooling."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int, pooled: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride, pooled)

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
    """1x1 to fewer channels, 3x3, 1x1 to the block's channels, and a shortcut (figure 5, right).

    Args:
        in_channels: channels that the block gets.
        channels: the stage's width; the block gives four times as many.
        stride: of the 3x3 convolution.
        groups: groups of the 3x3 convolution.
        widening: channels of the 3x3 convolution, in units of `channels`.
        pooled: halve the shortcut by average pooling.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        groups: int = 1,
        widening: float = 1.0,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        out_channels = channels * self.expansion
        inside = round(channels * widening)
        self.conv1 = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside)
        self.conv2 = nn.Conv2d(inside, inside, 3, stride, padding=1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(inside)
        self.conv3 = nn.Conv2d(inside, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, out_channels, stride, pooled)

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


def _shortcut(in_channels: int, out_channels: int, stride: int, pooled: bool) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return _projection(in_channels, out_channels, stride, pooled)


def _projection(in_channels: int, out_channels: int, stride: int, pooled: bool) -> nn.Sequential:
    norm = nn.BatchNorm2d(out_channels)
    if not pooled:
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm)
    pool = nn.AvgPool2d(2, stride, ceil_mode=True) if stride > 1 else nn.Identity()
    return nn.Sequential(pool, nn.Conv2d(in_channels, out_channels, 1, bias=False), norm)


def _deep_stem(in_channels: int, width: int) -> nn.Sequential:
    half = width // 2
    return nn.Sequential(
        nn.Conv2d(in_channels, half, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, half, 3, padding=1, bias=False),
        nn.BatchNorm2d(half),
        nn.ReLU(inplace=True),
        nn.Conv2d(half, width, 3, padding=1, bias=False),
    )


class ResNet(nn.Module):
    """Stem, four stages, global average pooling, logits.

    Args:
        block: makes a block of (in_channels, channels, stride): BasicBlock or Bottleneck.
        num_classes: K.
        in_channels: C of the pictures.
        stem: "imagenet" (7x7 stride 2 and pooling: stride 32 in all), "deep" (three 3x3 in its place) or "cifar" (3x3
            stride 1: stride 8 in all).
        width: channels of the first stage; each later stage doubles them.
        zero_init_residual: start every block as the identity.
        depths: blocks per stage.
        project_first: give the first block of the first stage a projection even where its size does not change.
    """

    head_names = ("fc",)

    def __init__(
        self,
        block: Callable[[int, int, int], BasicBlock | Bottleneck],
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: Stem = "imagenet",
        width: int = 64,
        zero_init_residual: bool = False,
        *,
        depths: Sequence[int],
        project_first: bool = False,
    ) -> None:
        super().__init__()
        if stem not in STEMS:
            raise ConfigError(f"stem = '{stem}'; expected one of {', '.join(STEMS)}.")
        if stem == "deep":
            self.conv1: nn.Module = _deep_stem(in_channels, width)
        elif stem == "imagenet":
            self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        else:
            self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.maxpool: nn.Module = nn.Identity() if stem == "cifar" else nn.MaxPool2d(3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        stages = []
        channels, stride = width, 1 if stem == "cifar" else 4
        self.feature_info: list[Feature] = []
        for i, depth in enumerate(depths):
            first_stride = 1 if i == 0 else 2
            blocks: list[BasicBlock | Bottleneck] = []
            for j in range(depth):
                blocks.append(block(channels, width * 2**i, first_stride if j == 0 else 1))
                channels = width * 2**i * blocks[-1].expansion
            if i == 0 and project_first and blocks[0].downsample is None:
                blocks[0].downsample = _projection(channels, channels, 1, pooled=True)
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


_POOLED_BASIC, _POOLED_BOTTLENECK = partial(BasicBlock, pooled=True), partial(Bottleneck, pooled=True)

resnet18 = partial(ResNet, BasicBlock, depths=(2, 2, 2, 2))
resnet34 = partial(ResNet, BasicBlock, depths=(3, 4, 6, 3))
resnet50 = partial(ResNet, Bottleneck, depths=(3, 4, 6, 3))
resnet101 = partial(ResNet, Bottleneck, depths=(3, 4, 23, 3))
resnet152 = partial(ResNet, Bottleneck, depths=(3, 8, 36, 3))
resnet18_vd = partial(ResNet, _POOLED_BASIC, depths=(2, 2, 2, 2), stem="deep", project_first=True)
resnet34_vd = partial(ResNet, _POOLED_BASIC, depths=(3, 4, 6, 3), stem="deep", project_first=True)
resnet50_vd = partial(ResNet, _POOLED_BOTTLENECK, depths=(3, 4, 6, 3), stem="deep")
resnet101_vd = partial(ResNet, _POOLED_BOTTLENECK, depths=(3, 4, 23, 3), stem="deep")


def resnext50_32x4d(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
    depths: Sequence[int] = (3, 4, 6, 3),
    groups: int = 32,
    group_width: int = 4,
) -> ResNet:
    """Build ResNeXt-50 32x4d: in the first stage, 32 groups of 4 channels inside a bottleneck."""
    block = partial(Bottleneck, groups=groups, widening=groups * group_width / width)
    return ResNet(block, num_classes, in_channels, stem, width, zero_init_residual, depths=depths)


def wide_resnet50_2(
    num_classes: int = 1000,
    in_channels: int = 3,
    stem: Stem = "imagenet",
    width: int = 64,
    zero_init_residual: bool = False,
    depths: Sequence[int] = (3, 4, 6, 3),
    widening: float = 2.0,
) -> ResNet:
    """Build wide ResNet-50-2: bottlenecks with twice the channels inside."""
    block = partial(Bottleneck, widening=widening)
    return ResNet(block, num_classes, in_channels, stem, width, zero_init_residual, depths=depths)


resnext101_32x8d = partial(resnext50_32x4d, depths=(3, 4, 23, 3), group_width=8)
resnext101_64x4d = partial(resnext50_32x4d, depths=(3, 4, 23, 3), groups=64)
wide_resnet101_2 = partial(wide_resnet50_2, depths=(3, 4, 23, 3))
