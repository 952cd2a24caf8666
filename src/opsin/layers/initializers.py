"""First values of weights by name, for whole networks or for single layers by pattern.

    zeros              refused for weights: all units of a layer would stay alike; `zeros!` forces it
    normal             N(0, 0.01^2)
    truncated-normal   N(0, 0.02^2), cut off at two deviations
    uniform            U(+-1 / sqrt(n_in))
    xavier             U(+-sqrt(6 / (n_in + n_out))): variance 2 / (n_in + n_out) (Glorot and Bengio 2010)
    he                 N(0, 2 / n_in) (He et al. 2015)
    orthogonal         orthonormal rows or columns (Saxe et al. 2014)

A number behind a colon replaces the deviation of the two normals (`normal:0.05`) and is a factor for the others.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from opsin.errors import ConfigError, UnknownName, nearest

Fill = Callable[[Tensor, int, int, float], object]  # a weight, its inputs and outputs per unit, the number given

_FILLS: dict[str, tuple[float, Fill]] = {
    "zeros": (1.0, lambda w, n, m, x: nn.init.zeros_(w)),
    "zeros!": (1.0, lambda w, n, m, x: nn.init.zeros_(w)),
    "normal": (0.01, lambda w, n, m, x: nn.init.normal_(w, 0.0, x)),
    "truncated-normal": (0.02, lambda w, n, m, x: nn.init.trunc_normal_(w, 0.0, x, -2 * x, 2 * x)),
    "uniform": (1.0, lambda w, n, m, x: nn.init.uniform_(w, -x / math.sqrt(n), x / math.sqrt(n))),
    "xavier": (1.0, lambda w, n, m, x: nn.init.uniform_(w, -x * math.sqrt(6 / (n + m)), x * math.sqrt(6 / (n + m)))),
    "he": (1.0, lambda w, n, m, x: nn.init.normal_(w, 0.0, x * math.sqrt(2 / n))),
    "orthogonal": (1.0, lambda w, n, m, x: nn.init.orthogonal_(w, x)),
}
_PLAIN = ("zeros", "zeros!", "normal", "truncated-normal")  # need no number of inputs: fit biases too


@torch.no_grad()
def initialize(network: nn.Module, rules: Mapping[str, str]) -> dict[str, str]:
    """Give parameters new first values, from torch's default generator.

    Args:
        network: changed in place.
        rules: pattern with `*` and `?` to initializer; a later rule wins. A pattern of layers (`head`, `stages.*`, `*`)
            sets their weights, and their biases to 0; scales and shifts of normalization stay. Where no layer matches,
            it is a pattern of parameters (`*.bias`, `head.weight`).

    Returns:
        Parameter to initializer, of all that were set.

    Raises:
        UnknownName: if there is no such initializer.
        ConfigError: if nothing matches a pattern, or weights would be zero without `!`.
    """
    done: dict[str, str] = {}
    modules = {name: module for name, module in network.named_modules() if name}
    owners = {
        f"{name}.{key}" if name else key: (module, parameter)
        for name, module in network.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
    }
    for pattern, text in rules.items():
        kind, number = _read(text)
        layers = {name for name in modules if fnmatch.fnmatchcase(name, pattern)}
        found = {}
        for name, (module, parameter) in owners.items():
            if layers and name.rpartition(".")[0] in layers and _has_weights(module):
                found[name] = kind if parameter.ndim >= 2 else "zeros"
            elif not layers and fnmatch.fnmatchcase(name, pattern) and (parameter.ndim >= 2 or kind in _PLAIN):
                found[name] = kind
        if not found:
            raise ConfigError(_nothing(pattern, text, [*modules, *owners]))
        for name, chosen in found.items():
            module, parameter = owners[name]
            if chosen == "zeros" and parameter.ndim >= 2:
                raise ConfigError(
                    f"model.init: '{name}' would start with zeros, and all its units would stay alike. "
                    f"Take another initializer, or write 'zeros!' if that is meant."
                )
            inputs, outputs = _fans(module, parameter)
            _FILLS[chosen][1](parameter, inputs, outputs, number if chosen == kind else 1.0)
            done[name] = text if chosen == kind else chosen
    return done


def _read(text: str) -> tuple[str, float]:
    kind, colon, number = text.partition(":")
    if kind not in _FILLS:
        raise UnknownName("initializer", kind, _FILLS)
    if not colon:
        return kind, _FILLS[kind][0]
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not value > 0 or math.isinf(value):
        raise ConfigError(f"model.init: '{text}'; expected a positive number behind the colon, e.g. normal:0.05.")
    return kind, value


def _has_weights(module: nn.Module) -> bool:
    return any(parameter.ndim >= 2 for parameter in module.parameters(recurse=False))


def _fans(module: nn.Module, parameter: Tensor) -> tuple[int, int]:
    """Inputs of each unit, and units that each input reaches."""
    if parameter.ndim < 2:
        return 1, 1
    area = math.prod(parameter.shape[2:])
    inputs, outputs = parameter.shape[1] * area, parameter.shape[0] * area
    return (outputs, inputs) if isinstance(module, _ConvTransposeNd) else (inputs, outputs)


def _nothing(pattern: str, text: str, names: list[str]) -> str:
    near = nearest(pattern, names)
    hint = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"model.init: no layer or parameter that '{text}' can set matches '{pattern}'.{hint}"
