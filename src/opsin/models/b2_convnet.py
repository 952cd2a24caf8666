"""B2 convnets: the two small convolutional networks of book B2, a few valid 3x3 convolutions and one wide dense layer.

Paper: none; the book's MNIST and cats-against-dogs networks (spec 02, table "Book networks").
Implements: "b2-mnist" C3x64, P2, C3x128, P2, FC1024, dropout .4, FC10 (3,362,570 parameters at 28x28x1) and
    "b2-simple-cnn" C3x64, C3x128, P2, dropout .3, FC1024, dropout .3, FC10 (18,960,138 at 28x28x1).
Differs from the paper: torch's initialization; the flattened size follows `image_size` instead of being typed in.
Checked against: parameter counts (tests/oracles/test_models_torchvision.py).
Reproduced: b2-mnist, MNIST, 2 epochs: 99.46 %, mean of 3 seeds; the book prints 99.02 for one run
    (results/recipe-mnist-b2.json). b2-simple-cnn: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

from torch import Tensor, nn

from opsin.errors import ConfigError, ShapeError
from opsin.models import Classified

NAMES = ("b2-mnist", "b2-simple-cnn")


class B2ConvNet(nn.Module):
    """Convolutions (valid, ReLU), one dense layer, logits.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures.
        pool_after: for each of the convolutions of 64 and 128 channels, whether 2x2 max pooling follows.
        dropout: rates before and after the dense layer.
        hidden: width of the dense layer.
    """

    head_names = ("head",)

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        image_size: tuple[int, int],
        pool_after: tuple[bool, bool],
        dropout: tuple[float, float],
        hidden: int,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels, (height, width) = in_channels, image_size
        for next_channels, pool in zip((64, 128), pool_after, strict=True):
            layers += [nn.Conv2d(channels, next_channels, 3), nn.ReLU()]
            channels, height, width = next_channels, height - 2, width - 2
            if pool:
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        if height < 1 or width < 1:
            raise ConfigError(f"Pictures of {image_size[0]}x{image_size[1]} pixels are too small for this network.")
        self.image_shape = (in_channels, *image_size)
        self.features = nn.Sequential(*layers)
        self.dropout_before = nn.Dropout(dropout[0])
        self.dense = nn.Linear(channels * height * width, hidden)
        self.activation = nn.ReLU()
        self.dropout_after = nn.Dropout(dropout[1])
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, images: Tensor) -> Classified:
        if tuple(images.shape[1:]) != self.image_shape:
            expected = ", ".join(str(size) for size in self.image_shape)
            raise ShapeError(f"This network is built for pictures (B, {expected}); got {tuple(images.shape)}.")
        x = self.features(images).flatten(1)  # (B, 128*h*w)
        x = self.activation(self.dense(self.dropout_before(x)))  # (B, hidden)
        return Classified(self.head(self.dropout_after(x)))  # (B, K)


def b2_mnist(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    dropout: float = 0.4,
    hidden: int = 1024,
) -> B2ConvNet:
    """Build the book's MNIST network; `dropout` is the rate before the last layer."""
    return B2ConvNet(num_classes, in_channels, image_size, (True, True), (0.0, dropout), hidden)


def b2_simple_cnn(
    num_classes: int = 10,
    in_channels: int = 1,
    image_size: tuple[int, int] = (28, 28),
    dropout: float = 0.3,
    hidden: int = 1024,
) -> B2ConvNet:
    """Build the book's simple network; `dropout` is the rate before and after its dense layer."""
    return B2ConvNet(num_classes, in_channels, image_size, (False, True), (dropout, dropout), hidden)
