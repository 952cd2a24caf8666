"""Any number of pictures through a graph that takes exactly N at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]


def in_batches(run: Callable[[NDArray[Any]], Arrays], inputs: NDArray[Any], size: int | None) -> Arrays:
    """Run inputs (B, ...) through `run`, `size` at a time; the last ones are filled up with zeros, cut off again.

    Args:
        run: inputs to arrays by name, each with first axis B.
        size: what the graph is fixed to, or None when it takes any number.
    """
    if size is None or len(inputs) == size:
        return run(inputs)
    parts = []
    for start in range(0, max(len(inputs), 1), size):
        chunk = inputs[start : start + size]
        filled = np.concatenate([chunk, np.zeros((size - len(chunk), *inputs.shape[1:]), inputs.dtype)])
        parts.append({name: values[: len(chunk)] for name, values in run(filled).items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
