"""Reproducible runs, one per file: settings with the number they give, and where the number to beat comes from.

Train with one: `opsin train classify --recipe NAME --data PATH`. Measure it as the tables were made:
`python benchmarks/recipe.py NAME --data PATH`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NamedRecipe:
    """Settings of a run and what they are known to give.

    Args:
        task: name of the task.
        settings: by section, as in a recipe.json.
        data: name of the data set it is for (`opsin data get` where it is in the catalog).
        metric: on the test part.
        bar: what the mean over seeds has to reach, and where that number comes from.
        source: of the bar.
        seeds: how many the number is a mean of.
        minutes: longest training time of one seed on two cores.
    """

    task: str
    settings: Mapping[str, Any]
    data: str
    metric: str
    bar: float
    source: str
    seeds: int = 3
    minutes: float | None = None
