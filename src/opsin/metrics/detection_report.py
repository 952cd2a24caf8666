"""Detection judged: metrics, what a report shows, and what a reader must be told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from opsin.metrics import detection_errors as kinds
from opsin.metrics.average_precision import COCO_RECALLS, at_recalls
from opsin.metrics.detection import (
    FALSE_PER_PICTURE,
    LIMITS,
    SIZES,
    Judged,
    Sweep,
    class_ap,
    curve,
    detection_metrics,
    froc,
    judge,
    operating_or_default,
    sweep,
)
from opsin.metrics.inputs import FloatArray, IntArray, Weights, ratio
from opsin.metrics.intervals import Interval, bootstrap
from opsin.metrics.keypoints import (
    CED_END,
    Normalizer,
    ced,
    distances,
    found_points,
    landmark_metrics,
    nme,
    normalizers,
    oks_metrics,
)
from opsin.metrics.warnings import MetricsContext, not_held_out, part_words, sentence, train_better_than_test
from opsin.results.rows import Rows
from opsin.results.section import Curve, Gallery, Matrix, Note, Picture, Section, Table

SHOWN = 24  # pictures of a gallery, lines of a list
LINES = 10  # classes in one plot
MATRIX_CLASSES = 50
REPLICATES = 300  # of the intervals per class
SCORES = np.arange(5, 100, 5) / 100
FEW_OBJECTS = 30
WIDE_INTERVAL = 0.1  # of mAP50: plus or minus 5 points


def metrics(
    rows: Rows,
    class_names: Sequence[str],
    weights: Weights = None,
    *,
    operating: Sequence[float] | None = None,
    sigmas: Sequence[float] = (),
    normalizer: Normalizer = "box",
    eyes: tuple[Sequence[int], Sequence[int]] | None = None,
    head: tuple[int, int] | None = None,
) -> dict[str, FloatArray]:
    """All metrics of detection, each () or (R,); with points in the rows also how far they are off, and OKS if sigmas are known.

    Args:
        rows: of the task `detect`.
        class_names: K names.
        weights: None, (N,) or (R, N) weights of the pictures.
        operating: (K,) scores from which on a detection is said; .5 by default.
        sigmas: of the points, for OKS.
        normalizer, eyes, head: of the distances of points, see `opsin.metrics.keypoints.landmark_metrics`.
    """
    found = detection_metrics(rows, class_names, weights, operating=operating)
    if "true_points" in rows:
        if len(sigmas):
            found |= oks_metrics(rows, class_names, weights, sigmas=sigmas)
        found |= landmark_metrics(rows, class_names, weights, how=normalizer, eyes=eyes, head=head)
    return found


def sections(
    rows: Rows,
    class_names: Sequence[str],
    *,
    operating: Sequence[float] | None = None,
    point_names: Sequence[str] = (),
    normalizer: Normalizer = "box",
    eyes: tuple[Sequence[int], Sequence[int]] | None = None,
) -> list[Section]:
    """Classes, precision-recall curves, confusions, errors, score limits, FROC, worst pictures, doubtful labels; args as `metrics`.

    Args:
        point_names: of the points, if the rows have any.
    """
    if not len(rows):
        return []
    judged = judge(rows, len(class_names))
    scores = operating_or_default(operating, len(class_names))
    found = kinds.errors(rows, class_names, scores)
    sweeps = [sweep(judged, label) for label in range(len(class_names))]
    shown: list[Section] = [_classes(rows, judged, class_names, scores, found), _curves(judged, class_names)]
    if len(class_names) <= MATRIX_CLASSES:
        shown.append(_matrix(class_names, found))
    shown += [*_errors(judged, class_names, found), _limits(sweeps), _froc(judged), _worst(rows, judged, found)]
    shown += _doubtful(rows, judged, class_names, found)
    if "true_points" in rows:
        shown += _points(rows, class_names, point_names, normalizer, eyes)
    return shown


def warnings(
    rows: Rows,
    class_names: Sequence[str],
    *,
    found: Mapping[str, Interval] | None = None,
    train_metrics: Mapping[str, float] | None = None,
    split: str = "test",
    operating: Sequence[float] | None = None,
) -> list[Note]:
    """What could mislead in the metrics.

    Args:
        rows: of the task `detect`.
        class_names: K names.
        found: metrics of these rows with their intervals.
        train_metrics: values on the training part that `found` is compared with.
        split: the part that the rows are from.
        operating: (K,) scores from which on a detection is said.
    """
    given = found or {}
    k = len(class_names)
    context = MetricsContext(class_names, np.zeros((k, k)), given, train_metrics or {}, split)
    notes = [Note(one.code, one.message) for one in [*not_held_out(context), *train_better_than_test(context)]]
    judged = judge(rows, k)
    objects = np.asarray(judged.objects[0].sum(1)).ravel().astype(np.int64)
    if not objects.any():
        return [
            *notes,
            Note("no_objects", f"No picture of {part_words(split)} has an object: there is nothing to measure."),
        ]
    absent = [class_names[i] for i in np.flatnonzero(objects == 0).tolist()]
    if absent:
        text = f"{_some(absent)}: no object in {part_words(split)}, so nothing is known of how well it is found; means leave it out."
        notes.append(Note("absent_class", text))
    few = [f"{class_names[i]} ({objects[i]})" for i in np.flatnonzero((objects > 0) & (objects < FEW_OBJECTS)).tolist()]
    if few:
        text = f"Few objects in {part_words(split)}: {_some(few)}. Their AP says little, and weighs as much as any other in mAP."
        notes.append(Note("few_objects", text))
    interval = given.get("map50")
    if interval is not None and interval.high - interval.low > WIDE_INTERVAL:
        text = (
            f"{sentence(part_words(split))} has only {len(rows)} pictures with {objects.sum()} objects: mAP50 {interval.value:.1%} could "
            f"be anywhere from {interval.low:.1%} to {interval.high:.1%}. Differences smaller than that mean nothing here."
        )
        notes.append(Note("tiny_test_set", text))
    return [*notes, *_advice(rows, judged, class_names, operating_or_default(operating, k))]


# Parts -------------------------------------------------------------------------------------------------------------------


def _classes(rows: Rows, judged: Judged, class_names: Sequence[str], scores: FloatArray, found: kinds.Errors) -> Table:
    whole = class_ap(judged)
    names = [str(i) for i in range(len(class_names))]

    def half(weights: FloatArray) -> dict[str, FloatArray]:
        return dict(zip(names, class_ap(judged, weights, 0).T))

    intervals = bootstrap(half, len(rows), replicates=REPLICATES, seed=0)
    objects = judged.objects[0].tocsr()
    right = found.said[found.kind < 0]
    wrong = found.said[found.kind >= 0]
    true = np.bincount(judged.given.found.labels[right], minlength=len(class_names))
    false = np.bincount(judged.given.found.labels[wrong], minlength=len(class_names))
    total = np.asarray(objects.sum(1)).ravel()
    lines = []
    for i, name in enumerate(class_names):
        at = intervals[str(i)]
        precision, recall = ratio(true[i], true[i] + false[i]), ratio(true[i], total[i])
        values = (whole[i], at.value, at.low, at.high, scores[i], precision, recall)
        pictures = int((objects[i] > 0).sum())
        lines.append((name, int(total[i]), pictures, *(_number(value) for value in values)))
    columns = ("class", "objects", "pictures", "AP", "AP50", "from", "to", "score", "precision", "recall")
    note = "AP50 with its 95 % interval; precision and recall at the score from which on a detection counts as said."
    return Table("Classes", columns, tuple(lines), note)


def _curves(judged: Judged, class_names: Sequence[str]) -> Curve:
    objects = np.asarray(judged.objects[0].sum(1)).ravel()
    order = [int(i) for i in np.argsort(-objects, kind="stable") if objects[i] > 0]
    lines = {}
    for label in order[:LINES]:
        lines[class_names[label]] = COCO_RECALLS, at_recalls(curve(judged, label), COCO_RECALLS)[0, 0]
    rest = f" The {LINES} of {len(order)} classes with the most objects." if len(order) > LINES else ""
    return Curve("Precision and recall at IoU .5", "recall", "precision", lines, note=f"The area is AP50.{rest}")


def _matrix(class_names: Sequence[str], found: kinds.Errors) -> Matrix:
    table = found.confusion.astype(np.float64)
    share = table / np.maximum(table.sum(1, keepdims=True), 1)
    return Matrix(
        "Confusion matrix",
        (*class_names, "background"),
        (*class_names, "not found"),
        share,
        "object",
        "said",
        "Share of the objects of each class; the last row: what is said where no object is.",
    )


def _errors(judged: Judged, class_names: Sequence[str], found: kinds.Errors) -> list[Section]:
    counts = kinds.error_counts(judged, found)
    total = int(counts.sum())
    lines = [
        (name, int(each.sum()), *map(int, each.sum(0)), _number(ratio(each.sum(), total)))
        for name, each in zip(kinds.KINDS, counts)
    ]
    note = (
        "At the operating scores. Localization: right class, IoU .1 to .5; classification: IoU .5 with an object of "
        "another class; duplicate: the object is found already; background: no object; both: wrong class and IoU .1 to .5; "
        "missed: an object that no detection is about (Bolya 2020). Sizes are those of COCO."
    )
    columns = ("error", "all", *SIZES[1:], "share")
    by_class = counts.sum(2).T  # (K, 6)
    order = [int(i) for i in np.argsort(-by_class.sum(1), kind="stable") if by_class[i].any()][:SHOWN]
    per_class = tuple((class_names[i], int(by_class[i].sum()), *map(int, by_class[i])) for i in order)
    tables: list[Section] = [Table("Errors by kind and size", columns, tuple(lines), note)]
    if per_class:
        tables.append(Table("Errors by class", ("class", "all", *kinds.KINDS), per_class, "Most errors first."))
    return tables


def _limits(sweeps: Sequence[Sweep]) -> Table:
    """Precision, recall and F1 of all classes together at round scores."""
    objects = sum(one.objects for one in sweeps)
    lines = []
    for score in SCORES:
        true, false = 0, 0
        for one in sweeps:
            last = int(np.searchsorted(-one.score, -score.astype(one.score.dtype), "right"))
            true += int(one.true[last - 1]) if last else 0
            false += int(one.false[last - 1]) if last else 0
        values = ratio([true, true, 2 * true], [true + false, objects, true + false + objects])
        lines.append((float(score), true, false, objects - true, *(_number(value) for value in values)))
    columns = ("score", "found", "false", "missed", "precision", "recall", "F1")
    return Table(
        "Score limits", columns, tuple(lines), "One limit for all classes, IoU .5; all classes counted together."
    )


def _froc(judged: Judged) -> Curve:
    values = froc(judged, np.ones((1, judged.given.pictures)))[0]
    return Curve(
        "FROC",
        "false detections per picture",
        "share of objects found",
        {"all classes": (np.array(FALSE_PER_PICTURE), values)},
        note="At IoU .5, as the score limit falls.",
    )


def _worst(rows: Rows, judged: Judged, found: kinds.Errors) -> Gallery:
    given = judged.given
    wrong = found.kind >= 0
    false = np.bincount(given.found.picture[found.said[wrong]], minlength=given.pictures)
    missed = np.bincount(given.truth.picture[found.missed], minlength=given.pictures)
    order = [int(i) for i in np.argsort(-(false + missed), kind="stable")[:SHOWN] if false[i] + missed[i]]
    pictures = tuple(
        Picture(str(rows.ids[i]), f"{false[i]} false, {missed[i]} missed", f"{len(rows['true_labels'][i])} objects")
        for i in order
    )
    return Gallery("Worst pictures", pictures, "Most errors first." if pictures else "No errors.")


def _doubtful(rows: Rows, judged: Judged, class_names: Sequence[str], found: kinds.Errors) -> list[Section]:
    """Confident detections without an object, confident other classes, and objects that nothing touches: labels to look at."""
    given = judged.given
    doubtful = np.isin(found.kind, (kinds.BACKGROUND, kinds.CLASSIFICATION))
    at, about = found.said[doubtful], found.object[doubtful]
    order = np.argsort(-given.found.scores[at], kind="stable")[:SHOWN]
    lines, pictures = [], []
    for i, j in zip(at[order].tolist(), about[order].tolist()):
        says = class_names[given.found.labels[i]]
        label = "no object" if j < 0 else class_names[given.truth.labels[j]]
        lines.append(
            _line(rows, given.found.picture[i], f"said: {says}", label, given.found.boxes[i], given.found.scores[i])
        )
        pictures.append(
            Picture(
                str(rows.ids[given.found.picture[i]]),
                f"{says}? labeled: {label}",
                _box(given.found.boxes[i]),
                _corners(given.found.boxes[i]),
            )
        )
    for j in kinds.never_found(judged)[:SHOWN].tolist():
        label = class_names[given.truth.labels[j]]
        lines.append(_line(rows, given.truth.picture[j], "nothing is said", label, given.truth.boxes[j], None))
        pictures.append(
            Picture(
                str(rows.ids[given.truth.picture[j]]),
                f"{label} is never found",
                _box(given.truth.boxes[j]),
                _corners(given.truth.boxes[j]),
            )
        )
    note = "Confident detections without such an object, and objects that no detection touches: wrong labels, or hard cases?"
    columns = ("picture", "model", "label", "box x1, y1, x2, y2", "score")
    if not lines:
        return [Note("labels_agree", "Labels and detections agree: nothing is doubtful.", "info")]
    return [
        Table("Where labels and detections disagree", columns, tuple(lines), note),
        Gallery("Doubtful labels", tuple(pictures[:SHOWN]), "The box of each is in the table above."),
    ]


def _points(
    rows: Rows,
    class_names: Sequence[str],
    names: Sequence[str],
    normalizer: Normalizer,
    eyes: tuple[Sequence[int], Sequence[int]] | None,
) -> list[Section]:
    truth = judge(rows, len(class_names)).given.truth
    if truth.points is None:
        return []
    apart = distances(
        found_points(rows, class_names), truth.points, normalizers(normalizer, truth.points, truth.boxes, eyes)
    )
    apart[truth.crowd] = np.nan
    reached = np.isfinite(apart)
    known = ~np.isnan(apart)
    middle = ratio(np.where(reached, apart, 0).sum(0), reached.sum(0))
    within = ratio((known & (np.nan_to_num(apart, nan=np.inf) <= CED_END)).sum(0), known.sum(0))
    lines = tuple(
        (names[i] if i < len(names) else str(i), int(known[:, i].sum()), _number(middle[i]), _number(within[i]))
        for i in range(apart.shape[1])
    )
    x, y = ced(nme(apart))
    unit = {"interocular": "the distance of the eyes", "box": "the size of the box", "area": "the size of the points"}
    note = f"In units of {unit[normalizer]}; points of objects that were not found are left out of the mean and count as wrong."
    return [
        Table("Points", ("point", "labeled", "mean error", f"within {CED_END:g}"), lines, note),
        Curve("Errors of points", "mean error of an object", "share of objects", {"model": (x, y)}, note=note),
    ]


def _advice(rows: Rows, judged: Judged, class_names: Sequence[str], scores: FloatArray) -> list[Note]:
    given = judged.given
    found = kinds.errors(rows, class_names, scores)
    notes = []
    if not len(found.said):
        best = float(given.found.scores.max(initial=0))
        notes.append(
            Note("nothing_found", f"No detection reaches its class's score; the best one is {best:.2f}.", "warning")
        )
    full = int((np.bincount(given.found.picture, minlength=given.pictures) >= LIMITS[-1]).sum())
    crowded = int((np.bincount(given.truth.picture, minlength=given.pictures) > LIMITS[-1]).sum())
    if crowded:
        text = f"{crowded} pictures have more than {LIMITS[-1]} objects; COCO's metrics look at {LIMITS[-1]} detections of a class."
        notes.append(
            Note("more_objects_than_detections", f"{text} {full} pictures have so many detections.", "warning")
        )
    counts = kinds.error_counts(judged, found)
    total = int(counts.sum())
    duplicates, small = int(counts[kinds.DUPLICATE].sum()), int(counts[kinds.MISSED, :, 0].sum())
    if total >= FEW_OBJECTS and duplicates > 0.3 * total:
        text = f"{duplicates} of {total} errors are second detections of one object: merge boxes at a lower IoU."
        notes.append(Note("duplicates", text))
    if total >= FEW_OBJECTS and small > 0.5 * total:
        text = f"{small} of {total} errors are missed small objects (below 32 x 32 pixels): larger inputs or tiles may find them."
        notes.append(Note("small_objects", text))
    return notes


def _line(rows: Rows, picture: int, model: str, label: str, box: FloatArray, score: Any) -> tuple[Any, ...]:
    return str(rows.ids[picture]), model, label, _box(box), None if score is None else _number(score)


def _corners(box: FloatArray | IntArray) -> tuple[float, float, float, float]:
    left, top, right, bottom = (float(value) for value in box)
    return left, top, right, bottom


def _box(box: FloatArray | IntArray) -> str:
    return ", ".join(f"{value:.0f}" for value in box)


def _number(value: Any) -> float | None:
    return None if np.isnan(value) else round(float(value), 4)


def _some(names: Sequence[str], shown: int = 5) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")
