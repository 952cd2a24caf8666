"""How many samples each class has, in all and in every part."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, names_text, of_all
from opsin.analyze.check.scan import Scan
from opsin.data.dataset import PARTS

NAMES = ("balance",)

_EFFECTS = {
    "single": "Accuracy then says little about the small classes.",
    "multi": "Accuracy then says little about the small classes.",
    "objects": "The large classes decide what is learned.",
}


def class_counts(scan: Scan) -> dict[str, tuple[tuple[str, ...], NDArray[np.int64]]]:
    """Head name to its classes and counts (4, K) of samples, or of objects: in train, val, test, and in all."""
    found = {}
    for head in scan.dataset.heads:
        if head.kind == "regression":
            continue
        values = scan.dataset.targets[head.name]
        table = np.zeros((4, len(head.class_names)), np.int64)
        for row, mask in enumerate([*(scan.parts == part for part in range(3)), np.ones(len(scan), np.bool_)]):
            if head.kind == "single":
                table[row] = np.bincount(values[mask & (values >= 0)], minlength=len(head.class_names))
            elif head.kind == "objects":
                table[row] = np.bincount(values[mask].objects.labels, minlength=len(head.class_names))
            else:
                table[row] = np.nansum(values[mask], axis=0).astype(np.int64)
        found[head.name] = (head.class_names, table)
    return found


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `one-class`, `empty-class`, `class-missing-from-split`, `few-samples` and `class-imbalance`."""
    kinds = {head.name: head.kind for head in scan.dataset.heads}
    for name, (classes, table) in class_counts(scan).items():
        words = f"'{name}': " if len(kinds) > 1 else ""
        total = table[3]
        noun = "object" if kinds[name] == "objects" else "sample"
        if kinds[name] == "single" and (total > 0).sum() < 2:
            yield Finding(
                "one-class",
                "error",
                f"{words}All labels are of one class.",
                fix="Add the other classes.",
            )
            continue
        empty = [c for c, n in zip(classes, total) if n == 0]
        if empty:
            yield Finding(
                "empty-class", "warning",
                f"{words}{of_all(len(empty), len(classes), 'class', 'has', 'have')} no {noun}: {names_text(empty, 5)}.",
                fix=f"Remove them from the class list or collect {noun}s.", data={"head": name, "classes": empty},
            )  # fmt: skip
        yield from _parts(scan, name, words, classes, table, noun)
        yield from _few(scan, name, words, classes, total, noun)
        present = total[total > 0]
        if not len(present):
            continue
        ratio = float(present.max() / present.min())
        if ratio >= scan.options.imbalance:
            most, least = (
                classes[int(total.argmax())],
                classes[int(np.where(total > 0, total, total.max() + 1).argmin())],
            )
            yield Finding(
                "class-imbalance",
                "warning",
                f"{words}'{most}' has {ratio:.0f} times the {noun}s of '{least}' "
                f"({present.max():,} and {present.min():,}). {_EFFECTS[kinds[name]]}",
                fix={
                    "single": "Judge by balanced_accuracy or f1, and train with class weights (task.balance=effective).",
                    "multi": "Judge by average_precision, and look at every class by itself.",
                    "objects": "Judge by map, the mean over classes, look at every class by itself, and collect more of the rare ones.",
                }[kinds[name]],
                data={"head": name, "ratio": ratio, "effective_number": effective_number(present)},
            )


def effective_number(counts: NDArray[np.int64]) -> float:
    """Effective number of classes: exp of the entropy of the class shares (equal shares give the number of classes)."""
    shares = counts / counts.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def _parts(
    scan: Scan, name: str, words: str, classes: tuple[str, ...], table: NDArray[np.int64], noun: str
) -> Iterator[Finding]:
    for part, title in enumerate(PARTS):
        if not (scan.parts == part).any():
            continue
        missing = [c for c, n, whole in zip(classes, table[part], table[3]) if n == 0 and whole > 0]
        if missing:
            effect = "cannot be learned" if part == 0 else "cannot be measured there"
            yield Finding(
                "class-missing-from-split",
                "error" if part == 0 else "warning",
                f"{words}{of_all(len(missing), len(classes), 'class', 'has', 'have')} no {noun} in {title} "
                f"and {effect}: {names_text(missing, 5)}.",
                fix="Split with data.split.by=stratified, collect samples, or take larger fractions (data.split.fractions).",
                data={"head": name, "part": title, "classes": missing},
            )  # fmt: skip


def _few(
    scan: Scan, name: str, words: str, classes: tuple[str, ...], total: NDArray[np.int64], noun: str
) -> Iterator[Finding]:
    few = [(c, int(n)) for c, n in zip(classes, total) if 0 < n < scan.options.few]
    if few:
        listed = ", ".join(f"{c} ({n})" for c, n in few[:5]) + (f" and {len(few) - 5} more" if len(few) > 5 else "")
        yield Finding(
            "few-samples",
            "warning",
            f"{words}{of_all(len(few), len(classes), 'class', 'has', 'have')} fewer than {scan.options.few} {noun}s: "
            f"{listed}. Their scores will be very uncertain.",
            fix="Collect more, start from pretrained weights (--weights), or use --folds 5 to test every sample once.",
            data={"head": name, "classes": dict(few)},
        )
