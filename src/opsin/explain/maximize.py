"""Activation maximization: a picture made to excite one unit, one channel or the score of one class.

Papers: Erhan et al., "Visualizing Higher-Layer Features of a Deep Network", 2009; Simonyan et al., "Deep Inside
Convolutional Networks", 2014, https://arxiv.org/abs/1312.6034, section 2. Jitter and smoothness: Olah et al., "Feature
Visualization", 2017, https://doi.org/10.23915/distill.00007.
The defaults are the setting that is usual in books: noise around gray, 20 steps of size 1 along the gradient divided by its
root mean square, the mean of a channel as the goal, nothing that keeps the picture smooth. Deep layers need more steps and
the regularizers.
Checked against: closed forms of linear and quadratic goals (tests/unit/test_seeing.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError
from opsin.explain.question import blurred, undisturbed
from opsin.seeding import torch_generator

NOISE = 20.0 / 255  # width of the noise at the start, as a share of the range of a pixel
SMALL = 1e-5

Goal = Callable[[nn.Module, Tensor], Tensor]
"""Model and pictures (B, C, H, W) to one number each (B,)."""


@dataclass(frozen=True)
class Recipe:
    """How the picture is changed.

    Args:
        steps: along the gradient.
        step_size: in units of 1/255 of the range of a pixel; each step changes a pixel by about so much.
        jitter: largest shift in pixels before each step, at random.
        blur: sigma in pixels of a Gaussian over the picture every fourth step; 0 for none.
        variation: weight of the mean difference between neighboring pixels (total variation), in goals per range of a pixel.
        decay: share by which each step moves the picture towards gray.
        seed: of the start and the jitter.

    Raises:
        ConfigError: for a value that makes no sense.
    """

    steps: int = 20
    step_size: float = 1.0
    jitter: int = 0
    blur: float = 0.0
    variation: float = 0.0
    decay: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"steps": 1, "step_size": 1e-9, "jitter": 0, "blur": 0, "variation": 0, "decay": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name} = {getattr(self, name)}; expected {low} or more.")
        if self.decay >= 1:
            raise ConfigError(f"decay = {self.decay}; expected less than 1.")


@dataclass(frozen=True)
class Ideal:
    """A picture that excites.

    Args:
        pixels: (C, H, W) float32 in the range of the model's pixels.
        before, after: the goal for the noise at the start and for the picture.
        dead: no gradient led from the goal to the pixels, so that nothing could be changed.
    """

    pixels: Tensor
    before: float
    after: float
    dead: bool

    def shown(self) -> NDArray[np.uint8]:
        """(H, W, 3) or (H, W): gray at the mean, a tenth of the range for each standard deviation, cut off at both ends."""
        values = self.pixels.double()
        values = ((values - values.mean()) / (values.std(correction=0) + SMALL) * 0.1 + 0.5).clamp(0, 1)
        share = values.mul(255).round().to(torch.uint8).numpy()
        return np.ascontiguousarray(share[:3].transpose(1, 2, 0)) if len(share) >= 3 else share[0]


def maximize(
    model: nn.Module, goal: Goal, size: tuple[int, int, int], bounds: tuple[float, float], recipe: Recipe
) -> Ideal:
    """Change noise step by step so that a goal grows. The model is left as it was.

    Args:
        model: takes pictures in the range `bounds`.
        goal: what shall grow; called inside the block in which the model is in evaluation mode.
        size: (C, H, W).
        bounds: lowest and highest value of a pixel; the picture stays between.
        recipe: how.

    Raises:
        ConfigError: if the goal has no gradient at all, because the model cuts it off.
    """
    low, high = bounds
    middle, unit = (low + high) / 2, (high - low) / 255
    device = next(model.parameters(), torch.zeros(())).device
    generator = torch_generator(recipe.seed, "maximize")
    noise = torch.rand(size, generator=generator) - 0.5
    pixels = (middle + (high - low) * NOISE * noise)[None].to(device)  # (1, C, H, W)
    with torch.inference_mode(False), undisturbed(model):
        before = _value(model, goal, pixels)
        dead = True
        for step in range(recipe.steps):
            shift = (0, 0)
            if recipe.jitter:
                drawn = torch.randint(-recipe.jitter, recipe.jitter + 1, (2,), generator=generator)
                shift = (int(drawn[0]), int(drawn[1]))
            moved = torch.roll(pixels, shift, (2, 3))
            gradient, alive = _gradient(model, goal, moved, recipe.variation / (high - low))
            dead = dead and not alive
            if dead:
                break  # noise that excites nothing excites nothing a step later
            moved = moved + recipe.step_size * unit * gradient / (
                gradient.square().mean().sqrt() + SMALL * _scale(gradient)
            )
            if recipe.decay:
                moved = middle + (moved - middle) * (1 - recipe.decay)
            pixels = torch.roll(moved, (-shift[0], -shift[1]), (2, 3)).clamp(low, high)
            if recipe.blur and step % 4 == 3 and step < recipe.steps - 1:
                pixels = blurred(pixels, recipe.blur)
        after = _value(model, goal, pixels)
    return Ideal(pixels[0].detach().float().cpu(), before, after, dead)


def _value(model: nn.Module, goal: Goal, pixels: Tensor) -> float:
    with torch.no_grad():
        return float(goal(model, pixels)[0])


def _gradient(model: nn.Module, goal: Goal, pixels: Tensor, variation: float) -> tuple[Tensor, bool]:
    """Gradient of the goal less the weight of the variation, and whether the goal had any."""
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        value = goal(model, pixels).sum()
        if not value.requires_grad:
            raise ConfigError("The goal has no gradient: the model detaches what leads to it.")
        (gradient,) = torch.autograd.grad(value, pixels, allow_unused=False)
        alive = bool(gradient.any())
        if variation:
            rough = F.l1_loss(pixels[:, :, 1:], pixels[:, :, :-1]) + F.l1_loss(pixels[..., 1:], pixels[..., :-1])
            gradient = gradient - variation * torch.autograd.grad(rough, pixels)[0]
    return gradient, alive


def _scale(gradient: Tensor) -> Tensor:
    """What keeps the smallest root mean square from dividing by 0 without mattering: the gradient's own size."""
    return gradient.abs().max().clamp_min(torch.finfo(gradient.dtype).tiny / SMALL)


__all__ = ["Goal", "Ideal", "Recipe", "maximize"]
