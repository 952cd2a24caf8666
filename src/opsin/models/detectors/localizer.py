"""A single-object localizer: is there an object, of which class, and where is it, from one trunk.

Paper: the textbook form (presence, class and box heads on a small convolutional trunk); the box head on a classifier's
    trunk is that of OverFeat, 2013, https://arxiv.org/abs/1312.6229, for one object.
Implements: any trunk with a dense layer per head, or the textbook's (`backbone = "textbook"`): C5x32 P, C5x64 P, C5x32 P with
    ReLU, flattened; log loss of presence + ratio * (cross-entropy of the class + Huber, smooth L1, L1 or L2 loss of the box),
    ratio being the share of pictures with an object.
Differs from the paper: a box is its four edges as shares of the sides, not corner, height and width; the ratio lies in
    [0, 1]; there is no class head where there is one class; other losses and trunks.
Checked against: the closed form of the textbook's parameters (296,933 for 240 x 320), the loss in closed form
    (tests/contracts/test_keypoint_models.py).
Reproduced: not yet run.
Weights: none shipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.models.detectors import Detector, Targets
from opsin.models.trunk import Trunk
from opsin.task import Part

NAMES = ("localizer",)
TEXTBOOK = "textbook"
BoxLoss = Literal["huber", "smooth_l1", "l1", "l2"]


class Raw(NamedTuple):
    """What the heads say."""

    presence: Tensor  # (B,) logits
    classes: Tensor | None  # (B, K) logits; None for one class
    edges: Tensor  # (B, 4) left, top, right, bottom as shares of the sides
    sides: Tensor  # (4,) width, height, width, height of the input


class _TextbookTrunk(nn.Sequential):
    """Three 5x5 convolutions with ReLU, each halved by a maximum: (B, C, H, W) to (B, 32, H / 8, W / 8)."""

    def __init__(self, in_channels: int) -> None:
        layers: list[nn.Module] = []
        for narrow, wide in ((in_channels, 32), (32, 64), (64, 32)):
            layers += [nn.Conv2d(narrow, wide, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        super().__init__(*layers)


class _ReducedTrunk(nn.Module):
    """The coarsest features of a trunk in fewer channels: (B, channels, h, w)."""

    def __init__(self, trunk: Trunk, channels: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.reduce = nn.Sequential(nn.Conv2d(trunk.channels[-1], channels, 1), nn.ReLU(inplace=True))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.reduce(self.trunk(images)[-1])
        return out


class Localizer(Detector):
    """One candidate per picture: its score is presence x class.

    Of several objects in a picture the largest is learned; how many others there were is the part `left_out` of the loss,
    of weight 0.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W); features of pictures of another size are averaged to the same grid.
        backbone: any network with `forward_pyramid`, or `textbook`.
        backbone_kwargs: its own keyword arguments.
        channels: that the features of a backbone are reduced to.
        box_loss: of the edges: `huber`, `smooth_l1` (Huber over its delta), `l1` or `l2`.
        delta: share of the side up to which `huber` and `smooth_l1` are squares.
        box_weight: of the box loss beside that of the class.

    Raises:
        ConfigError: for another loss, a delta that is not positive, or a picture too small for the trunk.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (256, 320),
        backbone: str = "resnet18",
        backbone_kwargs: Mapping[str, Any] | None = None,
        channels: int = 64,
        box_loss: BoxLoss = "huber",
        delta: float = 0.1,
        box_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if box_loss not in get_args(BoxLoss) or not delta > 0:
            raise ConfigError(
                f"localizer: box_loss = {box_loss!r}, delta = {delta}; expected one of {', '.join(get_args(BoxLoss))}, and "
                "delta > 0."
            )
        self.box_loss, self.delta, self.box_weight = box_loss, delta, box_weight
        if backbone == TEXTBOOK:
            if min(image_size) < 8:
                raise ConfigError(f"localizer: image_size = {tuple(image_size)}; expected at least 8 x 8.")
            self.stride, wide = 8, 32
            self.features: nn.Module = _TextbookTrunk(in_channels)
            self.grid = (image_size[0] // 8, image_size[1] // 8)
        else:
            trunk = Trunk(backbone, backbone_kwargs, in_channels, image_size)
            self.stride, wide = trunk.strides[-1], channels
            self.features = _ReducedTrunk(trunk, channels)
            self.grid = (max(1, -(-image_size[0] // self.stride)), max(1, -(-image_size[1] // self.stride)))
        cells = wide * self.grid[0] * self.grid[1]
        self.presence = nn.Linear(cells, 1)
        self.classes = nn.Linear(cells, num_classes) if num_classes > 1 else None
        self.edges = nn.Linear(cells, 4)
        nn.init.normal_(self.edges.weight, std=0.001)
        with torch.no_grad():
            self.edges.bias.copy_(torch.tensor([0.25, 0.25, 0.75, 0.75]))

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        features = self.features(images)
        if tuple(features.shape[2:]) != self.grid:
            features = F.adaptive_avg_pool2d(features, self.grid)
        features = features.flatten(1)
        classes = None if self.classes is None else self.classes(features)
        sides = torch.tensor([images.shape[-1], images.shape[-2]] * 2, dtype=torch.float32, device=images.device)
        return Raw(self.presence(features)[:, 0], classes, self.edges(features), sides)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """The terms of a batch.

        Those of the class and the box are summed over pictures with an object and divided by all pictures: the mean over
        pictures with an object, times their share.
        """
        count = float(len(targets.boxes))
        known = [i for i, boxes in enumerate(targets.boxes) if len(boxes)]
        largest = [int((b[:, 2:] - b[:, :2]).prod(1).argmax()) for b in (targets.boxes[i] for i in known)]
        there = torch.zeros_like(raw.presence, dtype=torch.float32)
        there[known] = 1.0
        presence = F.binary_cross_entropy_with_logits(raw.presence.float(), there, reduction="sum")
        edges = raw.edges.float()[known]  # (M, 4)
        wanted = [targets.boxes[i][k] / raw.sides for i, k in zip(known, largest)]
        box = self._measured(edges - (torch.stack(wanted) if wanted else edges)).sum()
        others = float(sum(len(boxes) for boxes in targets.boxes) - len(known))
        found = {"presence": Part(presence, count), "box": Part(box, count, self.box_weight)}
        if raw.classes is not None:
            labels = [targets.labels[i][k] for i, k in zip(known, largest)]
            logits = raw.classes.float()[known]
            if labels:
                found["class"] = Part(F.cross_entropy(logits, torch.stack(labels), reduction="sum"), count)
            else:
                found["class"] = Part(logits.sum(), count)
        found["left_out"] = Part(edges.new_tensor(others), count, 0.0)
        return found

    def _measured(self, differences: Tensor) -> Tensor:
        if self.box_loss == "l1":
            return differences.abs()
        if self.box_loss == "l2":
            return differences.square()
        zeros = torch.zeros_like(differences)
        found = F.huber_loss(differences, zeros, reduction="none", delta=self.delta)
        return found / self.delta if self.box_loss == "smooth_l1" else found

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        sides = torch.tensor([size[1], size[0]], dtype=torch.float32, device=raw.edges.device)
        corners = raw.edges.float().clamp(0, 1).reshape(-1, 2, 2) * sides  # (B, 2, 2)
        boxes = torch.cat([corners.amin(1), corners.amax(1)], 1)[:, None]  # (B, 1, 4)
        scores = raw.presence.float().sigmoid()[:, None]
        if raw.classes is None:
            return boxes, scores, torch.zeros_like(scores, dtype=torch.int64)
        chance, label = raw.classes.float().softmax(1).max(1, keepdim=True)
        return boxes, scores * chance, label


build = Localizer
