"""What kind of error a false positive or a missed object is, and which class is taken for which (Bolya 2020, "TIDE").

Everything is judged at the operating scores and IoU .5, from the matches that mean AP is made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from opsin.metrics import boxes as geometry
from opsin.metrics.detection import Judged, judge
from opsin.metrics.inputs import FloatArray, IntArray
from opsin.metrics.matching import BoolArray, Pairs, match, pairs, places
from opsin.results.rows import Rows

KINDS = ("localization", "classification", "duplicate", "background", "both", "missed")
"""
* localization: the right class, IoU with its object from .1 to .5;
* classification: IoU of at least .5 with an object of another class;
* duplicate: an object that a better detection has already;
* background: IoU below .1 with every object;
* both: the wrong class, IoU from .1 to .5;
* missed: an object that is not found, nor the object of a localization or classification error.
"""
LOCALIZATION, CLASSIFICATION, DUPLICATE, BACKGROUND, BOTH, MISSED = range(6)
FOREGROUND, NEAR = 0.5, 0.1  # IoU: found, and touched
SMALL, LARGE = 32**2, 96**2  # area in pixels: below, above


@dataclass(frozen=True, eq=False)
class Errors:
    """The detections that are said, and what each of them is.

    Args:
        said: (S,) positions of detections with their class's score, ignored ones left out.
        kind: (S,) index of KINDS, -1 where right.
        object: (S,) the object that it is, or that the error is about; -1 for none.
        unfound: (U,) positions of objects that count and are not found.
        missed: (M,) of them, those that no localization or classification error is about.
        confusion: (K + 1, K + 1) objects of each class (rows) said to be each class (columns); the last is background.
    """

    said: IntArray
    kind: IntArray
    object: IntArray
    unfound: IntArray
    missed: IntArray
    confusion: IntArray


def errors(rows: Rows, class_names: Sequence[str], operating: Sequence[float] | FloatArray) -> Errors:
    """Sort every false positive and every missed object into one kind.

    Args:
        rows: of the task `detect`.
        class_names: K names.
        operating: (K,) scores at and above which a detection is said.
    """
    judged = judge(rows, len(class_names))
    found, truth = judged.given.found, judged.given.truth
    chosen = judged.said(operating)
    right, wrong = chosen & judged.matches.hits(0, 0), chosen & judged.matches.alarms(0, 0)
    counted = judged.matches.counted[0]
    hit = np.zeros(len(truth.labels), np.bool_)
    hit[judged.matches.true[0, 0][right]] = True
    alarms, said = np.flatnonzero(wrong), np.flatnonzero(right | wrong)
    near = _near(judged, alarms, np.flatnonzero(counted))
    same = truth.labels[near.true] == found.labels[near.found]
    own, own_object = _largest(near, same, len(found.labels))
    other, other_object = _largest(near, ~same, len(found.labels))
    kind = np.full(len(found.labels), -1, np.int64)
    about = judged.matches.true[0, 0].copy()
    rules: list[tuple[int, BoolArray, IntArray]] = [
        (LOCALIZATION, (own >= NEAR) & (own < FOREGROUND), own_object),
        (CLASSIFICATION, other >= FOREGROUND, other_object),
        (DUPLICATE, own >= FOREGROUND, own_object),
        (BACKGROUND, np.maximum(own, other) < NEAR, np.full(len(kind), -1, np.int64)),
        (BOTH, np.ones(len(kind), np.bool_), other_object),
    ]
    for code, applies, objects in rules:
        these = wrong & (kind < 0) & applies
        kind[these], about[these] = code, objects[these]
    unfound = np.flatnonzero(counted & ~hit)
    explained = about[wrong & np.isin(kind, (LOCALIZATION, CLASSIFICATION))]
    missed = np.setdiff1d(unfound, explained)
    confusion = _confusion(judged, np.flatnonzero(right), alarms, unfound, near)
    return Errors(said, kind[said], about[said], unfound, missed, confusion)


def sizes(areas: FloatArray) -> IntArray:
    """0 small, 1 medium, 2 large, as COCO's ranges; an area on a border is medium."""
    return (areas >= SMALL).astype(np.int64) + (areas > LARGE)


