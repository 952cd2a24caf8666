"""Keypoints of a region as the most likely cell of a heat map each.

Source: Mask R-CNN, 2017, https://arxiv.org/abs/1703.06870, section 5.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.task import Part

POOLED = 14  # cells of a region before the head, both ways; its heat maps have four times as many
CHUNK = 10  # regions whose enlarged heat maps are in memory together
CUBIC = -0.75  # of the bicubic kernel, as torch has it


class KeypointHead(nn.Sequential):
    """3x3 convolutions.

    Args:
        channels: of the features of a region.
        widths: channels of the convolutions.
    """

    def __init__(self, channels: int, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
            channels = width
        super().__init__(*layers)
        for layer in layers:
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(layer.bias)


class KeypointPredictor(nn.Module):
    """One heat map per point: twice as large by a transposed convolution, and again by interpolation.

    Args:
        channels: of what comes in.
        points: P.
    """

    def __init__(self, channels: int, points: int) -> None:
        super().__init__()
        self.kps_score_lowres = nn.ConvTranspose2d(channels, points, 4, stride=2, padding=1)
        nn.init.kaiming_normal_(self.kps_score_lowres.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.kps_score_lowres.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (R, P, 56, 56), a softmax over the cells of each map."""
        return F.interpolate(self.kps_score_lowres(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def keypoint_loss(maps: Tensor, boxes: Tensor, points: Tensor) -> Part:
    """Cross-entropy between each heat map and the cell that its point is in, per labeled point inside its region.

    Args:
        maps: logits (R, P, S, S).
        boxes: of the regions, (R, 4).
        points: (R, P, 3): x, y, visibility.
    """
    cells = maps.shape[-1]
    sides = boxes[:, None, 2:] - boxes[:, None, :2]
    place = ((points[..., :2] - boxes[:, None, :2]) * (cells / sides)).floor().long()
    place = torch.where(points[..., :2] == boxes[:, None, 2:], cells - 1, place)  # on the far side: still inside
    valid = ((place >= 0) & (place < cells)).all(2) & (points[..., 2] > 0)
    target = place[..., 1] * cells + place[..., 0]
    logits = maps.flatten(2).to(boxes.dtype)
    return Part(F.cross_entropy(logits[valid], target[valid], reduction="sum"), valid.sum())


def points_of(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """The most likely pixel of each heat map, enlarged to the size of its region by bicubic interpolation.

    The maps are enlarged by two matrix products, to the size of the picture at most, so that shapes depend on nothing but
    the picture.

    Args:
        maps: logits (B, N, P, S, S).
        boxes: of the regions, (B, N, 4).
        size: (H, W) of the pictures.

    Returns:
        (B, N, P, 3): x, y in pixels of the picture and a score in [0, 1]: the probability of that pixel, as one of S * S
        cells.
    """
    found = [_points_of(maps[:, i : i + CHUNK], boxes[:, i : i + CHUNK], size) for i in range(0, boxes.shape[1], CHUNK)]
    return torch.cat(found, dim=1)


def _points_of(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1)  # (B, N, 2) width, height
    pixels = sides.ceil()
    if torch.compiler.is_exporting():
        largest = (size[1], size[0])
    else:
        width, height = pixels.flatten(0, 1).amax(0).tolist()
        largest = (int(width), int(height))
    maps = maps.to(boxes.dtype)
    across, down = (_enlarging(pixels[..., i], largest[i], maps.shape[-1]) for i in range(2))  # (B, N, pixels, S)
    large = down[:, :, None] @ maps @ across[:, :, None].transpose(-1, -2)  # (B, N, P, H, W)
    beyond = [torch.arange(largest[i], device=maps.device) >= pixels[..., i : i + 1] for i in range(2)]
    large = large.masked_fill((beyond[1][..., :, None] | beyond[0][..., None, :])[:, :, None], -torch.inf)
    best, place = large.flatten(3).max(3)  # (B, N, P)
    cell = torch.stack((place % largest[0], place // largest[0]), dim=-1)
    where = (cell + 0.5) * (sides / pixels)[:, :, None] + boxes[:, :, None, :2]
    score = (best - maps.flatten(3).logsumexp(3)).exp().clamp(max=1)
    return torch.cat((where, score[..., None]), dim=3)


def _enlarging(pixels: Tensor, most: int, cells: int) -> Tensor:
    """Matrices (..., most, cells) of bicubic interpolation from `cells` values to `pixels` (...); later rows mean nothing."""
    at = (torch.arange(most, dtype=pixels.dtype, device=pixels.device) + 0.5) * (cells / pixels[..., None]) - 0.5
    first = at.floor()
    part = at - first
    matrix = at.new_zeros((*at.shape, cells))
    for tap in range(-1, 3):
        distance = (part - tap).abs()
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = ((distance - 5) * distance + 8) * distance * CUBIC - 4 * CUBIC
        weight = near if tap in (0, 1) else far
        cell = (first + tap).clamp(0, cells - 1).long()
        matrix = matrix.scatter_add(-1, cell[..., None], weight[..., None])
    return matrix
