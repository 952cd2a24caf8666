"""Detection metrics against pycocotools and faster-coco-eval, to the last bit; VOC and FROC against plain loops."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from tests.coco_cases import as_coco, pycocotools_stats, random_rows, rows_of

from opsin.errors import DataError, ShapeError
from opsin.metrics import boxes as geometry
from opsin.metrics.detection import (
    FALSE_PER_PICTURE,
    detection_metrics,
    froc,
    judge,
    localization_metrics,
    operating_scores,
    sweep,
)
from opsin.results.rows import Rows

NAMES = (
    "map", "map50", "map75", "map_small", "map_medium", "map_large",
    "ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large",
)  # fmt: skip
CLASSES = ("a", "b", "c")


def case(seed: int) -> Rows:
    """Every third case has boxes of all COCO sizes, every third hardly more than a few pixels."""
    return random_rows(seed, pictures=1 + seed % 6, size=(40, 200, 12)[seed % 3])


def ours(rows: Rows, classes: int = 3) -> np.ndarray:
    found = detection_metrics(rows, [str(i) for i in range(classes)])
    return np.array([found[name] for name in NAMES])


@pytest.mark.parametrize("first", [0, *(pytest.param(i, marks=pytest.mark.slow) for i in range(125, 1000, 125))])
def test_random_cases_are_pycocotools_numbers(first: int) -> None:
    for seed in range(first, first + 125):
        rows = case(seed)
        np.testing.assert_array_equal(ours(rows), pycocotools_stats(*as_coco(rows, 3)), err_msg=f"seed {seed}")


@pytest.mark.parametrize("part", ["train", "val"])
def test_tiny_coco_with_moved_boxes_is_pycocotools_numbers(shared_data: Path, part: str) -> None:
    for seed in range(2):
        rows, classes = tiny_coco(shared_data, part, seed)
        found, expected = ours(rows, classes), pycocotools_stats(*as_coco(rows, classes))
        np.testing.assert_array_equal(found, expected)
        assert 0.2 < found[0] < 0.9


def test_faster_coco_eval_says_the_same(shared_data: Path) -> None:
    from faster_coco_eval import COCO, COCOeval_faster

    rows, classes = tiny_coco(shared_data, "val", 7)
    truth, results = as_coco(rows, classes)
    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO(truth)
        judged = COCOeval_faster(given, given.loadRes(results), "bbox", print_function=lambda *_: None)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    np.testing.assert_allclose(ours(rows, classes), judged.stats[:12], rtol=0, atol=1e-12)


def tiny_coco(shared: Path, part: str, seed: int) -> tuple[Rows, int]:
    """The objects of the real pictures; found are moved ones, other classes, doubles and invented ones."""
    given = json.loads((shared / "tiny-coco" / "annotations" / f"instances_{part}2017.json").read_text())
    place = {one["id"]: i for i, one in enumerate(given["categories"])}
    draw, pictures = np.random.default_rng(seed), []
    for image in given["images"]:
        own = [one for one in given["annotations"] if one["image_id"] == image["id"]]
        true = geometry.xywh_to_xyxy([one["bbox"] for one in own])
        labels = np.array([place[one["category_id"]] for one in own], np.int64)
        again = np.repeat(np.arange(len(own)), draw.integers(0, 4, len(own)))
        sides = np.tile(true[again, 2:] - true[again, :2], 2)
        found = np.concatenate([true[again] + draw.normal(0, 0.08, (len(again), 4)) * sides, true[:3] + 40])
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        said = np.concatenate([labels[again], labels[:3]])
        other = draw.random(len(said)) < 0.15
        said[other] = draw.integers(0, len(place), other.sum())
        pictures.append(
            {
                "found_boxes": found,
                "found_scores": draw.integers(1, 40, len(said)) / 40,
                "found_labels": said,
                "true_boxes": true,
                "true_labels": labels,
                "true_crowd": [one["iscrowd"] for one in own],
                "true_area": [one["area"] for one in own],
            }
        )
    return rows_of(pictures), len(place)


# Weights ------------------------------------------------------------------------------------------------------------------


def unequal(seed: int, pictures: int = 12) -> Rows:
    """Without equal scores of one class in one picture, where the order of repeated pictures would count."""
    rows = random_rows(seed, pictures, size=120)
    draw = np.random.default_rng(seed)
    for i in range(pictures):
        levels = draw.permutation(40)[: len(rows["found_scores"][i])]
        rows["found_scores"][i] = levels.astype(np.float32) / 40
    return rows


@pytest.mark.parametrize("seed", range(20))
def test_an_integer_weight_is_the_picture_that_many_times(seed: int) -> None:
    rows = unequal(seed)
    weights = np.random.default_rng(seed + 100).integers(0, 4, (5, len(rows)))
    together = detection_metrics(rows, CLASSES, weights)
    for r, weight in enumerate(weights):
        again = Rows(
            {**rows.select(np.repeat(np.arange(len(rows)), weight)).columns, "id": np.arange(weight.sum()).astype(str)}
        )
        expected = detection_metrics(again, CLASSES)
        for name, value in together.items():
            np.testing.assert_allclose(value[r], expected[name], rtol=0, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("seed", range(20))
def test_weights_of_one_change_nothing(seed: int) -> None:
    rows = case(seed)
    plain = detection_metrics(rows, CLASSES)
    for weights in (np.ones(len(rows)), np.ones((3, len(rows)))):
        for name, value in detection_metrics(rows, CLASSES, weights).items():
            np.testing.assert_array_equal(value, np.broadcast_to(plain[name], value.shape), err_msg=name)


def test_sizes_and_classes_without_objects_are_nan() -> None:
    box = [[0.0, 0.0, 10.0, 10.0]]
    one = {"found_boxes": box, "found_scores": [0.9], "found_labels": [0], "true_boxes": box, "true_labels": [0]}
    found = detection_metrics(rows_of([one]), CLASSES)
    assert found["map"] == found["map_small"] == pytest.approx(1)
    assert found["voc"] == pytest.approx(1)
    assert found["f1"] == 1
    assert np.isnan(found["map_medium"])
    assert np.isnan(found["map_large"])
    nothing = {"found_boxes": [], "found_scores": [], "found_labels": [], "true_boxes": [], "true_labels": []}
    assert all(np.isnan(value) for value in detection_metrics(rows_of([nothing]), CLASSES).values())


def test_rows_that_do_not_fit_are_refused() -> None:
    rows = case(4)
    with pytest.raises(DataError, match="expected a position in the 1 class names"):
        detection_metrics(rows, CLASSES[:1])
    with pytest.raises(ShapeError, match="true_area"):
        judge(Rows({name: rows[name] for name in rows if name != "true_area"}), 3)
    short = Rows({name: rows[name].copy() for name in rows})
    at = int(np.argmax([len(one) for one in rows["found_scores"]]))
    short["found_boxes"][at] = short["found_boxes"][at][:-1]
    with pytest.raises(ShapeError, match="found_boxes has"):
        judge(short, 3)
    odd = Rows({name: rows[name].copy() for name in rows})
    odd["found_scores"][at] = np.full_like(odd["found_scores"][at], np.nan)
    with pytest.raises(DataError, match="score is nan"):
        judge(odd, 3)


# PASCAL VOC, FROC, operating scores, localization against plain loops ---------------------------------------------------


def voc_by_hand(rows: Rows, label: int) -> tuple[float, float]:
    """The development kit's procedure for one class, box by box."""
    every = []
    objects = 0
    taken = {}
    for i in range(len(rows)):
        skipped = rows["true_difficult"][i] | rows["true_crowd"][i]
        objects += int(((rows["true_labels"][i] == label) & ~skipped).sum())
        every += [(-s, i, j) for j, s in enumerate(rows["found_scores"][i]) if rows["found_labels"][i][j] == label]
    outcome = []
    for _, i, j in sorted(every, key=lambda one: one[0]):
        best, at = -1.0, -1
        for g in range(len(rows["true_labels"][i])):
            if rows["true_labels"][i][g] == label:
                x1, y1, x2, y2 = rows["found_boxes"][i][j].astype(float)
                u1, v1, u2, v2 = rows["true_boxes"][i][g]
                w, h = min(x2, u2) - max(x1, u1), min(y2, v2) - max(y1, v1)
                if w > 0 and h > 0:
                    crowd = rows["true_crowd"][i][g]
                    union = (x2 - x1) * (y2 - y1) + (0 if crowd else (u2 - u1) * (v2 - v1) - w * h)
                    if w * h / union > best:
                        best, at = w * h / union, g
        if best < 0.5:
            outcome.append(False)
        elif not (rows["true_difficult"][i][at] or rows["true_crowd"][i][at]):
            outcome.append((i, at) not in taken)
            taken[i, at] = True
    if not objects:
        return np.nan, np.nan
    true = np.cumsum(outcome) if outcome else np.zeros(0)
    recall, precision = true / objects, true / np.arange(1, len(outcome) + 1)
    eleven = np.mean([max(precision[recall >= t / 10], default=0.0) for t in range(11)])
    recall, precision = np.array([0, *recall, 1]), np.array([0, *precision, 0])
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    return float(eleven), float(sum((recall[i] - recall[i - 1]) * precision[i] for i in range(1, len(recall))))


