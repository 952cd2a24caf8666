"""MLP: dense layers on pixels, with no notion of neighborhood.

Paper: Learning representations by back-propagating errors, 1986, https://doi.org/10.1038/323533a0.
Implements: "B4-mlp" 784-30-10 (`hidden=(30,)`, 23,860 parameters) and "B3-fc" 784-256-128-47 (`hidden=(256, 128)`,
    239,919).
Differs from the paper: ReLU instead of the logistic function, He initialization.
Checked against: parameter counts (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.layers.flatten import FlattenPixels
from opsin.models import Classified

NAMES = ("mlp",)


class MLP(nn.Module):
    """Dense layers with ReLU between them.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
        hidden: widths of the hidden layers, at least one.
        dropout: rate after every hidden layer.
    """

    head_names = ("head",)

    def __init__(
        self, num_classes: int, in_channels: int, image_size: tuple[int, int], hidden: Sequence[int], dropout: float
    ) -> None:
        super().__init__()
        if not hidden or min(hidden) < 1:
            raise ConfigError(f"mlp: hidden = {list(hidden)}; expected one positive width or more, e.g. [256, 128].")
        self.flatten = FlattenPixels(in_channels, image_size)
        layers: list[nn.Module] = []
        width = self.flatten.num_values
        for next_width in hidden:
            dense = nn.Linear(width, next_width)
            nn.init.kaiming_normal_(dense.weight, nonlinearity="relu")
            nn.init.zeros_(dense.bias)
            layers += [dense, nn.ReLU(), nn.Dropout(dropout)]
            width = next_width
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Classified:
        x = self.flatten(images)  # (B, C*H*W)
        return Classified(self.head(self.features(x)))  # (B, K)


def mlp(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    hidden: Sequence[int] = (256, 128),
    dropout: float = 0.0,
) -> MLP:
    """Build a multi-layer perceptron; `hidden` are the widths of its hidden layers."""
    return MLP(num_classes, in_channels, image_size, hidden, dropout)
