"""YOLOX: an anchor-free detector whose targets are found anew in every step.

Paper: YOLOX: Exceeding YOLO Series in 2021, 2021, https://arxiv.org/abs/2107.08430.
Implements: the CSPDarknet trunk, the path-aggregation neck and decoupled heads at strides 8, 16 and 32 of the six published
    sizes; the SimOTA assignment of section 2.1 with the IoU loss, and the L1 loss of the last epochs as an option.
Differs from the paper: options that it does not have: task-aligned assignment (TOOD, 2021,
    https://arxiv.org/abs/2108.07755), boxes as distributions (Generalized Focal Loss, 2020,
    https://arxiv.org/abs/2006.04388), varifocal loss (VarifocalNet, 2020, https://arxiv.org/abs/2008.13367), GIoU and
    CIoU losses, no objectness, other activations, other trunks. `yolox_pico` is a size of our own: an eighth of the channels of
    yolox_l, a third of its depth, heads at strides 8 and 16.
Checked against: the published layout of names and shapes and parameter counts (nano 912,159; tiny 5,055,855; s 8,968,255;
    m 25,326,495; l 54,208,895; x 99,071,455), outputs and losses of the published code, torchvision's IoU losses,
    scalar assignments written from the papers (tests/oracles/test_yolox.py).
Reproduced: not yet run.
Weights: the published files (Apache-2.0) load unchanged, none is published of yolox_pico. They were trained on
    pictures whose channels are in the order blue, green, red with values 0 to 255.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.losses.boxes import overlap
from opsin.losses.set_prediction import varifocal
from opsin.models.detectors import Detector, Targets
from opsin.models.trunk import Trunk
from opsin.task import Part

NAMES = ("yolox_pico", "yolox_nano", "yolox_tiny", "yolox_s", "yolox_m", "yolox_l", "yolox_x")

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "silu": lambda: nn.SiLU(inplace=True),
    "relu": lambda: nn.ReLU(inplace=True),
    "hardswish": lambda: nn.Hardswish(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.1, inplace=True),
}
STRIDES = (8, 16, 32)
PRIOR = 0.01
_LARGEST = 10.0  # bound on the logarithm of a side in cells, so that half precision stays finite


class Raw(NamedTuple):
    """What the heads say of the L places of all levels, finest level first, rows from the top."""

    boxes: Tensor  # (B, L, 4) center and log size in cells, or (B, L, 4 * bins) logits of the distances to the sides
    classes: Tensor  # (B, L, K) logits
    objectness: Tensor | None  # (B, L) logits
    places: Tensor  # (L, 3) x and y of the cell, counted in cells, and the stride in pixels


class Assigned(NamedTuple):
    """Which object each place has to say."""

    owner: Tensor  # (B, L) int64, position of the object in its picture; -1 for none
    score: Tensor  # (B, L) in [0, 1], what the place should give the object's class; 0 for none


class ConvBlock(nn.Module):
    """Convolution without bias, batch norm, activation; the size is kept but for the stride."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, activation: str, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.03)
        self.act = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.bn(self.conv(x)))
        return out


class DepthwiseBlock(nn.Module):
    """A depthwise convolution, then one of 1x1, each with batch norm and activation."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, activation: str, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvBlock(in_channels, in_channels, kernel, activation, stride, groups=in_channels)
        self.pconv = ConvBlock(in_channels, out_channels, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.pconv(self.dconv(x))
        return out


def _wide(depthwise: bool) -> type[ConvBlock] | type[DepthwiseBlock]:
    return DepthwiseBlock if depthwise else ConvBlock


class Bottleneck(nn.Module):
    """1x1 and 3x3 convolutions, with a shortcut if asked for."""

    def __init__(self, channels: int, shortcut: bool, depthwise: bool, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, channels, 1, activation)
        self.conv2 = _wide(depthwise)(channels, channels, 3, activation)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return x + out if self.shortcut else out


class CrossStage(nn.Module):
    """Half of the channels through bottlenecks, half past them (cross-stage partial connections)."""

    def __init__(
        self, in_channels: int, out_channels: int, depth: int, shortcut: bool, depthwise: bool, activation: str
    ) -> None:
        super().__init__()
        hidden = out_channels // 2
        self.conv1 = ConvBlock(in_channels, hidden, 1, activation)
        self.conv2 = ConvBlock(in_channels, hidden, 1, activation)
        self.conv3 = ConvBlock(2 * hidden, out_channels, 1, activation)
        self.m = nn.Sequential(*[Bottleneck(hidden, shortcut, depthwise, activation) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], 1))
        return out


class PyramidPooling(nn.Module):
    """The map beside its maxima over windows of 5, 9 and 13."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvBlock(channels, channels // 2, 1, activation)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.conv2 = ConvBlock(4 * (channels // 2), channels, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.conv1(x)]
        for _ in range(3):  # a window of 5 over windows of 5 is one of 9, and over that one of 13
            maps.append(self.pool(maps[-1]))
        out: Tensor = self.conv2(torch.cat(maps, 1))
        return out


