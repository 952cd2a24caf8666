"""What SSD and SSDLite share: a backbone with further maps behind it, matching with default boxes, candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from opsin.layers.box_coding import clipped, decode_deltas, encode_deltas
from opsin.layers.candidates import best_of_classes, taken
from opsin.layers.matching import match_default_boxes
from opsin.losses.detection import multibox_loss
from opsin.task import Part

WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # inverse variances of the deltas, as in SSD's own code


class ExtendedBackbone(nn.Module):
    """Some levels of a backbone's pyramid and further, coarser maps.

    Args:
        body: has `forward_pyramid`.
        levels: which of its levels are used, finest first.
        extra: blocks, each of which makes the next map of the last one.
    """

    def __init__(self, body: nn.Module, levels: Sequence[int], extra: Sequence[nn.Module]) -> None:
        super().__init__()
        self.body, self.levels, self.extra = body, tuple(levels), nn.ModuleList(extra)

    def forward(self, images: Tensor) -> list[Tensor]:
        pyramid = self.body.forward_pyramid(images)  # type: ignore[operator]
        features = [pyramid[level] for level in self.levels]
        for block in self.extra:
            features.append(block(features[-1]))
        return features


class MapHead(nn.Module):
    """One prediction layer for every map.

    Args:
        layers: give maps (B, A * outputs, H, W), A anchors a cell.
        outputs: values per anchor.
    """

    def __init__(self, layers: Sequence[nn.Module], outputs: int) -> None:
        super().__init__()
        self.module_list, self.outputs = nn.ModuleList(layers), outputs

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Values (B, anchors of all maps, outputs)."""
        maps = [layer(one) for layer, one in zip(self.module_list, features, strict=True)]
        return torch.cat([one.permute(0, 2, 3, 1).unflatten(3, (-1, self.outputs)).flatten(1, 3) for one in maps], 1)


def default_box_losses(
    logits: Tensor, deltas: Tensor, anchors: Tensor, boxes: Sequence[Tensor], labels: Sequence[Tensor]
) -> dict[str, Part]:
    """SSD's loss of a batch.

    Args:
        logits: (B, N, K + 1), background first.
        deltas: (B, N, 4).
        anchors: default boxes (N, 4).
        boxes: objects (M, 4) of every picture.
        labels: their classes (M,) from 0.

    Returns:
        The terms `classes` and `boxes`, both per matched default box.
    """
    classes = torch.zeros(logits.shape[:2], dtype=torch.int64, device=logits.device)
    targets = []
    for row, objects, names in zip(classes, boxes, labels, strict=True):
        objects = objects.to(anchors.dtype)
        matched = match_default_boxes(objects, anchors, 0.5)
        positive = torch.where(matched >= 0)[0]
        row[positive] = names[matched[positive]] + 1
        targets.append(encode_deltas(objects[matched[positive]], anchors[positive], WEIGHTS))
    return multibox_loss(logits, deltas, classes, targets)


def default_box_candidates(
    logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int], count: int, threshold: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The best default boxes of every class: boxes (B, K * M, 4), scores and labels (B, K * M), M = min(count, N)."""
    chances = logits.to(anchors.dtype).softmax(dim=2)[..., 1:]
    scores, places, labels = best_of_classes(chances, count, threshold)
    boxes = decode_deltas(taken(deltas, places), anchors[places], WEIGHTS)
    return clipped(boxes, size), scores, labels
