"""Whether a map comes from what the network learned: make its weights random, layer by layer from the top, and compare.

A map that hardly changes shows edges of the picture, not reasons of the model.
Paper: Adebayo et al., "Sanity Checks for Saliency Maps", 2018, https://arxiv.org/abs/1810.03292, section 3.1.
Differs from the paper: layers are made random in a few groups, because each state costs a map.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from opsin.errors import ConfigError
from opsin.explain.question import Found, Question, short_name
from opsin.seeding import torch_seeded

SIMILAR = 0.5  # rank correlation from which on two maps are called alike


@dataclass(frozen=True)
class Sanity:
    """What came of the check.

    Args:
        steps: after each group of layers: its lowest layer and the rank correlation with the map of the trained network.
        correlation: with all layers random, in [-1, 1].
        size_correlation: the same of the values without their sign.
        empty: whether the map of the trained network is the same everywhere, so that nothing could be compared.
    """

    steps: tuple[tuple[str, float], ...]
    correlation: float
    size_correlation: float
    empty: bool = False

    @property
    def passed(self) -> bool:
        """Whether the map depends on what was learned."""
        return not self.empty and abs(self.correlation) < SIMILAR

    @property
    def verdict(self) -> str:
        """The same in words."""
        if self.empty:
            return "The map is the same everywhere: there is nothing to check. Try another method or layer."
        if self.passed:
            text = f"The map depends on what the model learned (rank correlation {self.correlation:.2f} without it)."
            if self.size_correlation < SIMILAR:
                return text
            return (
                f"{text} But where it is large follows from the picture alone ({self.size_correlation:.2f} without signs): "
                "read its colors, not its outline."
            )
        return (
            f"The map hardly depends on what the model learned: with random weights its rank correlation is still "
            f"{self.correlation:.2f}. Do not read reasons from it; try another method."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "passed": self.passed,
            "correlation": round(self.correlation, 4),
            "size_correlation": round(self.size_correlation, 4),
            "steps": [{"layer": name, "correlation": round(value, 4)} for name, value in self.steps],
            "verdict": self.verdict,
        }


def check(question: Question, method: Callable[[Question], Found], *, groups: int = 5, draws: int = 3) -> Sanity:
    """Compare a method's map with those of ever more random copies of the network; the network itself is not touched.

    Args:
        question: what is asked.
        method: with its options; one that chooses a layer should be given it, so that all maps are of the same.
        groups: in how many steps all layers are made random.
        draws: of the random weights; correlations are means over them, because that of one coarse map is up to chance.

    Raises:
        ConfigError: if the model has no weights.
    """
    trained = method(question).map.cpu().numpy()
    layers = [name for name, module in _in_order(question) if _own_parameters(module)][::-1]
    if not layers:
        raise ConfigError("The sanity check makes weights random, and this model has none.")
    if np.ptp(trained) == 0:
        return Sanity((), 0.0, 0.0, empty=True)
    parts = np.array_split(np.arange(len(layers)), min(groups, len(layers)))
    alike, sizes = np.zeros((draws, len(parts))), np.zeros(draws)
    for draw in range(draws):
        model, random = copy.deepcopy(question.model), trained
        for step, part in enumerate(parts):
            for i in part:
                randomize(model.get_submodule(layers[i]), draw, int(i))
            random = method(replace(question, model=model)).map.cpu().numpy()
            alike[draw, step] = rank_correlation(trained, random)
        sizes[draw] = rank_correlation(np.abs(trained), np.abs(random))
    lowest = [short_name(layers[part[-1]]) for part in parts]
    found = alike.mean(0)
    return Sanity(tuple(zip(lowest, found.tolist())), float(found[-1]), float(sizes.mean()))


def randomize(module: nn.Module, *parts: int) -> None:
    """New random values for the parameters that a module holds itself, from some numbers alone."""
    with torch_seeded("sanity", *parts), torch.no_grad():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()  # type: ignore[operator]
            return
        for parameter in _own_parameters(module):
            drawn = torch.randn(parameter.shape) * float(parameter.std(correction=0)) + float(parameter.mean())
            parameter.copy_(drawn)


def rank_correlation(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Spearman's of two maps, in [-1, 1]; 0 if one is the same everywhere."""
    from scipy.stats import spearmanr

    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def _in_order(question: Question) -> list[tuple[str, nn.Module]]:
    """Modules in the order in which they finish one pass; those that nothing calls come first."""
    model, done = question.model, dict[nn.Module, None]()
    handles = [m.register_forward_hook(lambda module, *_: done.setdefault(module)) for m in model.modules()]
    try:
        question.scores(question.pixels)
    finally:
        for handle in handles:
            handle.remove()
    names = {module: name for name, module in model.named_modules()}
    rest = [module for module in names if module not in done]
    return [(names[module], module) for module in (*rest, *done)]


def _own_parameters(module: nn.Module) -> list[nn.Parameter]:
    return list(module.parameters(recurse=False))
