"""Labels that can be told from how the file is written: a model learns that instead of the picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding
from opsin.analyze.check.scan import Scan

NAMES = ("shortcuts",)

_KAPPA = 0.6
_LEAST = 40
_VALUES = 30


def build(scan: Scan) -> Iterator[Finding]:
    """Code `label-follows-file`: format, channels or size of the picture predict the class."""
    facts = scan.facts
    sizes = facts.sizes[:, 0].astype(np.int64) * 100_000 + facts.sizes[:, 1]
    clues: dict[str, NDArray[Any]] = {
        "file format": facts.formats,
        "kind of pixels": facts.modes,
        "picture size": sizes,
    }
    for name, classes, labels in scan.single_heads:
        for what, values in clues.items():
            usable = facts.readable & (labels >= 0)
            if usable.sum() < _LEAST:
                continue
            codes = np.unique(values[usable], return_inverse=True)[1].reshape(-1)
            if not 2 <= codes.max() + 1 <= _VALUES:
                continue
            table = np.zeros((codes.max() + 1, len(classes)), np.int64)
            np.add.at(table, (codes, labels[usable]), 1)
            chance = table.sum(0).max() / table.sum()
            right = table.max(1).sum() / table.sum()
            kappa = (right - chance) / max(1 - chance, 1e-9)
            if kappa >= _KAPPA:
                yield Finding(
                    "label-follows-file",
                    "warning",
                    f"The {what} alone tells '{name}' in {right:.0%} of cases (the largest class: {chance:.0%}). "
                    "A model can learn this instead of what the pictures show, and fail on pictures from elsewhere.",
                    fix="Save all pictures in one format, mode and size, or collect every class from every source.",
                    data={"head": name, "clue": what, "accuracy": float(right), "kappa": float(kappa)},
                )