class Focus(nn.Module):
    """Each 2x2 pixels become channels of one cell, then a 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int, activation: str) -> None:
        super().__init__()
        self.conv = ConvBlock(4 * in_channels, out_channels, 3, activation)

    def forward(self, images: Tensor) -> Tensor:
        upper, lower = images[..., ::2, :], images[..., 1::2, :]
        cells = [upper[..., ::2], lower[..., ::2], upper[..., 1::2], lower[..., 1::2]]
        out: Tensor = self.conv(torch.cat(cells, 1))  # (B, out_channels, H/2, W/2)
        return out


class CSPDarknet(nn.Module):
    """The trunk: four stages of cross-stage blocks after the stem; features at strides 8, 16 and 32.

    Args:
        in_channels: C of the pictures.
        width, depth: factors of channels and of bottlenecks per stage.
        depthwise: 3x3 convolutions of stages are depthwise.
        activation: a name in `ACTIVATIONS`.
    """

    def __init__(self, in_channels: int, width: float, depth: float, depthwise: bool, activation: str) -> None:
        super().__init__()
        base, blocks = int(64 * width), max(round(3 * depth), 1)
        wide, last = _wide(depthwise), (depthwise, activation)
        self.stem = Focus(in_channels, base, activation)
        self.dark2 = nn.Sequential(
            wide(base, 2 * base, 3, activation, stride=2), CrossStage(2 * base, 2 * base, blocks, True, *last)
        )
        self.dark3 = nn.Sequential(
            wide(2 * base, 4 * base, 3, activation, stride=2), CrossStage(4 * base, 4 * base, 3 * blocks, True, *last)
        )
        self.dark4 = nn.Sequential(
            wide(4 * base, 8 * base, 3, activation, stride=2), CrossStage(8 * base, 8 * base, 3 * blocks, True, *last)
        )
        self.dark5 = nn.Sequential(
            wide(8 * base, 16 * base, 3, activation, stride=2),
            PyramidPooling(16 * base, activation),
            CrossStage(16 * base, 16 * base, blocks, False, *last),
        )
        self.channels = (4 * base, 8 * base, 16 * base)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = [self.dark3(self.dark2(self.stem(images)))]
        features.append(self.dark4(features[-1]))
        features.append(self.dark5(features[-1]))
        return features


class PathAggregation(nn.Module):
    """The neck: coarse features are brought to the finer levels, then fine ones to the coarser levels.

    Args:
        backbone: gives features at strides 8, 16 and 32 and says their `channels`.
        width, depth: factors of channels (256, 512, 1024) and of bottlenecks per block.
        levels: 3, or 2 without the coarsest one.
    """

    def __init__(
        self,
        backbone: CSPDarknet | Trunk,
        width: float,
        depth: float,
        depthwise: bool,
        activation: str,
        levels: int,
    ) -> None:
        super().__init__()
        c3, c4, c5 = backbone.channels
        n3, n4, n5 = (int(channels * width) for channels in (256, 512, 1024))
        wide, rest = _wide(depthwise), (round(3 * depth), False, depthwise, activation)
        self.backbone = backbone
        self.lateral_conv0 = ConvBlock(c5, n4, 1, activation)
        self.C3_p4 = CrossStage(n4 + c4, n4, *rest)
        self.reduce_conv1 = ConvBlock(n4, n3, 1, activation)
        self.C3_p3 = CrossStage(n3 + c3, n3, *rest)
        self.bu_conv2 = wide(n3, n3, 3, activation, stride=2)
        self.C3_n3 = CrossStage(2 * n3, n4, *rest)
        self.coarse = levels == 3
        if self.coarse:
            self.bu_conv1 = wide(n4, n4, 3, activation, stride=2)
            self.C3_n4 = CrossStage(2 * n4, n5, *rest)
        self.channels = (n3, n4, n5)[:levels]

    def forward(self, images: Tensor) -> list[Tensor]:
        fine, middle, coarse = self.backbone(images)
        down5 = self.lateral_conv0(coarse)  # (B, n4, H/32, W/32)
        down4 = self.reduce_conv1(self.C3_p4(torch.cat([_doubled(down5), middle], 1)))  # (B, n3, H/16, W/16)
        out3 = self.C3_p3(torch.cat([_doubled(down4), fine], 1))  # (B, n3, H/8, W/8)
        out4 = self.C3_n3(torch.cat([self.bu_conv2(out3), down4], 1))
        if not self.coarse:
            return [out3, out4]
        out5 = self.C3_n4(torch.cat([self.bu_conv1(out4), down5], 1))
        return [out3, out4, out5]


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class DecoupledHead(nn.Module):
    """At every level two branches of 3x3 convolutions, one for the class, one for box and objectness (figure 2).

    Args:
        in_channels: of each level.
        channels: of the branches.
        num_classes: K.
        sides: numbers that say a box.
        objectness: whether there is a score of its own for "an object is here".
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        channels: int,
        num_classes: int,
        sides: int,
        objectness: bool,
        depthwise: bool,
        activation: str,
    ) -> None:
        super().__init__()
        wide = _wide(depthwise)

        def branches() -> nn.ModuleList:
            rows = [[wide(channels, channels, 3, activation) for _ in range(2)] for _ in in_channels]
            return nn.ModuleList(nn.Sequential(*row) for row in rows)

        def predictions(outputs: int) -> nn.ModuleList:
            return nn.ModuleList(nn.Conv2d(channels, outputs, 1) for _ in in_channels)

        self.cls_convs, self.reg_convs = branches(), branches()
        self.cls_preds, self.reg_preds = predictions(num_classes), predictions(sides)
        self.obj_preds = predictions(1) if objectness else None
        self.stems = nn.ModuleList(ConvBlock(n, channels, 1, activation) for n in in_channels)
        for layer in [*self.cls_preds, *(self.obj_preds or [])]:
            nn.init.constant_(layer.bias, math.log(PRIOR / (1 - PRIOR)))

    def forward(self, features: list[Tensor]) -> Raw:
        boxes, classes, objectness, places = [], [], [], []
        for level, (x, stride) in enumerate(zip(features, STRIDES)):
            x = self.stems[level](x)
            of_class, of_box = self.cls_convs[level](x), self.reg_convs[level](x)
            classes.append(_as_rows(self.cls_preds[level](of_class)))
            boxes.append(_as_rows(self.reg_preds[level](of_box)))
            if self.obj_preds is not None:
                objectness.append(_as_rows(self.obj_preds[level](of_box)))
            places.append(places_of(x.shape[-2], x.shape[-1], stride, x.device))
        whole = torch.cat(objectness, 1).squeeze(-1) if objectness else None
        return Raw(torch.cat(boxes, 1), torch.cat(classes, 1), whole, torch.cat(places))


