"""The data doctor: what is wrong with a data set, in plain words, before an hour of training is spent on it.

One file in `rules/` is one check; it joins by itself. All of them look at one `Scan`, for which every picture is
decoded once. `page.write_page` makes an HTML page of the findings, `table.render` a table for the terminal.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import LEVELS, CheckOptions, Finding, Findings
from opsin.errors import ShapeError, UnknownName
from opsin.registry import Registry

if TYPE_CHECKING:
    from opsin.analyze.check.scan import Progress
    from opsin.data.dataset import Dataset
    from opsin.data.splits import Split

__all__ = ["CheckOptions", "Finding", "Findings", "check", "checks"]

checks = Registry("check", "opsin.analyze.check.rules")


def check(
    dataset: Dataset,
    split: Split | NDArray[np.int8] | None = None,
    *,
    options: CheckOptions | None = None,
    progress: Progress | None = None,
) -> Findings:
    """Look for everything that spoils training or makes its numbers untrue.

    Args:
        dataset: N samples.
        split: the split that will be used, or (N,) positions in train, val, test with -1 for none; by default the parts
            that the data set gives, if any.
        options: thresholds, and which checks to run.
        progress: called with (pictures done, pictures in all).

    Raises:
        UnknownName: if `options` names a check that does not exist.
        ShapeError: if the split is of another length.

    Example:
        >>> from opsin.data import load_data
        >>> found = check(load_data("cats-dogs"))  # doctest: +SKIP
        >>> print(found.counts)  # doctest: +SKIP
        {'error': 0, 'warning': 1, 'info': 2}
    """
    from opsin.analyze.check.profile import profile
    from opsin.analyze.check.scan import Scan, measure

    options = options or CheckOptions()
    chosen = _chosen(options)
    parts = dataset.given_split if split is None else getattr(split, "assignment", split)
    parts = np.asarray(parts, np.int8)
    if parts.shape != (len(dataset),):
        raise ShapeError(f"The split has shape {parts.shape}; the data set {dataset.root} has {len(dataset)} samples.")
    seconds: dict[str, float] = {}
    start = time.perf_counter()
    scan = Scan(dataset, measure(dataset, options, progress), parts, options)
    seconds["scan"] = time.perf_counter() - start
    found: list[Finding] = []
    for name in chosen:
        start = time.perf_counter()
        found.extend(checks.get(name)(scan))
        seconds[name] = round(time.perf_counter() - start, 3)
    start = time.perf_counter()
    numbers: dict[str, Any] = profile(scan)
    seconds["profile"] = time.perf_counter() - start
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    return Findings(tuple(found), numbers, {name: round(value, 3) for name, value in seconds.items()})


def _chosen(options: CheckOptions) -> list[str]:
    for name in (*options.only, *options.skip):
        if name not in checks:
            raise UnknownName("check", name, checks)
    return [name for name in checks if name not in options.skip and (not options.only or name in options.only)]
