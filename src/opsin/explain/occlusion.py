"""Occlusion: cover a part of the picture, and see how much the score drops.

Paper: Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014, https://arxiv.org/abs/1311.2901,
section 4.2. Needs no gradient.
Checked against: captum (tests/oracles/test_explain_captum.py).
"""

from __future__ import annotations

import math

import torch

from opsin.errors import ConfigError
from opsin.explain.question import Found, Question

NAMES = ("occlusion",)


def build(question: Question, *, patch: int = 0, stride: int = 0, fill: str = "mean") -> Found:
    """The mean drop of the score over all patches that cover a pixel.

    Args:
        question: what is asked.
        patch: side of the square patch in pixels of the input; by default an eighth of the shorter side.
        stride: pixels from patch to patch; by default half a patch.
        fill: what covers: mean (the picture's own mean color), gray, black or blur.

    Raises:
        ConfigError: if the patch does not fit, or the stride leaves pixels uncovered.
    """
    height, width = question.size
    patch = patch or max(2, min(height, width) // 8)
    stride = stride or max(1, patch // 2)
    if not 1 <= patch <= min(height, width) or not 1 <= stride <= patch:
        raise ConfigError(
            f"occlusion: patch = {patch}, stride = {stride}; expected a patch of 1 to {min(height, width)} pixels (the "
            "input's shorter side), and a stride of 1 pixel up to a patch."
        )
    cover = question.baseline(fill)
    whole = question.scores(question.pixels)
    corners = [
        (top * stride, left * stride)
        for top in range(math.ceil((height - patch) / stride) + 1)
        for left in range(math.ceil((width - patch) / stride) + 1)
    ]
    drops = torch.zeros((height, width), dtype=torch.float64, device=whole.device)
    covered = torch.zeros_like(drops)
    for start in range(0, len(corners), question.batch_size):
        chosen = corners[start : start + question.batch_size]
        pictures = question.pixels.repeat(len(chosen), 1, 1, 1)
        for picture, (top, left) in zip(pictures, chosen):
            place = (slice(None), slice(top, top + patch), slice(left, left + patch))
            picture[place] = cover[0][place]
        for drop, (top, left) in zip(whole - question.scores(pictures), chosen):
            drops[top : top + patch, left : left + patch] += drop
            covered[top : top + patch, left : left + patch] += 1
    details = {"patch": patch, "stride": stride, "fill": fill, "patches": len(corners)}
    return Found(drops / covered, signed=True, details=details)