def error_counts(judged: Judged, found: Errors) -> IntArray:
    """Errors by kind, class and size, (6, K, 3): those about an object by its size, the others by their own."""
    given = judged.given
    wrong = found.kind >= 0
    at, kind, about = found.said[wrong], found.kind[wrong], found.object[wrong]
    objects = np.append(given.truth.area, np.nan)[about]
    areas = np.where(about >= 0, objects, geometry.area(given.found.boxes[at]))
    counts = np.zeros((len(KINDS), judged.num_classes, 3), np.int64)
    np.add.at(counts, (kind, given.found.labels[at], sizes(areas)), 1)
    np.add.at(counts[MISSED], (given.truth.labels[found.missed], sizes(given.truth.area[found.missed])), 1)
    return counts


def never_found(judged: Judged) -> IntArray:
    """Objects (U,) that count and that no detection of any class and score overlaps by .5, the largest first: wrong labels?"""
    truth = judged.given.truth
    counted = judged.matches.counted[0]
    near = _near(judged, np.arange(len(judged.given.found.labels)), np.flatnonzero(counted))
    touched = np.zeros(len(truth.labels), np.bool_)
    touched[near.true[near.overlap >= FOREGROUND]] = True
    unseen = np.flatnonzero(counted & ~touched)
    return unseen[np.argsort(-truth.area[unseen], kind="stable")]


def _near(judged: Judged, detections: IntArray, objects: IntArray) -> Pairs:
    """Chosen detections and objects of any class that overlap by .1, in positions of the whole."""
    found, truth = judged.given.found, judged.given.truth
    near = pairs(
        found.picture[detections],
        truth.picture[objects],
        lambda own, other: geometry.iou(found.boxes[detections[own]], truth.boxes[objects[other]]),
        NEAR,
    )
    return Pairs(detections[near.found], objects[near.true], near.overlap)


def _largest(near: Pairs, which: BoolArray, count: int) -> tuple[FloatArray, IntArray]:
    """Largest overlap of each detection (D,) among the chosen pairs, 0 without any, and its object, -1 without any."""
    best, about = np.zeros(count), np.full(count, -1, np.int64)
    own, other, overlap = (column[which] for column in near)
    order = np.argsort(overlap, kind="stable")
    best[own[order]], about[own[order]] = overlap[order], other[order]
    return best, about


def _confusion(judged: Judged, right: IntArray, alarms: IntArray, unfound: IntArray, near: Pairs) -> IntArray:
    """False positives take the objects that are left, of any class; see `Errors.confusion`."""
    found, truth, k = judged.given.found, judged.given.truth, judged.num_classes
    left = np.zeros(len(truth.labels), np.bool_)
    left[unfound] = True
    free = left[near.true]
    place = np.empty(len(found.labels), np.int64)
    place[alarms] = np.arange(len(alarms))
    matched = match(
        places(found.picture[alarms], found.scores[alarms]),
        Pairs(place[near.found[free]], near.true[free], near.overlap[free]),
        np.array([FOREGROUND]),
        ignored=np.zeros((1, len(left)), np.bool_),
        reusable=np.zeros(len(left), np.bool_),
        outside=np.zeros((1, len(alarms)), np.bool_),
        limit=len(alarms),
    ).true[0, 0]
    table = np.zeros((k + 1, k + 1), np.int64)
    np.add.at(table, (found.labels[right], found.labels[right]), 1)
    confused = matched >= 0
    np.add.at(table, (truth.labels[matched[confused]], found.labels[alarms[confused]]), 1)
    np.add.at(table[k], found.labels[alarms[~confused]], 1)
    left[matched[confused]] = False
    np.add.at(table[:, k], truth.labels[left], 1)
    return table
