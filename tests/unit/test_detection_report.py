"""Errors of detection by kind, confusions, and what the report and its warnings say of them."""

from __future__ import annotations

import numpy as np
import pytest
from tests.coco_cases import random_rows, rows_of

from opsin.metrics import detection_errors as kinds
from opsin.metrics.detection import detection_metrics, judge, metric_names
from opsin.metrics.detection_report import metrics, sections, warnings
from opsin.metrics.intervals import Interval, bootstrap
from opsin.metrics.names import METRICS
from opsin.results.rows import Rows
from opsin.results.section import Curve, Gallery, Matrix, Table

CLASSES = ("cat", "dog")


def scene() -> Rows:
    """One error of each kind, one right detection, one crowd that is ignored."""
    true = {
        "true_boxes": [[0, 0, 40, 40], [100, 0, 140, 40], [200, 0, 240, 40], [300, 0, 340, 40], [0, 200, 200, 400]],
        "true_labels": [0, 0, 0, 1, 0],
        "true_crowd": [0, 0, 0, 0, 1],
    }
    found = [
        ([0, 0, 40, 40], 0, 0.95, "right"),
        ([0, 0, 40, 38], 0, 0.90, "duplicate"),
        ([100, 0, 120, 30], 0, 0.85, "localization"),
        ([200, 0, 240, 40], 1, 0.80, "classification"),
        ([300, 30, 340, 60], 0, 0.75, "both"),
        ([500, 300, 540, 340], 1, 0.70, "background"),
        ([50, 250, 90, 290], 0, 0.65, "ignored"),
        ([600, 300, 640, 340], 1, 0.10, "not said"),
    ]
    one = {**true, "found_boxes": [f[0] for f in found], "found_labels": [f[1] for f in found]}
    empty = {"found_boxes": [], "found_labels": [], "found_scores": [], "true_boxes": [], "true_labels": []}
    return rows_of([{**one, "found_scores": [f[2] for f in found]}, empty])


def test_each_error_has_its_kind() -> None:
    rows = scene()
    found = kinds.errors(rows, CLASSES, (0.5, 0.5))
    named = ["right" if kind < 0 else kinds.KINDS[kind] for kind in found.kind]
    assert named == ["right", "duplicate", "localization", "classification", "both", "background"]
    np.testing.assert_array_equal(found.object, (0, 0, 1, 2, 3, -1))
    np.testing.assert_array_equal(found.unfound, (1, 2, 3))
    np.testing.assert_array_equal(found.missed, (3,))  # the others have an error that is about them
    np.testing.assert_array_equal(kinds.never_found(judge(rows, 2)), (1, 3))
    # cat found once, taken for a dog once, not found once; the dog is not found; four detections where no object is left
    np.testing.assert_array_equal(found.confusion, [[1, 1, 1], [0, 0, 1], [3, 1, 0]])
    counts = kinds.error_counts(judge(rows, 2), found)
    assert counts.sum() == 6
    np.testing.assert_array_equal(counts[kinds.DUPLICATE], [[0, 1, 0], [0, 0, 0]])
    np.testing.assert_array_equal(counts[kinds.MISSED], [[0, 0, 0], [0, 1, 0]])


def test_sizes_as_coco_has_them() -> None:
    np.testing.assert_array_equal(kinds.sizes(np.array([10, 1023.9, 1024, 9216, 9216.1])), (0, 0, 1, 1, 2))


@pytest.mark.parametrize("seed", range(15))
def test_errors_add_up(seed: int) -> None:
    rows = random_rows(seed, 10, size=60)
    names = ("a", "b", "c")
    judged, found = judge(rows, 3), kinds.errors(rows, names, (0.3, 0.3, 0.3))
    given = judged.given
    objects = np.bincount(given.truth.labels[judged.matches.counted[0]], minlength=3)
    np.testing.assert_array_equal(found.confusion[:3].sum(1), objects)
    np.testing.assert_array_equal(
        found.confusion[:, :3].sum(0), np.bincount(given.found.labels[found.said], minlength=3)
    )
    assert (found.kind < 0).sum() + len(found.unfound) == objects.sum()
    values = detection_metrics(rows, names, operating=(0.3, 0.3, 0.3))
    recall = np.diag(found.confusion)[:3] / np.maximum(objects, 1)
    assert values["recall"] == pytest.approx(recall[objects > 0].mean())
    assert kinds.error_counts(judged, found).sum() == (found.kind >= 0).sum() + len(found.missed)


