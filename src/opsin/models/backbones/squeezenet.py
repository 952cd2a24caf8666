"""SqueezeNet: fire modules squeeze to few channels before they expand, for AlexNet's accuracy with 2 % of its weights.

Paper: SqueezeNet: AlexNet-level accuracy with 50x fewer parameters and <0.5MB model size, 2016,
    https://arxiv.org/abs/1602.07360.
Implements: table 1 (`squeezenet1_0`); version 1.1 of the authors' repository (https://github.com/forresti/SqueezeNet),
    which pools earlier, with a 3x3 stem, for 2.4 times less work (`squeezenet1_1`).
Differs from the paper: the initialization is torchvision's (uniform after He et al., 2015; the last convolution normal
    with deviation 0.01); no bypass connections, and no deep compression, which comes after training.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients and parameter counts 1,248,424 / 1,235,496
    (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("squeezenet1_0", "squeezenet1_1")


class Fire(nn.Module):
    """1x1 to few channels, then 1x1 and 3x3 side by side (figure 1)."""

    def __init__(self, in_channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(in_channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze(x))  # (B, squeeze, H, W)
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)  # (B, 2 * expand, H, W)


class SqueezeNet(nn.Module):
    """A convolution, eight fire modules with pooling in between, and a convolution to the logits of every cell.

    Args:
        stem: the first convolution.
        fires_per_stage: fire modules after each pooling.
        num_classes: K.
        width: squeezed channels of the first two fire modules; each next two have as many more, and all expand to 8
            times their squeezed channels.
        dropout: rate before the last convolution.
        rectified_logits: end with a ReLU, as published. A class whose logit is negative in every cell of every picture
            then learns nothing; with few classes that does happen, and False is the better choice.
        smallest: least height and width of a picture, in pixels.
    """

    head_names = ("classifier.1",)

    def __init__(
        self,
        stem: nn.Conv2d,
        fires_per_stage: tuple[int, ...],
        num_classes: int,
        width: int,
        dropout: float,
        rectified_logits: bool,
        smallest: int,
    ) -> None:
        super().__init__()
        self.smallest = smallest
        layers: list[nn.Module] = [stem, nn.ReLU(inplace=True)]
        channels, fires = stem.out_channels, 0
        self.feature_info = [Feature(channels, 2)]
        for i, depth in enumerate(fires_per_stage):
            layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for _ in range(depth):
                squeeze = width * (fires // 2 + 1)
                layers.append(Fire(channels, squeeze, 4 * squeeze))
                channels, fires = 8 * squeeze, fires + 1
            self.feature_info.append(Feature(channels, 4 * 2**i))
        self.features = nn.Sequential(*layers)
        last = nn.ReLU(inplace=True) if rectified_logits else nn.Identity()
        self.classifier = nn.Sequential(
            nn.Dropout(dropout), nn.Conv2d(channels, num_classes, 1), last, nn.AdaptiveAvgPool2d(1)
        )
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.get_submodule(self.head_names[0]).get_parameter("weight"), std=0.01)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The map before each pooling and the last one, finest first; channels and strides as in `feature_info`.

        Convolutions without padding make the maps up to two cells smaller than H / stride.

        Raises:
            ShapeError: if the pictures are so small that a map would vanish.
        """
        require_picture_size(images, self.smallest, "This SqueezeNet")
        x, features = images, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1]  # (B, 32 * width, H / 16, W / 16)
        return Classified(self.classifier(x).flatten(1))  # (B, K)


def squeezenet1_0(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 16,
    dropout: float = 0.5,
    rectified_logits: bool = True,
) -> SqueezeNet:
    """Build SqueezeNet 1.0; `width` is the squeezed channels of the first fire module."""
    stem = nn.Conv2d(in_channels, 6 * width, 7, stride=2)
    return SqueezeNet(stem, (3, 4, 1), num_classes, width, dropout, rectified_logits, smallest=21)


def squeezenet1_1(
    num_classes: int = 1000,
    in_channels: int = 3,
    width: int = 16,
    dropout: float = 0.5,
    rectified_logits: bool = True,
) -> SqueezeNet:
    """Build SqueezeNet 1.1; `width` is the squeezed channels of the first fire module."""
    stem = nn.Conv2d(in_channels, 4 * width, 3, stride=2)
    return SqueezeNet(stem, (2, 2, 4), num_classes, width, dropout, rectified_logits, smallest=17)
