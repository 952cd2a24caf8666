"""Linear: one layer from pixels to logits, the baseline that every network has to beat.

Paper: none (multinomial logistic regression); "B2-linear" and "B4-logistic" of the books.
Implements: 28x28x1 -> 10, 7,850 parameters.
Differs from the paper: weights start at torch's default for linear layers, not at zero.
Checked against: parameter count (tests/oracles/test_models_torchvision.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

from torch import Tensor, nn

from opsin.layers.flatten import FlattenPixels
from opsin.models import Classified

NAMES = ("linear",)


class Linear(nn.Module):
    """Multinomial logistic regression on pixels.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
    """

    head_names = ("head",)

    def __init__(self, num_classes: int, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.flatten = FlattenPixels(in_channels, image_size)
        self.head = nn.Linear(self.flatten.num_values, num_classes)

    def forward(self, images: Tensor) -> Classified:
        return Classified(self.head(self.flatten(images)))  # (B, C, H, W) -> (B, C*H*W) -> (B, K)


def linear(num_classes: int = 10, in_channels: int = 1, image_size: tuple[int, int] = (28, 28)) -> Linear:
    """Build the linear classifier."""
    return Linear(num_classes, in_channels, image_size)
