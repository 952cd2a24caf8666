"""Inception v3: large windows taken apart into small and flat ones, so that a wide network stays cheap.

Paper: Rethinking the Inception Architecture for Computer Vision, 2015, https://arxiv.org/abs/1512.00567.
Implements: table 1 with the modules of figures 5 (35x35 maps), 6 (17x17) and 7 (8x8), the grid reductions of figure 10
    and the batch-normalized auxiliary head of section 4 (`auxiliary=True`).
Differs from the paper: what the published weights have: five convolutions and two poolings in the stem, a window of 5x5
    besides the two 3x3 in the first modules, the pooling branch averages.
Checked against: torchvision 0.29: same state-dict keys, outputs with those of the auxiliary head, gradients, parameter
    counts 23,834,568 and 27,161,264 with the auxiliary head (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file (BSD-3-Clause) loads unchanged. It wants `transform_input=True`
    (PRETRAINED); without `auxiliary` the tensors of the auxiliary head are reported as not used.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.layers.inception_parts import FromImageNetScale, NormalizedConvolution
from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("inception_v3",)
PRETRAINED = {"transform_input": True}  # arguments that the published weights need

SMALLEST = 75  # pixels: the last maps are 1x1
SMALLEST_AUXILIARY = 299  # pixels: the auxiliary head's convolution just fits the pooled map

Scaled = Callable[[int], int]


def _averaged(x: Tensor) -> Tensor:
    """Mean over 3x3 windows; the map keeps its size, and zeros around it count."""
    return F.avg_pool2d(x, 3, stride=1, padding=1)


class InceptionA(nn.Module):
    """1x1 | 1x1, 5x5 | 1x1, 3x3, 3x3 | mean, 1x1 (figure 5)."""

    def __init__(self, in_channels: int, pool: int, scaled: Scaled) -> None:
        super().__init__()
        c48, c64, c96 = scaled(48), scaled(64), scaled(96)
        self.out_channels = c64 + c64 + c96 + scaled(pool)
        self.branch1x1 = NormalizedConvolution(in_channels, c64, 1)
        self.branch5x5_1 = NormalizedConvolution(in_channels, c48, 1)
        self.branch5x5_2 = NormalizedConvolution(c48, c64, 5, padding=2)
        self.branch3x3dbl_1 = NormalizedConvolution(in_channels, c64, 1)
        self.branch3x3dbl_2 = NormalizedConvolution(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = NormalizedConvolution(c96, c96, 3, padding=1)
        self.branch_pool = NormalizedConvolution(in_channels, scaled(pool), 1)

    def forward(self, x: Tensor) -> Tensor:
        window1 = self.branch1x1(x)
        window5 = self.branch5x5_2(self.branch5x5_1(x))
        window3 = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([window1, window5, window3, self.branch_pool(_averaged(x))], 1)


class InceptionB(nn.Module):
    """Halves the map: 3x3 | 1x1, 3x3, 3x3 | maximum, where the last of each has stride 2 (figure 10)."""

    def __init__(self, in_channels: int, scaled: Scaled) -> None:
        super().__init__()
        c64, c96, c384 = scaled(64), scaled(96), scaled(384)
        self.out_channels = c384 + c96 + in_channels
        self.branch3x3 = NormalizedConvolution(in_channels, c384, 3, stride=2)
        self.branch3x3dbl_1 = NormalizedConvolution(in_channels, c64, 1)
        self.branch3x3dbl_2 = NormalizedConvolution(c64, c96, 3, padding=1)
        self.branch3x3dbl_3 = NormalizedConvolution(c96, c96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        once = self.branch3x3(x)
        twice = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([once, twice, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """1x1 | 1x1, 1x7, 7x1 | 1x1 and twice 7x1, 1x7 | mean, 1x1 (figure 6, n = 7)."""

    def __init__(self, in_channels: int, channels: int, scaled: Scaled) -> None:
        super().__init__()
        c192, c7 = scaled(192), scaled(channels)

        def flat(out_channels: int) -> NormalizedConvolution:
            return NormalizedConvolution(c7, out_channels, (1, 7), padding=(0, 3))

        def tall(out_channels: int) -> NormalizedConvolution:
            return NormalizedConvolution(c7, out_channels, (7, 1), padding=(3, 0))

        self.out_channels = 4 * c192
        self.branch1x1 = NormalizedConvolution(in_channels, c192, 1)
        self.branch7x7_1 = NormalizedConvolution(in_channels, c7, 1)
        self.branch7x7_2 = flat(c7)
        self.branch7x7_3 = tall(c192)
        self.branch7x7dbl_1 = NormalizedConvolution(in_channels, c7, 1)
        self.branch7x7dbl_2 = tall(c7)
        self.branch7x7dbl_3 = flat(c7)
        self.branch7x7dbl_4 = tall(c7)
        self.branch7x7dbl_5 = flat(c192)
        self.branch_pool = NormalizedConvolution(in_channels, c192, 1)

    def forward(self, x: Tensor) -> Tensor:
        window1 = self.branch1x1(x)
        once = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        twice = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        twice = self.branch7x7dbl_5(self.branch7x7dbl_4(twice))
        return torch.cat([window1, once, twice, self.branch_pool(_averaged(x))], 1)


class InceptionD(nn.Module):
    """Halves the map: 1x1, 3x3 | 1x1, 1x7, 7x1, 3x3 | maximum, where the last of each has stride 2."""

    def __init__(self, in_channels: int, scaled: Scaled) -> None:
        super().__init__()
        c192, c320 = scaled(192), scaled(320)
        self.out_channels = c320 + c192 + in_channels
        self.branch3x3_1 = NormalizedConvolution(in_channels, c192, 1)
        self.branch3x3_2 = NormalizedConvolution(c192, c320, 3, stride=2)
        self.branch7x7x3_1 = NormalizedConvolution(in_channels, c192, 1)
        self.branch7x7x3_2 = NormalizedConvolution(c192, c192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = NormalizedConvolution(c192, c192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = NormalizedConvolution(c192, c192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        window3 = self.branch3x3_2(self.branch3x3_1(x))
        window7 = self.branch7x7x3_2(self.branch7x7x3_1(x))
        window7 = self.branch7x7x3_4(self.branch7x7x3_3(window7))
        return torch.cat([window3, window7, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """1x1 | 1x1, then 1x3 beside 3x1 | 1x1, 3x3, then 1x3 beside 3x1 | mean, 1x1 (figure 7)."""

    def __init__(self, in_channels: int, scaled: Scaled) -> None:
        super().__init__()
        c192, c320, c384, c448 = scaled(192), scaled(320), scaled(384), scaled(448)
        self.out_channels = c320 + 4 * c384 + c192
        self.branch1x1 = NormalizedConvolution(in_channels, c320, 1)
        self.branch3x3_1 = NormalizedConvolution(in_channels, c384, 1)
        self.branch3x3_2a = NormalizedConvolution(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = NormalizedConvolution(c384, c384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = NormalizedConvolution(in_channels, c448, 1)
        self.branch3x3dbl_2 = NormalizedConvolution(c448, c384, 3, padding=1)
        self.branch3x3dbl_3a = NormalizedConvolution(c384, c384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = NormalizedConvolution(c384, c384, (3, 1), padding=(1, 0))
        self.branch_pool = NormalizedConvolution(in_channels, c192, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.branch1x1(x)]
        once = self.branch3x3_1(x)
        parts += [self.branch3x3_2a(once), self.branch3x3_2b(once)]
        twice = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts += [self.branch3x3dbl_3a(twice), self.branch3x3dbl_3b(twice), self.branch_pool(_averaged(x))]
        return torch.cat(parts, 1)


class AuxiliaryHead(nn.Module):
    """Logits from the 17x17 map (figure 8): mean over 5x5 windows of stride 3, 1x1, 5x5, dense."""

    def __init__(self, in_channels: int, num_classes: int, scaled: Scaled) -> None:
        super().__init__()
        self.conv0 = NormalizedConvolution(in_channels, scaled(128), 1)
        self.conv1 = NormalizedConvolution(scaled(128), scaled(768), 5)
        self.fc = nn.Linear(scaled(768), num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv0(F.avg_pool2d(x, 5, stride=3))  # (B, 128, 5, 5)
        x = F.adaptive_avg_pool2d(self.conv1(x), 1).flatten(1)  # (B, 768)
        logits: Tensor = self.fc(x)  # (B, K)
        return logits


class InceptionV3(nn.Module):
    """Stem, eleven modules, global average pooling, logits; see the module's text.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: factor of all channels.
        auxiliary: whether there is an auxiliary head; its logits are returned in training mode only, which then takes
            pictures of 299x299 or more.
        transform_input: pictures come normalized by ImageNet's mean and deviation, and are brought to -1..1.
        dropout: rate before the last layer.
    """

    def __init__(
        self, num_classes: int, in_channels: int, width: float, auxiliary: bool, transform_input: bool, dropout: float
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(1, round(channels * width))

        self.transform = FromImageNetScale(in_channels) if transform_input else None
        self.Conv2d_1a_3x3 = NormalizedConvolution(in_channels, scaled(32), 3, stride=2)
        self.Conv2d_2a_3x3 = NormalizedConvolution(scaled(32), scaled(32), 3)
        self.Conv2d_2b_3x3 = NormalizedConvolution(scaled(32), scaled(64), 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(3, stride=2)
        self.Conv2d_3b_1x1 = NormalizedConvolution(scaled(64), scaled(80), 1)
        self.Conv2d_4a_3x3 = NormalizedConvolution(scaled(80), scaled(192), 3)
        self.maxpool2 = nn.MaxPool2d(3, stride=2)
        self.Mixed_5b = InceptionA(scaled(192), 32, scaled)
        self.Mixed_5c = InceptionA(self.Mixed_5b.out_channels, 64, scaled)
        self.Mixed_5d = InceptionA(self.Mixed_5c.out_channels, 64, scaled)
        self.Mixed_6a = InceptionB(self.Mixed_5d.out_channels, scaled)
        self.Mixed_6b = InceptionC(self.Mixed_6a.out_channels, 128, scaled)
        self.Mixed_6c = InceptionC(self.Mixed_6b.out_channels, 160, scaled)
        self.Mixed_6d = InceptionC(self.Mixed_6c.out_channels, 160, scaled)
        self.Mixed_6e = InceptionC(self.Mixed_6d.out_channels, 192, scaled)
        self.AuxLogits = AuxiliaryHead(self.Mixed_6e.out_channels, num_classes, scaled) if auxiliary else None
        self.Mixed_7a = InceptionD(self.Mixed_6e.out_channels, scaled)
        self.Mixed_7b = InceptionE(self.Mixed_7a.out_channels, scaled)
        self.Mixed_7c = InceptionE(self.Mixed_7b.out_channels, scaled)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.Mixed_7c.out_channels, num_classes)
        self.head_names = ("fc", "AuxLogits.fc") if auxiliary else ("fc",)
        self.feature_info = [
            Feature(scaled(192), 4),
            Feature(self.Mixed_5d.out_channels, 8),
            Feature(self.Mixed_6e.out_channels, 16),
            Feature(self.Mixed_7c.out_channels, 32),
        ]
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.1)
        if self.AuxLogits is not None:
            nn.init.trunc_normal_(self.AuxLogits.conv1.conv.weight, std=0.01)
            nn.init.trunc_normal_(self.AuxLogits.fc.weight, std=0.001)

    def _to_middle(self, images: Tensor) -> list[Tensor]:
        """Maps at strides 4, 8 and 16 as the convolutions leave them: 71, 35 and 17 cells from 299 pixels."""
        require_picture_size(images, SMALLEST, "inception_v3")
        x = images if self.transform is None else self.transform(images)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        stem = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x)))  # (B, 192, 71, 71)
        level3 = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(self.maxpool2(stem))))  # (B, 288, 35, 35)
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(level3)))
        level4 = self.Mixed_6e(self.Mixed_6d(x))  # (B, 768, 17, 17)
        return [stem, level3, level4]

    def _to_end(self, level4: Tensor) -> Tensor:
        """The last map, at stride 32: 8 cells from 299 pixels."""
        level5: Tensor = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(level4)))  # (B, 2048, 8, 8)
        return level5

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """Features at each stride, finest first: (B, channels, H // stride, W // stride) as in `feature_info`.

        The network's convolutions lose a border. Cells at the edge are repeated into it, so that a cell lies over its
        pixels as in networks that pad.
        """
        size = images.shape[2:]
        features = self._to_middle(images)
        features.append(self._to_end(features[-1]))
        padded = []
        for feature, (_, stride) in zip(features, self.feature_info):
            lost = [pixels // stride - cells for pixels, cells in zip(size, feature.shape[2:])]
            before = [(count + 1) // 2 for count in lost]
            border = (before[1], lost[1] - before[1], before[0], lost[0] - before[0])
            padded.append(F.pad(feature, border, mode="replicate"))
        return padded

    def forward(self, images: Tensor) -> Classified:
        head = self.AuxLogits if self.training else None
        if head is not None:
            require_picture_size(images, SMALLEST_AUXILIARY, "The auxiliary head of inception_v3")
        level4 = self._to_middle(images)[-1]
        auxiliary = () if head is None else (head(level4),)
        x = self.avgpool(self._to_end(level4)).flatten(1)  # (B, 2048)
        return Classified(self.fc(self.dropout(x)), auxiliary)  # (B, K) each


def inception_v3(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: float = 1.0,
    auxiliary: bool = False,
    transform_input: bool = False,
    dropout: float = 0.5,
) -> InceptionV3:
    """Build Inception v3, made for pictures of 299x299; `auxiliary=True` adds the head of the paper while it trains."""
    return InceptionV3(num_classes, in_channels, width, auxiliary, transform_input, dropout)
