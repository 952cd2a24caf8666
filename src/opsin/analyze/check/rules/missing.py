"""Samples without a label."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, names_text, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("missing-labels",)


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `no-labels` and `missing-label`."""
    if not scan.dataset.heads:
        yield Finding(
            "no-labels", "info", "The pictures have no labels; checks of labels were left out.",
            fix="For training, sort them into one folder per class, or give a table (file,label).",
        )  # fmt: skip
    for head in scan.dataset.heads:
        values = scan.dataset.targets[head.name]
        if head.kind == "objects":
            continue  # a picture without objects has its answer; the check empty-pictures counts them
        lost = values < 0 if values.dtype.kind == "i" else np.isnan(values).reshape(len(values), -1).any(1)
        members = np.flatnonzero(lost)
        if len(members):
            names = scan.ids(members[: scan.options.listed])
            yield Finding(
                "missing-label",
                "warning",
                f"{of_all(len(members), len(scan), 'sample', 'has', 'have')} no label for "
                f"'{head.name}': {names_text(names)}. They take no part in training or scores for it.",
                tuple((name,) for name in names),
                "Label them, or delete them if they are not meant to be there.",
                data={"head": head.name, "count": len(members), "groups": len(members)},
            )
