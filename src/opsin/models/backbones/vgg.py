"""VGG: nothing but 3x3 convolutions, two or more in a row instead of one large one, and pooling in between.

Paper: Very Deep Convolutional Networks for Large-Scale Image Recognition, 2014, https://arxiv.org/abs/1409.1556.
Implements: table 1, configurations A, B, D and E (11, 13, 16 and 19 layers with weights), each also with batch norm.
Differs from the paper: batch norm (`*_bn`) is younger than it; adaptive pooling to 7x7 before the dense layers, so that
    pictures of other sizes fit; the initialization is torchvision's (He et al., 2015, for convolutions, a deviation of
    0.01 for dense layers), where the paper grows deep networks from trained shallow ones; heads of one dense layer, or
    of one after global pooling, for those who do not want 120 million weights in the head.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients and parameter counts 132,863,336 /
    133,047,848 / 138,357,544 / 143,667,240 (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files (BSD-3-Clause) load unchanged.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn")

Head = Literal["3-dense", "1-dense", "pool"]

WIDTHS = (1, 2, 4, 8, 8)  # of the five groups, in units of the first
DEPTHS = {"A": (1, 1, 2, 2, 2), "B": (2, 2, 2, 2, 2), "D": (2, 2, 3, 3, 3), "E": (2, 2, 4, 4, 4)}


class VGG(nn.Module):
    """Five groups of 3x3 convolutions, each followed by 2x2 pooling, then the head.

    Args:
        configuration: the column of table 1: "A", "B", "D" or "E".
        batch_norm: normalize after each convolution.
        num_classes: K.
        in_channels: C of the pictures.
        width: channels of the first group; the others have 2, 4, 8 and 8 times as many.
        head: "3-dense" (7x7 map, two hidden dense layers), "1-dense" (7x7 map, no hidden layer) or "pool" (global
            average, no hidden layer).
        hidden: width of the two hidden dense layers.
        dropout: rate after each hidden dense layer, or before the only one.

    Raises:
        ConfigError: if there is no such head.
    """

    smallest = 32

    def __init__(
        self,
        configuration: str,
        batch_norm: bool,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        head: Head = "3-dense",
        hidden: int = 4096,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if head not in ("3-dense", "1-dense", "pool"):
            raise ConfigError(f"head = '{head}'; expected '3-dense', '1-dense' or 'pool'.")
        layers: list[nn.Module] = []
        self.feature_info: list[Feature] = []
        channels = in_channels
        for i, depth in enumerate(DEPTHS[configuration]):
            for _ in range(depth):
                layers.append(nn.Conv2d(channels, WIDTHS[i] * width, 3, padding=1))
                channels = WIDTHS[i] * width
                if batch_norm:
                    layers.append(nn.BatchNorm2d(channels))
                layers.append(nn.ReLU(inplace=True))
            layers.append(nn.MaxPool2d(2))
            self.feature_info.append(Feature(channels, 2**i))
        self.feature_info.append(Feature(channels, 32))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1 if head == "pool" else 7)
        pixels = channels if head == "pool" else 49 * channels
        if head == "3-dense":
            self.classifier = nn.Sequential(
                nn.Linear(pixels, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, hidden),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
                nn.Linear(hidden, num_classes),
            )
        else:
            self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(pixels, num_classes))
        self.head_names = (f"classifier.{len(self.classifier) - 1}",)
        self._initialize()

    def _initialize(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The map before each pooling and the last one, finest first: (B, channels, H // stride, W // stride).

        Raises:
            ShapeError: if the pictures are so small that a map would vanish.
        """
        require_picture_size(images, self.smallest, "VGG")
        x, features = images, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1]  # (B, 8 * width, H // 32, W // 32)
        x = self.avgpool(x).flatten(1)  # (B, 49 * 8 * width), or (B, 8 * width)
        return Classified(self.classifier(x))  # (B, K)


vgg11 = partial(VGG, "A", False)
vgg11_bn = partial(VGG, "A", True)
vgg13 = partial(VGG, "B", False)
vgg13_bn = partial(VGG, "B", True)
vgg16 = partial(VGG, "D", False)
vgg16_bn = partial(VGG, "D", True)
vgg19 = partial(VGG, "E", False)
vgg19_bn = partial(VGG, "E", True)
