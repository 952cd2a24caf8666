"""AlexNet: five convolutions and three dense layers, the network that made deep learning the way to see.

Paper: ImageNet Classification with Deep Convolutional Neural Networks, 2012,
    https://papers.nips.cc/paper/4824-imagenet-classification-with-deep-convolutional-neural-networks (`alexnet_2012`);
    One weird trick for parallelizing convolutional neural networks, 2014, https://arxiv.org/abs/1404.5997 (`alexnet`).
Implements: `alexnet`, the one-tower network of the second paper; `alexnet_2012`, the two-group network of the first with
    local response normalization (section 3.3), made for 227 pixels, with its initialization (section 5).
Differs from the papers: adaptive pooling to 6x6 before the dense layers, so that pictures of other sizes fit; no
    principal-component color noise, which belongs to the data. `alexnet` starts from PyTorch's default initialization
    and drops out before its dense layers, both as torchvision does.
Checked against: `alexnet`: torchvision 0.29: same state-dict keys, outputs, gradients and parameter count 61,100,840
    (tests/oracles/test_models_torchvision.py). `alexnet_2012`: the paper's layer sizes, its formula for the
    normalization, and the parameter count 60,965,224 (the same file).
Reproduced: not yet run.
Weights: none shipped; torchvision's published file for `alexnet` (BSD-3-Clause) loads unchanged.
"""

from __future__ import annotations

from torch import Tensor, nn

from opsin.layers.picture_size import require_picture_size
from opsin.models import Classified, Feature

NAMES = ("alexnet", "alexnet_2012")


class AlexNet(nn.Module):
    """Convolutions, pooling to 6x6, dense layers, logits.

    Args:
        features: the layers up to the last pooling.
        classifier: the dense layers; they get (B, 36 * C).
        feature_info: the map before each pooling, and the last map.
        head: name of the last layer.
        smallest: least height and width of a picture, in pixels.
    """

    def __init__(
        self, features: nn.Sequential, classifier: nn.Sequential, feature_info: list[Feature], head: str, smallest: int
    ) -> None:
        super().__init__()
        self.features = features
        self.avgpool = nn.AdaptiveAvgPool2d(6)
        self.classifier = classifier
        self.feature_info = feature_info
        self.head_names = (head,)
        self.smallest = smallest

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """The map before each pooling and the last one, finest first; channels and strides as in `feature_info`.

        Convolutions without padding make the maps up to two cells smaller than H / stride.

        Raises:
            ShapeError: if the pictures are so small that a map would vanish.
        """
        require_picture_size(images, self.smallest, "This AlexNet")
        x, features = images, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                features.append(x)
            x = layer(x)
        return [*features, x]

    def forward(self, images: Tensor) -> Classified:
        x = self.forward_pyramid(images)[-1]  # (B, C, 6, 6) for pictures of 224 pixels
        x = self.avgpool(x).flatten(1)  # (B, 36 * C)
        return Classified(self.classifier(x))  # (B, K)


def alexnet(
    num_classes: int = 1000, in_channels: int = 3, width: int = 64, hidden: int = 4096, dropout: float = 0.5
) -> AlexNet:
    """Build the one-tower AlexNet.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
        hidden: width of the two hidden dense layers.
        dropout: rate before each hidden dense layer.
    """
    features = nn.Sequential(
        nn.Conv2d(in_channels, width, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(width, 3 * width, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(3 * width, 6 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6 * width, 4 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),
    )
    classifier = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(36 * 4 * width, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, num_classes),
    )
    info = [Feature(width, 4), Feature(3 * width, 8), Feature(4 * width, 16), Feature(4 * width, 32)]
    return AlexNet(features, classifier, info, "classifier.6", smallest=63)


def alexnet_2012(
    num_classes: int = 1000, in_channels: int = 3, width: int = 96, hidden: int = 4096, dropout: float = 0.5
) -> AlexNet:
    """Build the AlexNet of 2012: its two halves, once on two graphics cards, are convolutions with two groups.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        width: channels of the first convolution, a multiple of 6; the others follow as 256 : 384 : 384 : 256 to 96.
        hidden: width of the two hidden dense layers.
        dropout: rate after each hidden dense layer.
    """
    second, third = width * 8 // 3, width * 4
    features = nn.Sequential(
        nn.Conv2d(in_channels, width, 11, stride=4),  # (B, 96, 55, 55) for pictures of 227 pixels
        nn.ReLU(inplace=True),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(width, second, 5, padding=2, groups=2),  # (B, 256, 27, 27)
        nn.ReLU(inplace=True),
        _response_norm(),
        nn.MaxPool2d(3, stride=2),
        nn.Conv2d(second, third, 3, padding=1),  # (B, 384, 13, 13)
        nn.ReLU(inplace=True),
        nn.Conv2d(third, third, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.Conv2d(third, second, 3, padding=1, groups=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2),  # (B, 256, 6, 6)
    )
    classifier = nn.Sequential(
        nn.Linear(36 * second, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(dropout),
        nn.Linear(hidden, num_classes),
    )
    info = [Feature(width, 4), Feature(second, 8), Feature(second, 16), Feature(second, 32)]
    model = AlexNet(features, classifier, info, "classifier.6", smallest=67)
    _initialize_as_2012(model)
    return model


def _response_norm() -> nn.LocalResponseNorm:
    """b = a / (2 + 1e-4 * sum of a^2 over 5 neighboring channels) ^ 0.75; PyTorch divides its alpha by the 5."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _initialize_as_2012(model: AlexNet) -> None:
    """Weights of deviation 0.01; biases 1 in the 2nd, 4th and 5th convolution and the hidden dense layers, else 0."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    for layer in layers:
        nn.init.normal_(layer.weight, std=0.01)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    for i in (1, 3, 4, 5, 6):
        bias = layers[i].bias
        if bias is not None:
            nn.init.ones_(bias)
