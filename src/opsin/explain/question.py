"""What every method of explanation works on: one number of a model's answer as a function of the pixels.

The model is asked in evaluation mode and left as it was: modes, `requires_grad`, gradients, buffers, hooks and random
numbers are afterwards what they were before, also when a method fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.models.builder import evaluating
from opsin.seeding import seed_torch

BASELINES = ("black", "mean", "gray", "blur")


@dataclass(frozen=True)
class Question:
    """Why this score for this picture?

    Args:
        model: the assembled model, pixel normalization included.
        pixels: the picture as the model gets it, (1, C, H, W) float32 in the units of `range`.
        pick: model outputs to one score per picture, (B,), with gradient.
        chance: model outputs to the same as probabilities, (B,).
        range: lowest and highest value of a pixel.
        batch_size: pictures per pass.
    """

    model: nn.Module
    pixels: Tensor
    pick: Callable[[Any], Tensor]
    chance: Callable[[Any], Tensor]
    range: tuple[float, float] = (0.0, 255.0)
    batch_size: int = 32

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the input."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def scores(self, pixels: Tensor, pick: Callable[[Any], Tensor] | None = None) -> Tensor:
        """Scores (B,) in float64 on the CPU of pictures (B, C, H, W), without gradient."""
        with torch.no_grad():
            parts = [
                (pick or self.pick)(self.model(part)).cpu().double() for part in torch.split(pixels, self.batch_size)
            ]
        return torch.cat(parts)

    def gradients(self, pixels: Tensor) -> Tensor:
        """Gradient of each picture's score with respect to its pixels, (B, C, H, W).

        Raises:
            ConfigError: if no gradient reaches the pixels.
        """
        parts = []
        for part in torch.split(pixels, self.batch_size):
            with torch.enable_grad():
                part = part.detach().requires_grad_()
                score = self.pick(self.model(part))
            self.need_gradient(score)
            parts.append(torch.autograd.grad(score.sum(), part)[0])
        return torch.cat(parts)

    def need_gradient(self, score: Tensor) -> None:
        """Refuse a score that no gradient leads back from.

        Raises:
            ConfigError: if the model cuts it off.
        """
        if not score.requires_grad:
            raise ConfigError(
                "The model's score has no gradient (it is detached on the way). Use a method without: occlusion."
            )

    def baseline(self, kind: str) -> Tensor:
        """A picture without content to compare with, (1, C, H, W).

        Args:
            kind: "black" (lowest values), "mean" (the picture's own mean color), "gray" (middle of the range) or "blur".

        Raises:
            ConfigError: for another kind.
        """
        low, high = self.range
        if kind == "black":
            return torch.full_like(self.pixels, low)
        if kind == "gray":
            return torch.full_like(self.pixels, (low + high) / 2)
        if kind == "mean":
            return self.pixels.mean((2, 3), keepdim=True).expand_as(self.pixels)
        if kind == "blur":
            return blurred(self.pixels, max(1.0, min(self.size) / 10))
        raise ConfigError(f"There is no baseline '{kind}'. Known: {', '.join(BASELINES)}.")


@dataclass(frozen=True)
class Found:
    """What a method gives.

    Args:
        map: (H, W) float over the input; larger says that the place speaks more for the score.
        signed: whether negative values mean that a place speaks against it.
        details: what a reader must know of how it came about; plain values.
    """

    map: Tensor
    signed: bool
    details: dict[str, Any] = field(default_factory=dict)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Pictures (B, C, H, W) under a Gaussian of `sigma` pixels; at the border the edge is repeated."""
    radius = int(3 * sigma)
    steps = torch.arange(-radius, radius + 1, dtype=pixels.dtype, device=pixels.device)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = (kernel / kernel.sum()).expand(pixels.shape[1], 1, 1, -1)  # (C, 1, 1, 2 * radius + 1)
    rows = F.conv2d(F.pad(pixels, (radius, radius, 0, 0), mode="replicate"), kernel, groups=pixels.shape[1])
    columns = F.pad(rows, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(columns, kernel.transpose(2, 3), groups=pixels.shape[1])


def short_name(name: str) -> str:
    """A layer's name without the wrappers around the network (`net.`)."""
    while name.startswith("net."):
        name = name.removeprefix("net.")
    return name


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients of weights inside a block; afterwards everything is as it was before."""
    wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices=devices), evaluating(model):
        seed_torch("explain")
        try:
            for parameter, _ in wanted:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter, before in wanted:
                parameter.requires_grad_(before)
            with torch.no_grad():
                for buffer, kept in buffers:
                    if not torch.equal(buffer, kept):
                        buffer.copy_(kept)