@pytest.mark.parametrize("seed", range(60))
def test_voc_is_the_development_kits_procedure(seed: int) -> None:
    rows = random_rows(seed, 8, size=30)
    expected = np.array([voc_by_hand(rows, label) for label in range(3)])
    found = detection_metrics(rows, CLASSES)
    np.testing.assert_allclose([found["voc07"], found["voc"]], np.nanmean(expected, axis=0), atol=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_froc_is_the_best_of_all_score_limits(seed: int) -> None:
    rows = random_rows(seed, 8, size=30)
    judged = judge(rows, 3)
    scores, objects = judged.given.found.scores, judged.matches.counted[0].sum()
    expected = []
    for limit in FALSE_PER_PICTURE:
        best = 0
        for score in np.unique(scores):
            said = scores >= score
            if (said & judged.matches.alarms(0, 0)).sum() <= limit * len(rows):
                best = max(best, int((said & judged.matches.hits(0, 0)).sum()))
        expected.append(best / objects)
    np.testing.assert_allclose(froc(judged, np.ones((1, len(rows))))[0], expected)


@pytest.mark.parametrize("seed", range(10))
def test_operating_scores_have_the_best_f1(seed: int) -> None:
    rows = unequal(seed)
    judged = judge(rows, 3)
    chosen = operating_scores(rows, CLASSES)
    best = [np.nanmax(sweep(judged, k).f1, initial=0) for k in range(3)]
    np.testing.assert_allclose(detection_metrics(rows, CLASSES, operating=chosen)["f1"], np.mean(best), atol=1e-12)
    assert detection_metrics(rows, CLASSES)["f1"] <= np.mean(best) + 1e-12


def test_localization_of_three_pictures() -> None:
    true = {"true_boxes": [[0, 0, 10, 10]], "true_labels": [1]}
    right = {**true, "found_boxes": [[0, 0, 10, 8]], "found_labels": [1], "found_scores": [0.9]}
    second = {
        **true,
        "found_boxes": [[0, 0, 10, 10], [0, 0, 10, 10]],
        "found_labels": [0, 1],
        "found_scores": [0.9, 0.8],
    }
    nothing = {**true, "found_boxes": [], "found_labels": [], "found_scores": []}
    empty = {**right, "true_boxes": [], "true_labels": []}
    found = localization_metrics(rows_of([right, second, nothing, empty]))
    assert found["localization_error"] == pytest.approx(1 / 3)
    assert found["localization_error1"] == pytest.approx(2 / 3)
    assert found["mean_iou"] == pytest.approx((0.8 + 1 + 0) / 3)
