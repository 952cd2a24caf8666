"""Saliency: how much the score would change if a pixel changed a little.

Papers: Simonyan et al., "Deep Inside Convolutional Networks", 2014, https://arxiv.org/abs/1312.6034 (saliency, section 3);
Shrikumar et al., "Not Just a Black Box", 2016, https://arxiv.org/abs/1605.01713 (input x gradient); Smilkov et al.,
"SmoothGrad", 2017, https://arxiv.org/abs/1706.03825.
Checked against: captum (tests/oracles/test_explain_captum.py).
"""

from __future__ import annotations

import torch

from opsin.errors import ConfigError
from opsin.explain.question import Found, Question
from opsin.seeding import torch_generator

NAMES = ("saliency", "input-x-gradient", "smooth-grad")


def saliency(question: Question) -> Found:
    """Largest absolute gradient over the channels, in score per full range of a pixel."""
    low, high = question.range
    gradient = question.gradients(question.pixels)[0]  # (C, H, W)
    return Found(gradient.abs().amax(0) * (high - low), signed=False)


def input_x_gradient(question: Question) -> Found:
    """Gradient times how far a pixel lies above black, summed over the channels: black pixels count for nothing."""
    gradient = question.gradients(question.pixels)  # (1, C, H, W)
    return Found(((question.pixels - question.range[0]) * gradient)[0].sum(0), signed=True)


def smooth_grad(question: Question, *, samples: int = 32, noise: float = 0.15) -> Found:
    """Saliency averaged over noisy copies, which takes away most of its speckle.

    Args:
        question: what is asked.
        samples: noisy copies.
        noise: standard deviation of the noise as a share of the range between the picture's darkest and brightest pixel.

    Raises:
        ConfigError: if there is no sample, or negative noise.
    """
    if samples < 1 or not noise >= 0:
        raise ConfigError(f"smooth-grad: samples = {samples}, noise = {noise}; expected 1 or more, and 0 or more.")
    low, high = question.range
    sigma = noise * float(question.pixels.max() - question.pixels.min())
    total = torch.zeros_like(question.pixels[0])
    for start in range(0, samples, question.batch_size):
        count = min(question.batch_size, samples - start)
        generator = torch_generator("smooth-grad", start)
        noises = torch.randn((count, *question.pixels.shape[1:]), generator=generator).to(question.pixels)
        total += question.gradients(question.pixels + sigma * noises).abs().sum(0)  # (C, H, W)
    details = {"samples": samples, "noise": noise}
    return Found(total.amax(0) / samples * (high - low), signed=False, details=details)
