"""Classify, without torch: from a decoded picture to the exported graph's input, and from its output to a result.

The same as `prepare` and `predict_step` of `opsin.tasks.classify`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import DataError
from opsin.export.standalone.pictures import Pixels, convert, crop_middle, resize
from opsin.results.classification import Classification, Head


def prepare(pixels: Pixels, settings: Mapping[str, Any]) -> Pixels:
    """A picture (H, W, C) as the graph takes it: (C, H, W), raw pixels."""
    pixels = convert(pixels, settings["channels"], settings["pixel_type"], tuple(settings["pixel_range"]))
    height, width = settings["image_size"]
    how = settings["interpolation"]
    if not settings["small"] and height == width:
        return _to_channels_first(_shortest_then_middle(pixels, height, settings["crop_share"], how))
    if pixels.shape[0] * width == pixels.shape[1] * height:
        return _to_channels_first(resize(pixels, (height, width), how))
    scale = max(height / pixels.shape[0], width / pixels.shape[1])
    size = max(height, round(pixels.shape[0] * scale)), max(width, round(pixels.shape[1] * scale))
    return _to_channels_first(crop_middle(resize(pixels, size, how), (height, width)))


def _shortest_then_middle(pixels: Pixels, size: int, share: float, how: str) -> Pixels:
    short = max(size, round(size / share))
    long = max(short, int(short * max(pixels.shape[:2]) / min(pixels.shape[:2])))
    upright = pixels.shape[0] > pixels.shape[1]
    return crop_middle(resize(pixels, (long, short) if upright else (short, long), how), (size, size))


def _to_channels_first(pixels: Pixels) -> Pixels:
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (H, W, C) -> (C, H, W)


def results(
    outputs: Mapping[str, NDArray[Any]], settings: Mapping[str, Any], ids: Sequence[str]
) -> list[Classification]:
    """One result per picture.

    Raises:
        DataError: if a score is not finite.
    """
    logits = outputs["logits"].astype(np.float32)  # (B, sum K)
    if not np.isfinite(logits).all():
        raise DataError(f"The model's scores for {ids[int(np.argwhere(~np.isfinite(logits))[0, 0])]} are not finite.")
    heads, start = [], 0
    for head in settings["heads"]:
        part = logits[:, start : start + len(head["class_names"])]
        start += part.shape[1]
        scores = _softmax(part) if head["kind"] == "single" else _sigmoid(part)
        heads.append((head, scores, _limits(head, settings)))
    found = []
    for place, name in enumerate(ids):
        parts = [Head(h["name"], tuple(h["class_names"]), s[place], h["kind"] == "multi", t) for h, s, t in heads]
        found.append(Classification(name, tuple(parts)))
    return found


def _limits(head: Mapping[str, Any], settings: Mapping[str, Any]) -> NDArray[np.float32] | None:
    used = head["kind"] == "multi" or settings["decide"] == "operating-point"
    return np.asarray(head["thresholds"], np.float32) if used and head["thresholds"] is not None else None


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float32] = power / power.sum(axis=1, keepdims=True)
    return found


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return found