def _as_rows(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)  # (B, H * W, C)


def places_of(height: int, width: int, stride: int, device: torch.device | None = None) -> Tensor:
    """Cells of one level, (height * width, 3) float32: x and y counted in cells, stride."""
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float32, device=device),
        torch.arange(width, dtype=torch.float32, device=device),
        indexing="ij",
    )
    return torch.stack([x, y, torch.full_like(x, stride)], -1).reshape(-1, 3)


def encode(boxes: Tensor, places: Tensor) -> Tensor:
    """Boxes (..., 4) xyxy in pixels as center and log size in cells of their places (..., 3); inverse of `decode_boxes`."""
    corner, stride = places[..., :2], places[..., 2:]
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2 / stride - corner, ((high - low) / stride).clamp(min=1e-8).log()], -1)


def _single(x: Tensor) -> Tensor:
    """Half precision as single; others as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def decode_boxes(raw: Tensor, places: Tensor) -> Tensor:
    """Boxes (..., L, 4) xyxy in pixels that the box branch says at places (L, 3).

    Four numbers a place are center and log size in cells; more are logits of 4 distributions over distances 0, 1, ... in
    cells from the middle of the cell to the left, top, right and bottom side (Generalized Focal Loss, equation 5).
    """
    raw, corner, stride = _single(raw), places[:, :2], places[:, 2:]
    if raw.shape[-1] == 4:
        center, half = (corner + raw[..., :2]) * stride, raw[..., 2:].clamp(max=_LARGEST).exp() * stride / 2
        return torch.cat([center - half, center + half], -1)
    chances = raw.reshape(*raw.shape[:-1], 4, raw.shape[-1] // 4).softmax(-1)
    steps = torch.arange(chances.shape[-1], dtype=raw.dtype, device=raw.device)
    distances = (chances * steps).sum(-1) * stride  # (..., L, 4)
    middle = (corner + 0.5) * stride
    return torch.cat([middle - distances[..., :2], middle + distances[..., 2:]], -1)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (B, M, L) in [0, 1] of boxes (B, M, 4) with boxes (B, L, 4); 0 where both are empty."""
    ax0, ay0, ax1, ay1 = a.unsqueeze(2).unbind(-1)  # (B, M, 1) each
    bx0, by0, bx1, by1 = b.unsqueeze(1).unbind(-1)  # (B, 1, L) each
    width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp_(min=0)
    inter = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp_(min=0).mul_(width)
    union = (ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - inter
    return inter / union.clamp_(min=1e-10)


def _of_class(scores: Tensor, labels: Tensor) -> Tensor:
    """Columns (B, M, L) of scores (B, L, K) for the labels (B, M) of objects."""
    return scores.transpose(1, 2).gather(1, labels.unsqueeze(-1).expand(-1, -1, scores.shape[1]))


def _settled(chosen: Tensor, worth: Tensor) -> Tensor:
    """Owner (B, L) of each place: of the objects (B, M, L) that chose it the one of most worth; else -1."""
    best = worth.masked_fill(~chosen, -math.inf).argmax(1)
    return torch.where(chosen.any(1), best, -1)


def _top(worth: Tensor, allowed: Tensor, count: int, wanted: Tensor | None = None) -> Tensor:
    """The `count` places (B, M, L) of most worth for each object among those allowed, or the first `wanted` (B, M) of them."""
    count = min(count, worth.shape[-1])
    ranked = worth.masked_fill(~allowed, -math.inf).topk(count, -1).indices
    chosen = torch.zeros_like(allowed)
    if wanted is None:
        return chosen.scatter_(-1, ranked, True) & allowed
    early = torch.arange(count, device=worth.device) < wanted.unsqueeze(-1)
    return chosen.scatter_(-1, ranked, early) & allowed


def simota(
    boxes: Tensor, scores: Tensor, places: Tensor, truth: Tensor, labels: Tensor, real: Tensor, radius: float = 1.5
) -> Assigned:
    """SimOTA: each object takes its k places of least cost near its center; k is the sum of its 10 best IoUs, at least 1.

    IoUs count at all places that are near the center of any object of the picture.

    Args:
        boxes: (B, L, 4) xyxy as predicted, in pixels.
        scores: (B, L, K) in [0, 1] as predicted.
        places: (L, 3).
        truth: (B, M, 4) xyxy, filled up to M objects.
        labels: (B, M) int64.
        real: (B, M) bool, False for filling.
        radius: an object may take places whose middle is nearer than this to its center in x and in y, in cells.

    Returns:
        The owners; scores are IoUs. Equation 1 of the paper: cost = class loss + 3 * (-log IoU), the class loss being the
        cross-entropy of the square root of the score.
    """
    middle, reach = (places[:, :2] + 0.5) * places[:, 2:], radius * places[:, 2]
    center = (truth[..., :2] + truth[..., 2:]) / 2
    near = ((center.unsqueeze(2) - middle).abs() < reach.unsqueeze(-1)).all(-1) & real.unsqueeze(-1)  # (B, M, L)
    iou = pairwise_iou(truth, boxes)
    chance = scores.sqrt().clamp(max=1 - 1e-6)
    none = -torch.log1p(-chance)
    own = _of_class(chance, labels).clamp(min=1e-12)
    cost = none.sum(-1).unsqueeze(1) + torch.log1p(-own) - own.log() - 3 * (iou + 1e-8).log()
    best = iou.masked_fill(~near.any(1, keepdim=True), 0.0).topk(min(10, iou.shape[-1]), -1).values
    wanted = best.sum(-1).long().clamp(min=1)
    owner = _settled(_top(-cost, near, 10, wanted), -cost)
    return Assigned(owner, _picked(iou, owner))


def task_aligned(
    boxes: Tensor,
    scores: Tensor,
    places: Tensor,
    truth: Tensor,
    labels: Tensor,
    real: Tensor,
    count: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
) -> Assigned:
    """Task-aligned assignment (TOOD): each object takes the `count` places inside it where score^alpha * IoU^beta is
    largest and above 0.

    A place wanted by several objects goes to that of the largest IoU. An object smaller than a cell of the finest level counts
    as large as one, so that there is a place inside it.

    Args:
        boxes, scores, places, truth, labels, real: as for `simota`.
        count: places an object, at most.
        alpha, beta: exponents of equation 3.

    Returns:
        The owners; scores are the alignments scaled so that the largest of an object is its best IoU (section 3.2).
    """
    middle = (places[:, :2] + 0.5) * places[:, 2:]
    center, half = (truth[..., :2] + truth[..., 2:]) / 2, (truth[..., 2:] - truth[..., :2]) / 2
    half = half.clamp(min=float(places[0, 2]) / 2)
    inside = ((center.unsqueeze(2) - middle).abs() <= half.unsqueeze(2)).all(-1) & real.unsqueeze(-1)
    iou = pairwise_iou(truth, boxes)
    aligned = _of_class(scores, labels).pow(alpha) * iou.pow(beta)  # (B, M, L)
    owner = _settled(_top(aligned, inside & (aligned > 0), count), iou)
    own = owner.unsqueeze(1) == torch.arange(truth.shape[1], device=owner.device).view(-1, 1)  # (B, M, L)
    largest = (aligned * own).amax(-1, keepdim=True).clamp(min=1e-30)
    scaled = aligned / largest * (iou * own).amax(-1, keepdim=True)
    return Assigned(owner, _picked(scaled, owner))


def _picked(values: Tensor, owner: Tensor) -> Tensor:
    """Values (B, M, L) of the owners (B, L); 0 where there is none."""
    taken = values.gather(1, owner.clamp(min=0).unsqueeze(1)).squeeze(1)
    return torch.where(owner >= 0, taken, 0.0)


BOX_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "iou": lambda boxes, truth: 1 - overlap(boxes, truth).square(),  # as the published weights were trained with
    "giou": lambda boxes, truth: 1 - overlap(boxes, truth, "giou"),
    "ciou": lambda boxes, truth: 1 - overlap(boxes, truth, "ciou"),
}


