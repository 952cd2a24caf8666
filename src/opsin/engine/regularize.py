"""Penalties on weights as loss terms of their own, and a limit for the norm of each unit's weights.

A penalty depends on the weights alone, so its gradient is added once per step, after those of all micro-batches and
processes: how a batch is divided changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from opsin.errors import ConfigError, nearest
from opsin.recipe import RegularizeSettings

PREFIX = "penalty."


@dataclass(frozen=True)
class _Limit:
    """A weight, the largest norm of a unit, and its axes: units have the same place on axis `unit` (and `group`)."""

    weight: nn.Parameter
    largest: float
    groups: int | None  # of a transposed convolution, whose units stand on the second axis


class Regularizer:
    """What `regularize` asks for, on the parameters of a model.

    Args:
        settings: strengths, by pattern.
        model: its parameters keep their identity from here on.

    Raises:
        ConfigError: if nothing matches a pattern.
    """

    def __init__(self, settings: RegularizeSettings, model: nn.Module) -> None:
        owners = {
            f"{path}.{key}" if path else key: (module, parameter)
            for path, module in model.named_modules()
            for key, parameter in module.named_parameters(recurse=False)
        }
        parameters = {name: owners[name][1] for name, _ in model.named_parameters()}  # a shared one has one name
        self._powers = {
            f"{PREFIX}{name}": (power, _chosen(name, given, parameters))
            for name, power, given in (("l1", 1, settings.l1), ("l2", 2, settings.l2))
            if given
        }
        self._limits = []
        if settings.max_norm:
            for name, largest in _chosen("max_norm", settings.max_norm, parameters).items():
                module, parameter = owners[name]
                groups = module.groups if isinstance(module, _ConvTransposeNd) else None
                self._limits.append(_Limit(parameter, largest, groups))
        self._parameters = parameters

    def penalties(self, trained: Iterable[nn.Parameter]) -> dict[str, Tensor]:
        """Each penalty with its strengths, over those of the parameters that are trained; scalars with gradient."""
        wanted = {id(parameter) for parameter in trained if parameter.requires_grad}
        found: dict[str, Tensor] = {}
        for name, (power, strengths) in self._powers.items():
            terms = []
            for key, strength in strengths.items():
                weight = self._parameters[key]
                if id(weight) in wanted:
                    terms.append(strength * (weight.abs() if power == 1 else weight.square()).sum())
            if terms:
                found[name] = torch.stack(terms).sum()
        return found

    @torch.no_grad()
    def limit(self, trained: Iterable[nn.Parameter]) -> None:
        """Scale the weights of every unit whose L2 norm is too large down to the limit."""
        wanted = {id(parameter) for parameter in trained if parameter.requires_grad}
        for one in self._limits:
            if id(one.weight) in wanted:
                weight = one.weight if one.groups is None else one.weight.view(one.groups, -1, *one.weight.shape[1:])
                kept = (0,) if one.groups is None else (0, 2)
                axes = [axis for axis in range(weight.ndim) if axis not in kept]
                norm = torch.linalg.vector_norm(weight, dim=axes, keepdim=True) if axes else weight.abs()
                weight.mul_((one.largest / norm.clamp_min(1e-30)).clamp_max(1.0))


def _chosen(
    setting: str, given: float | Mapping[str, float], parameters: Mapping[str, nn.Parameter]
) -> dict[str, float]:
    """Parameter to strength; of several patterns that match, the last one counts, and 0 leaves out."""
    found: dict[str, float] = {}
    for pattern, strength in (given if isinstance(given, Mapping) else {"*": given}).items():
        names = [name for name, parameter in parameters.items() if _matches(_bare(name), parameter, pattern)]
        if not names:
            near = nearest(pattern, [_bare(name) for name in parameters])
            hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
            raise ConfigError(
                f"regularize.{setting}: no weight matches '{pattern}'.{hint} Biases and norms are meant only where the pattern "
                f"ends in their name, e.g. '*.bias'."
            )
        found |= dict.fromkeys(names, strength)
    return {name: strength for name, strength in found.items() if strength > 0}


def _matches(name: str, parameter: nn.Parameter, pattern: str) -> bool:
    layer, _, last = name.rpartition(".")
    if parameter.ndim > 1:
        return fnmatchcase(name, pattern) or fnmatchcase(layer, pattern)
    named = pattern.rpartition(".")[2] == last  # a vector is a bias or belongs to a normalization
    return named and fnmatchcase(name, pattern)


def _bare(name: str) -> str:
    while name.startswith("net."):
        name = name.removeprefix("net.")
    return name