def test_the_report_shows_what_was_counted() -> None:
    shown = {one.title: one for one in sections(scene(), CLASSES)}
    classes = shown["Classes"]
    assert isinstance(classes, Table)
    assert [line[:3] for line in classes.rows] == [("cat", 3, 1), ("dog", 1, 1)]
    assert classes.rows[0][-2:] == (0.25, 0.3333)
    matrix = shown["Confusion matrix"]
    assert isinstance(matrix, Matrix)
    np.testing.assert_allclose(matrix.values[0], (1 / 3, 1 / 3, 1 / 3))
    errors = shown["Errors by kind and size"]
    assert isinstance(errors, Table)
    assert [line[0] for line in errors.rows] == list(kinds.KINDS)
    assert [line[1] for line in errors.rows] == [1] * 6
    worst = shown["Worst pictures"]
    assert isinstance(worst, Gallery)
    assert [one.caption for one in worst.pictures] == ["5 false, 1 missed"]
    doubtful = shown["Where labels and detections disagree"]
    assert isinstance(doubtful, Table)
    assert [line[1:3] for line in doubtful.rows] == [
        ("said: dog", "cat"), ("said: dog", "no object"), ("nothing is said", "cat"), ("nothing is said", "dog"),
    ]  # fmt: skip
    limits = shown["Score limits"]
    assert isinstance(limits, Table)
    assert limits.rows[0][:4] == (0.05, 1, 6, 3)
    assert limits.rows[-2][:4] == (0.9, 1, 1, 3)


def test_curves_end_where_the_metrics_are() -> None:
    rows = random_rows(3, 12, size=60)
    names = ("a", "b", "c")
    shown = {one.title: one for one in sections(rows, names) if isinstance(one, Curve)}
    lines = shown["Precision and recall at IoU .5"].lines
    mean = np.mean([y.mean() for _, y in lines.values()])
    assert mean == pytest.approx(float(detection_metrics(rows, names)["map50"]))
    assert np.mean(shown["FROC"].lines["all classes"][1]) == pytest.approx(float(metrics(rows, names)["froc"]))


def test_points_are_shown_by_name() -> None:
    points = np.array([[[10, 10, 2], [30, 10, 2]]], float)
    one = {
        "found_boxes": [[0, 0, 40, 40]], "found_scores": [0.9], "found_labels": [0],
        "found_points": points + np.array([4, 0, 0]), "true_boxes": [[0, 0, 40, 40]], "true_labels": [0],
        "true_points": points,
    }  # fmt: skip
    rows = rows_of([one])
    found = sections(rows, ("face",), point_names=("left eye", "right eye"))
    shown = {one.title: one for one in found if isinstance(one, Table)}
    assert shown["Points"].rows[0] == ("left eye", 1, 0.1, 1.0)
    values = metrics(rows, ("face",), sigmas=(0.1, 0.1))
    assert values["nme"] == pytest.approx(0.1)
    assert 0 < values["oks_map"] < 1
    assert "oks_map" not in metrics(rows, ("face",))
    assert values.keys() <= METRICS.keys()


def test_every_metric_has_an_interval_and_a_line_in_the_table() -> None:
    rows = random_rows(0, 30, size=120)
    intervals = bootstrap(lambda weights: detection_metrics(rows, tuple("abc"), weights), 30, replicates=50, seed=0)
    assert set(intervals) == set(metric_names())
    assert set(intervals) <= METRICS.keys()
    for name in ("map", "map50", "voc07", "froc", "recall"):
        one = intervals[name]
        assert one.low < one.value < one.high, name


def test_warnings_say_what_is_missing() -> None:
    wide = {"map50": Interval(0.5, 0.2, 0.8, 2, None, "")}
    codes = {one.code for one in warnings(scene(), (*CLASSES, "bird"), found=wide, split="val")}
    assert {"not_held_out", "absent_class", "few_objects", "tiny_test_set"} <= codes
    assert "nothing_found" in {one.code for one in warnings(scene(), CLASSES, operating=(0.99, 0.99))}
    empty = {"found_boxes": [], "found_labels": [], "found_scores": [], "true_boxes": [], "true_labels": []}
    assert [one.code for one in warnings(rows_of([empty]), CLASSES)] == ["no_objects"]
    assert sections(rows_of([empty]), CLASSES)


def test_warnings_advise_on_duplicates_and_small_objects() -> None:
    true = {"true_boxes": [[0, 0, 40, 40]], "true_labels": [0]}
    double = {**true, "found_boxes": [[0, 0, 40, 40 - i] for i in range(4)], "found_labels": [0] * 4}
    double["found_scores"] = [0.9, 0.8, 0.7, 0.6]
    assert "duplicates" in {one.code for one in warnings(rows_of([double] * 12), CLASSES)}
    small = {
        "found_boxes": [],
        "found_labels": [],
        "found_scores": [],
        "true_boxes": [[0, 0, 9, 9]],
        "true_labels": [0],
    }
    assert "small_objects" in {one.code for one in warnings(rows_of([small] * 40), CLASSES)}