def distribution_loss(logits: Tensor, distances: Tensor) -> Tensor:
    """Distribution focal loss (equation 6 of Generalized Focal Loss), mean over the sides.

    Args:
        logits: (P, 4, bins).
        distances: (P, 4) in cells, at least 0 and below bins - 1.
    """
    low = distances.floor()
    share = distances - low  # of the bin above
    said = logits.log_softmax(-1)
    at_low = said.gather(-1, low.long().unsqueeze(-1)).squeeze(-1)
    at_high = said.gather(-1, low.long().unsqueeze(-1) + 1).squeeze(-1)
    return -((1 - share) * at_low + share * at_high).mean(-1)


def _filled(targets: Targets, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Objects of all pictures in one table: boxes (B, M, 4), labels (B, M), which are real (B, M)."""
    most = max(1, *(len(boxes) for boxes in targets.boxes))
    truth = torch.zeros(len(targets.boxes), most, 4, device=device)
    labels = torch.zeros(len(targets.boxes), most, dtype=torch.long, device=device)
    counts = torch.tensor([len(boxes) for boxes in targets.boxes], device=device)
    real = torch.arange(most, device=device) < counts.unsqueeze(1)
    truth[real] = torch.cat(targets.boxes).to(device, torch.float32)
    labels[real] = torch.cat(targets.labels).to(device)
    return truth, labels, real


class YOLOX(Detector):
    """Trunk, neck and decoupled heads; each place says one box.

    Args:
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W) of the pictures; only some trunks need it.
        width, depth: factors of channels and of bottlenecks.
        depthwise: 3x3 convolutions are depthwise.
        activation: "silu", "relu", "hardswish" or "leaky_relu"; the last three suit integer arithmetic.
        levels: heads at strides 8, 16 and 32, or at the first two: a fifth fewer weights where no object is larger than about
            150 pixels.
        backbone: name of a network with `forward_pyramid` that takes the place of the trunk.
        backbone_kwargs: its arguments.
        assignment: "simota", or "tal" for task-aligned assignment.
        aligned_places: for tal: places an object.
        center_radius: for simota: how far from its center an object may take places, in cells.
        box_loss: "iou", "giou" or "ciou".
        class_loss: "bce", or "varifocal" (without objectness).
        objectness: a branch says whether there is an object, and classes are learned where there is one. Without it classes
            say both.
        reg_max: sides of a box as distributions over this many distances, 0 for center and size. No side is then further
            than `reg_max - 1` cells from its place.
        box_weight, class_weight, objectness_weight, l1_weight, distribution_weight: of the loss terms. The L1 loss is of
            center and size, the paper has it (at weight 1) in the last 15 epochs.
        candidates: boxes a picture that `decode` gives, those of the best scores.

    Raises:
        ConfigError: if a value is not one of those, or two exclude each other.
    """

    head_names = ("head.cls_preds",)
    stride = 32
    overlap = 0.65

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        image_size: tuple[int, int] = (640, 640),
        *,
        width: float = 1.0,
        depth: float = 1.0,
        depthwise: bool = False,
        activation: str = "silu",
        levels: Literal[2, 3] = 3,
        backbone: str | None = None,
        backbone_kwargs: Mapping[str, Any] | None = None,
        assignment: Literal["simota", "tal"] = "simota",
        aligned_places: int = 13,
        center_radius: float = 1.5,
        box_loss: Literal["iou", "giou", "ciou"] = "iou",
        class_loss: Literal["bce", "varifocal"] = "bce",
        objectness: bool = True,
        reg_max: int = 0,
        box_weight: float = 5.0,
        class_weight: float = 1.0,
        objectness_weight: float = 1.0,
        l1_weight: float = 0.0,
        distribution_weight: float = 1.0,
        candidates: int = 1000,
    ) -> None:
        super().__init__()
        _one_of("activation", activation, ACTIVATIONS)
        _one_of("assignment", assignment, ("simota", "tal"))
        _one_of("box_loss", box_loss, BOX_LOSSES)
        _one_of("class_loss", class_loss, ("bce", "varifocal"))
        if objectness and class_loss == "varifocal":
            raise ConfigError("class_loss = 'varifocal' weighs places without objects; set objectness = false with it.")
        if reg_max and (reg_max < 2 or l1_weight):
            raise ConfigError(
                f"reg_max = {reg_max}, l1_weight = {l1_weight}: expected reg_max 0 or at least 2, and l1_weight 0 with it."
            )
        if width * 64 < 2 or depth <= 0:
            raise ConfigError(
                f"width = {width}, depth = {depth}: expected a width of at least 1/32 and a depth above 0."
            )
        trunk = (
            CSPDarknet(in_channels, width, depth, depthwise, activation)
            if backbone is None
            else Trunk(backbone, backbone_kwargs, in_channels, image_size, STRIDES)
        )
        self.backbone = PathAggregation(trunk, width, depth, depthwise, activation, levels)
        sides = 4 * reg_max if reg_max else 4
        channels = int(256 * width)
        self.head = DecoupledHead(
            self.backbone.channels, channels, num_classes, sides, objectness, depthwise, activation
        )
        self.assignment, self.aligned_places, self.center_radius = assignment, aligned_places, center_radius
        self.box_loss, self.class_loss, self.reg_max, self.candidates = box_loss, class_loss, reg_max, candidates
        self.weights = {
            "box": box_weight,
            "class": class_weight,
            "objectness": objectness_weight,
            "l1": l1_weight,
            "distribution": distribution_weight,
        }

    def raw(self, images: Tensor, targets: Targets | None = None) -> Raw:
        """What the heads say of pictures (B, C, H, W)."""
        del targets
        raw: Raw = self.head(self.backbone(images))
        return raw

    def decode(self, raw: Raw, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """The `candidates` places of the best scores, each with its best class, in falling order of the score."""
        scores, labels = self._scores(raw).max(-1)  # (B, L)
        scores, places = scores.topk(min(self.candidates, scores.shape[1]), 1)
        boxes = decode_boxes(raw.boxes, raw.places)
        return boxes.gather(1, places.unsqueeze(-1).expand(-1, -1, 4)), scores, labels.gather(1, places)

    def _scores(self, raw: Raw) -> Tensor:
        classes = _single(raw.classes).sigmoid()
        return classes if raw.objectness is None else classes * _single(raw.objectness).sigmoid().unsqueeze(-1)

    def assign(self, raw: Raw, truth: Tensor, labels: Tensor, real: Tensor) -> Assigned:
        """Which object each place has to say; objects as `simota` takes them."""
        with torch.no_grad():
            given = (decode_boxes(raw.boxes, raw.places), self._scores(raw), raw.places, truth, labels, real)
            if self.assignment == "tal":
                return task_aligned(*given, count=self.aligned_places)
            return simota(*given, radius=self.center_radius)

    def losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        """Loss terms; counts are the places with an object, for task-aligned assignment the sum of their scores.

        Args:
            raw: of the pictures.
            targets: what is in them.
        """
        with torch.autocast(raw.boxes.device.type, enabled=False):
            return self._losses(raw, targets)

    def _losses(self, raw: Raw, targets: Targets) -> dict[str, Part]:
        truth, labels, real = _filled(targets, raw.boxes.device)
        owner, score = self.assign(raw, truth, labels, real)
        taken = owner >= 0
        picture, place = taken.nonzero(as_tuple=True)  # (P,) each
        whose = owner[picture, place]
        goal, boxes, places = truth[picture, whose], _single(raw.boxes[picture, place]), raw.places[place]
        worth = score[taken] if self.assignment == "tal" else torch.ones_like(score[taken])
        found = {"box": (BOX_LOSSES[self.box_loss](decode_boxes(boxes, places), goal) * worth).sum()}
        if self.reg_max:
            middle, stride = (places[:, :2] + 0.5) * places[:, 2:], places[:, 2:]
            distances = torch.cat([middle - goal[:, :2], goal[:, 2:] - middle], -1) / stride
            distances = distances.clamp(min=0, max=self.reg_max - 1.01)
            found["distribution"] = (distribution_loss(boxes.view(-1, 4, self.reg_max), distances) * worth).sum()
        if self.weights["l1"]:
            found["l1"] = ((boxes - encode(goal, places)).abs().sum(-1) * worth).sum()

        logits = _single(raw.classes)
        wanted = torch.zeros_like(logits)
        wanted[picture, place, labels[picture, whose]] = score[taken]
        if raw.objectness is not None:
            logits, wanted = logits[taken], wanted[taken]
            objectness = _single(raw.objectness)
            found["objectness"] = F.binary_cross_entropy_with_logits(objectness, taken.to(objectness), reduction="sum")
        if self.class_loss == "varifocal":
            found["class"] = varifocal(logits, wanted, wanted > 0)
        else:
            found["class"] = F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")
        return {name: Part(total, worth.sum(), self.weights[name]) for name, total in found.items()}


def _one_of(name: str, given: str, known: Any) -> None:
    if given not in known:
        *others, last = (f"'{one}'" for one in known)
        raise ConfigError(f"{name} = '{given}'; expected {', '.join(others)} or {last}.")


yolox_pico = partial(YOLOX, width=0.125, depth=0.33, levels=2)
yolox_nano = partial(YOLOX, width=0.25, depth=0.33, depthwise=True)
yolox_tiny = partial(YOLOX, width=0.375, depth=0.33)
yolox_s = partial(YOLOX, width=0.5, depth=0.33)
yolox_m = partial(YOLOX, width=0.75, depth=0.67)
yolox_l = partial(YOLOX, width=1.0, depth=1.0)
yolox_x = partial(YOLOX, width=1.25, depth=1.33)
