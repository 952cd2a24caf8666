"""Whether a map shows what the score depends on: take pixels away in the map's order, or put them in, and watch it.

Paper: Petsiuk et al., "RISE", 2018, https://arxiv.org/abs/1806.07421, section 4.3 (deletion and insertion).
Differs from the paper: pixels are replaced by the picture's own mean color; a random order over the same number of steps
is measured beside it, as the chance level.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opsin.explain.question import Found, Question
from opsin.seeding import torch_generator


@dataclass(frozen=True)
class Faithful:
    """Areas under the class's probability, in [0, 1], over the share of pixels that were changed.

    Args:
        deletion: pixels replaced by the picture's mean color, the most important first; lower is better.
        insertion: pixels put into the blurred picture, the most important first; higher is better.
        random_deletion, random_insertion: the same in random order.
    """

    deletion: float
    insertion: float
    random_deletion: float
    random_insertion: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {name: round(value, 4) for name, value in vars(self).items()}


def measure(question: Question, found: Found, *, steps: int = 50) -> Faithful:
    """Deletion and insertion of a map, and of a random order of pixels.

    Args:
        question: what is asked.
        found: a method's answer to it.
        steps: pictures along the way, besides the first one.
    """
    count = found.map.numel()
    drawn = torch.rand(count, generator=torch_generator("faithful"), dtype=torch.float64)
    plain, blur = question.baseline("mean"), question.baseline("blur")
    areas = []
    for values in (found.map.flatten().cpu().double(), drawn):
        ranks = torch.empty(count, dtype=torch.long)
        ranks[values.argsort(descending=True, stable=True)] = torch.arange(count)
        ranks = ranks.reshape(question.size)
        areas += [
            _area(question, question.pixels, plain, ranks, steps),
            _area(question, blur, question.pixels, ranks, steps),
        ]
    return Faithful(*areas)


def _area(question: Question, start: Tensor, end: Tensor, ranks: Tensor, steps: int) -> float:
    """Area under the probability while pixels go from `start` to `end` (1, C, H, W) in the order of their ranks (H, W)."""
    chances = []
    for first in range(0, steps + 1, question.batch_size):
        limits = torch.arange(first, min(first + question.batch_size, steps + 1))
        changed = ranks < (limits * ranks.numel() / steps)[:, None, None]  # (B, H, W)
        pictures = torch.where(changed[:, None].to(start.device), end, start)  # (B, C, H, W)
        chances.append(question.scores(pictures, question.chance))
    curve = torch.cat(chances)
    return float(torch.trapezoid(curve) / (len(curve) - 1))
