"""Labels that the other pictures speak against.

After confident learning (Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels",
2021) with a quick probe on thumbnails: a label is suspect when the out-of-fold probability of another class is at
least `suspect_confidence`. Ranked by the probability of the suggested class minus that of the given one. The paper's
bar, the average probability with which a class recognizes its own, was tried and left out: for a strong probe it
rises above 0.95 and hides planted errors.

Measured on scikit-learn's 1,797 digits, 20 draws not used to choose the rule: without a planted error 4 labels are
named; one planted error was named in 20 of 20 draws (3 to 7 labels named); of 10 planted errors 195 of 200 were named
(9 or 10 per draw), 90 % of the names right. Of 6 draws looked at while the rule was chosen, one planted error was
missed in 1, and of 10 planted errors 8 to 10 were named: the list is no proof that other labels are right.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from opsin.analyze.check.findings import Finding, counted, verb
from opsin.analyze.check.probe import FOLDS, OutOfFold, components, out_of_fold
from opsin.analyze.check.scan import Scan
from opsin.seeding import numpy_generator

NAMES = ("suspect-labels",)

_LEAST = 10
_LEAST_PER_CLASS = 5


def build(scan: Scan) -> Iterator[Finding]:
    """Codes `suspect-label` and `probe-too-weak`."""
    points: dict[int, NDArray[np.float32]] = {}
    for name, classes, labels in scan.single_heads:
        members = _judged(scan, labels, len(classes))
        if len(members) < _LEAST or len(np.unique(labels[members])) < 2:
            continue
        key = hash(members.tobytes())
        if key not in points:
            tints = scan.facts.tints
            points[key] = components(scan.facts.thumbnails[members], None if tints is None else tints[members])
        kept, given = np.unique(labels[members], return_inverse=True)
        judged = out_of_fold(points[key], given, len(kept), _folds(scan.alike[members], given))
        names = [classes[k] for k in kept]
        yield _report(scan, name, names, members, given, judged)


def _judged(scan: Scan, labels: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    usable = scan.facts.readable & ~scan.facts.flat & (labels >= 0)
    counts = np.bincount(labels[usable], minlength=classes)
    usable &= np.where(labels >= 0, counts[np.maximum(labels, 0)] >= _LEAST_PER_CLASS, False)
    members = np.flatnonzero(usable)
    if len(members) > scan.options.probe_limit:
        members = members[np.linspace(0, len(members) - 1, scan.options.probe_limit).round().astype(np.int64)]
    return members


def _folds(clusters: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Folds (N,) with equal class shares; the members of a cluster of duplicates stay together."""
    _, first, place = np.unique(clusters, return_index=True, return_inverse=True)
    order = numpy_generator("check", "folds").permutation(len(first))
    order = order[np.argsort(labels[first[order]], kind="stable")]
    folds = np.empty(len(first), np.int64)
    folds[order] = np.arange(len(first)) % FOLDS
    return folds[place.reshape(-1)]


def _report(
    scan: Scan, head: str, names: list[str], members: NDArray[np.int64], given: NDArray[np.int64], judged: OutOfFold
) -> Finding:
    where = f" of '{head}'" if len(scan.dataset.heads) > 1 else ""
    skill = f"a quick probe on thumbnails ({judged.accuracy:.1%} of labels agree, {len(names)} classes)"
    data = {"head": head, "judged": len(members), "accuracy": judged.accuracy, "kappa": judged.kappa}
    if judged.kappa < scan.options.probe_kappa:
        return Finding(
            "probe-too-weak",
            "info",
            f"Labels{where} were not judged: {skill} knows too little about these pictures.",
            fix="After training, look at the worst errors in the report (opsin report RUN): wrong labels gather there.",
            data=data,
        )
    rows = np.arange(len(given))
    other = judged.probabilities.copy()
    own = other[rows, given].copy()
    other[rows, given] = 0
    suggested = other.argmax(1)
    strength = other.max(1)
    chosen = np.flatnonzero(strength >= scan.options.suspect_confidence)
    chosen = chosen[np.argsort(own[chosen] - strength[chosen], kind="stable")]
    listed = chosen[: scan.options.listed]
    share = len(chosen) / len(members)
    rating = [
        {
            "id": scan.dataset.id(int(members[i])),
            "given": names[given[i]],
            "suggested": names[suggested[i]],
            "confidence": round(float(strength[i]), 4),
        }
        for i in listed
    ]
    if not len(chosen):
        text = f"No label{where} is suspect to {skill}."
        return Finding("suspect-label", "info", text, data={**data, "count": 0, "groups": 0})
    first = rating[0]
    return Finding(
        "suspect-label",
        "warning",
        f"{counted(len(chosen), 'label')}{where} ({share:.2%}) {verb(len(chosen), 'looks', 'look')} wrong to "
        f"{skill}. Strongest: {first['id']}, given '{first['given']}', looks like '{first['suggested']}'.",
        tuple((str(entry["id"]),) for entry in rating),
        "Look at them in this order and mend the wrong ones; unusual pictures with the right label are among them.",
        tuple(f"given {e['given']}, looks like {e['suggested']} ({_sure(e['confidence'])})" for e in rating),
        {**data, "count": len(chosen), "groups": len(chosen), "suspects": rating},
    )


def _sure(confidence: float) -> str:
    return "> 99%" if confidence > 0.99 else f"{confidence:.0%}"
