"""Boxes that a detector starts from: anchors around every cell of a map (Faster R-CNN, RetinaNet), default boxes (SSD)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Size = tuple[int, int]


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """Anchors of one cell around (0, 0), rounded to whole pixels as the published weights have them.

    Args:
        sizes: square roots of their areas, in pixels.
        ratios: height / width.

    Returns:
        (A, 4) float32 xyxy, A = len(ratios) * len(sizes), all sizes of the first ratio first.
    """
    stretch = torch.tensor(ratios, dtype=torch.float32).sqrt()
    size = torch.tensor(sizes, dtype=torch.float32)
    widths, heights = (1 / stretch)[:, None] * size, stretch[:, None] * size  # (ratios, sizes)
    half = torch.stack((widths.flatten(), heights.flatten()), dim=1) / 2
    return torch.cat((-half, half), dim=1).round()


def grid_anchors(cells: Sequence[Tensor], features: Sequence[Tensor], size: Size) -> list[Tensor]:
    """Anchors of every level, row by row, all anchors of a cell together.

    A cell's anchors lie around its upper left corner, and cells are `H // h` by `W // w` pixels apart, as in torchvision.

    Args:
        cells: anchors of one cell, (A, 4), per level.
        features: maps (B, C, h, w), per level.
        size: (H, W) of the pictures.

    Returns:
        (h * w * A, 4) per level, xyxy in pixels; float32, or double for maps in double.
    """
    found = []
    for cell, feature in zip(cells, features, strict=True):
        height, width = feature.shape[-2:]
        dtype, device = torch.promote_types(feature.dtype, torch.float32), feature.device
        y = torch.arange(height, dtype=dtype, device=device) * (size[0] // height)
        x = torch.arange(width, dtype=dtype, device=device) * (size[1] // width)
        shift = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).reshape(-1, 1, 2)
        found.append((shift.repeat(1, 1, 2) + cell.to(device, dtype)).reshape(-1, 4))
    return found


def default_boxes(
    features: Sequence[Tensor],
    size: Size,
    ratios: Sequence[Sequence[float]],
    scales: Sequence[float],
    steps: Sequence[float] | None = None,
) -> list[Tensor]:
    """Default boxes of SSD, section 2.2: around the centers of cells, no side longer than the picture's.

    Level k has a square of scale s_k, one of sqrt(s_k * s_(k+1)), and for every ratio a box of scale s_k lying and standing.

    Args:
        features: maps (B, C, h, w), per level.
        size: (H, W) of the pictures.
        ratios: longer by shorter side, per level, without 1.
        scales: s_k as shares of the picture's sides; one more than there are levels.
        steps: pixels between cells, per level; by default H / h and W / w.

    Returns:
        (h * w * (2 + 2 * ratios), 4) per level, xyxy in pixels; float32, or double for maps in double.
    """
    found = []
    for k, feature in enumerate(features):
        height, width = feature.shape[-2:]
        dtype, device = torch.promote_types(feature.dtype, torch.float32), feature.device
        larger = math.sqrt(scales[k] * scales[k + 1])
        pairs = [(scales[k], scales[k]), (larger, larger)]
        for ratio in ratios[k]:
            long, short = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
            pairs += [(long, short), (short, long)]
        sides = torch.tensor(pairs, dtype=dtype, device=device).clamp(0, 1)  # (A, 2)
        rows, columns = (height, width) if steps is None else (size[0] / steps[k], size[1] / steps[k])
        y = (torch.arange(height, dtype=dtype, device=device) + 0.5) / rows
        x = (torch.arange(width, dtype=dtype, device=device) + 0.5) / columns
        center = torch.stack((x.expand(height, width), y[:, None].expand(height, width)), dim=-1).reshape(-1, 1, 2)
        boxes = torch.cat((center - sides / 2, center + sides / 2), dim=-1).reshape(-1, 4)
        found.append(boxes * boxes.new_tensor([size[1], size[0], size[1], size[0]]))
    return found
