"""Integrated gradients: the score's difference to a picture without content, shared out over the pixels.

Paper: Sundararajan et al., "Axiomatic Attribution for Deep Networks", 2017, https://arxiv.org/abs/1703.01365, equation 1.
Differs from the paper: Gauss-Legendre nodes instead of equal steps, which needs fewer of them.
Checked against: captum (tests/oracles/test_explain_captum.py), and by completeness (proposition 1), reported with every result.
"""

from __future__ import annotations

import numpy as np
import torch

from opsin.errors import ConfigError
from opsin.explain.question import Found, Question

NAMES = ("integrated-gradients",)


def build(question: Question, *, steps: int = 64, baseline: str = "black") -> Found:
    """Gradients along the straight line from a baseline to the picture, times the way, summed over the channels.

    The map's sum is the difference between the two scores; `completeness_error` is how far it is off, as a share.

    Args:
        question: what is asked.
        steps: gradients along the line.
        baseline: black, mean (the picture's own mean color), gray or blur.

    Raises:
        ConfigError: for less than one step or an unknown baseline.
    """
    if steps < 1:
        raise ConfigError(f"integrated-gradients: steps = {steps}; expected 1 or more.")
    start = question.baseline(baseline)
    nodes, weights = np.polynomial.legendre.leggauss(steps)  # on [-1, 1]
    total = torch.zeros(
        question.pixels.shape[1:], dtype=torch.float64
    )  # (C, H, W), on the CPU: not every device has it
    way = question.pixels - start  # (1, C, H, W)
    for first in range(0, steps, question.batch_size):
        part = slice(first, first + question.batch_size)
        share = torch.from_numpy((nodes[part] + 1) / 2).to(way)[:, None, None, None]
        weight = torch.from_numpy(weights[part] / 2)[:, None, None, None]
        total += (weight * question.gradients(start + share * way).cpu()).sum(0)
    values = (total * way[0].cpu()).sum(0)  # (H, W)
    here, there = question.scores(torch.cat([question.pixels, start])).tolist()
    error = abs(float(values.sum()) - (here - there)) / max(abs(here - there), 1e-6)
    details = {"steps": steps, "baseline": baseline, "baseline_score": there, "completeness_error": error}
    return Found(values, signed=True, details=details)
