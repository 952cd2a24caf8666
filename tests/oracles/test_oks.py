"""Keypoint metrics: OKS-AP against pycocotools to the last bit, the others in closed form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tests.coco_cases import as_coco, pycocotools_stats, rows_of

from opsin.errors import ConfigError, ShapeError
from opsin.metrics.keypoints import (
    COCO_SIGMAS,
    auc_ced,
    ced,
    distances,
    failure_rate,
    head_sizes,
    landmark_metrics,
    nme,
    normalizers,
    oks,
    oks_metrics,
    pck,
)
from opsin.results.rows import Rows

NAMES = ("oks_map", "oks_map50", "oks_map75", "oks_map_medium", "oks_map_large", "oks_ar")


def persons(shared: Path, part: str, seed: int) -> Rows:
    """The labeled persons of the real pictures, found several times or not at all, with points moved."""
    given = json.loads((shared / "tiny-coco" / "annotations" / f"person_keypoints_{part}2017.json").read_text())
    draw, pictures = np.random.default_rng(seed), []
    for image in given["images"]:
        own = [one for one in given["annotations"] if one["image_id"] == image["id"]]
        points = np.array([one["keypoints"] for one in own], np.float64).reshape(-1, 17, 3)
        boxes = np.array([one["bbox"] for one in own], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        again = np.repeat(np.arange(len(own)), draw.integers(0, 3, len(own)))
        found = points[again].astype(np.float32)
        size = np.sqrt([own[i]["area"] for i in again]).reshape(-1, 1, 1)
        found[..., :2] += draw.normal(0, 0.03, (len(again), 17, 2)) * size
        pictures.append(
            {
                "found_boxes": boxes[again],
                "found_scores": draw.integers(1, 20, len(again)) / 20,
                "found_labels": np.zeros(len(again)),
                "found_points": found,
                "true_boxes": boxes,
                "true_labels": np.zeros(len(own)),
                "true_crowd": [one["iscrowd"] for one in own],
                "true_area": [one["area"] for one in own],
                "true_points": points,
            }
        )
    return rows_of(pictures)


@pytest.mark.parametrize("part", ["train", "val"])
def test_tiny_coco_persons_are_pycocotools_numbers(shared_data: Path, part: str) -> None:
    for seed in range(3):
        rows = persons(shared_data, part, seed)
        found = oks_metrics(rows, ["person"])
        expected = pycocotools_stats(*as_coco(rows, 1), "keypoints")[:6]
        np.testing.assert_array_equal([found[name] for name in NAMES], expected)
        assert 0.2 < found["oks_map"] < 0.9


def test_weights_are_repetitions(shared_data: Path) -> None:
    rows = persons(shared_data, "val", 0)
    for i in range(len(rows)):
        rows["found_scores"][i] = np.random.default_rng(i).permutation(50)[: len(rows["found_scores"][i])] / 50
    weights = np.random.default_rng(1).integers(0, 3, (3, len(rows)))
    for names, metrics in ((["person"], oks_metrics), (["person"], landmark_metrics)):
        together = metrics(rows, names, weights)
        for r, weight in enumerate(weights):
            which = np.repeat(np.arange(len(rows)), weight)
            again = Rows({**rows.select(which).columns, "id": np.arange(len(which)).astype(str)})
            for name, value in metrics(again, names).items():
                np.testing.assert_allclose(together[name][r], value, atol=1e-12, err_msg=name)


def test_oks_falls_with_the_distance_in_units_of_size_and_sigma() -> None:
    true = np.zeros((1, 17, 3))
    true[:, :5, 2] = 2
    found = true.copy()
    area = np.array([400.0])
    found[0, 5:, :2] = 1e6  # not labeled: they do not count
    box = [[0, 0, 20, 20]]
    assert oks(found, true, box, area, COCO_SIGMAS)[0] == 1
    found[0, :5, 0] = 20 * 2 * COCO_SIGMAS[:5]  # one standard deviation each
    assert oks(found, true, box, area, COCO_SIGMAS)[0] == pytest.approx(np.exp(-0.5))
    with pytest.raises(ShapeError, match="sigmas"):
        oks(found, true, box, area, COCO_SIGMAS[:5])


def test_distances_count_labeled_points_only() -> None:
    true = np.array([[[0, 0, 2], [10, 0, 1], [5, 5, 0]], [[0, 0, 2], [20, 0, 2], [0, 0, 0]]], float)
    found = true.copy()
    found[0, :, 0] += (1, 3, 100)
    found[1, 0, 1] += 4
    eyes = normalizers("interocular", true, eyes=([0], [1]))
    np.testing.assert_allclose(eyes, (10, 20))
    apart = distances(found, true, eyes)
    np.testing.assert_allclose(apart, [[0.1, 0.3, np.nan], [0.2, 0, np.nan]])
    np.testing.assert_allclose(nme(apart), (0.2, 0.1))
    np.testing.assert_allclose(pck(apart, 0.15), (0.5, 0.5, np.nan))
    np.testing.assert_allclose(normalizers("box", true, [[0, 0, 4, 9], [0, 0, 0, 9]]), (6, np.nan))
    np.testing.assert_allclose(normalizers("area", true), (10, 20))
    np.testing.assert_allclose(head_sizes(true, (0, 1)), (6, 12))
    with pytest.raises(ConfigError, match="both eyes"):
        normalizers("interocular", true)


def test_ced_and_its_area() -> None:
    errors = np.array([0.02, 0.04, 0.04, 0.2, np.inf, np.nan])
    x, y = ced(errors, 0.1)
    np.testing.assert_allclose(x, (0, 0.02, 0.04, 0.1))
    np.testing.assert_allclose(y, (0, 0.2, 0.6, 0.6))
    assert auc_ced(errors, 0.1) == pytest.approx((0.2 * 0.02 + 0.6 * 0.06) / 0.1)  # rectangles below the steps
    assert failure_rate(errors, 0.1) == pytest.approx(2 / 5)
    assert np.isnan(auc_ced([]))
    assert np.isnan(failure_rate([np.nan]))


def test_objects_that_are_not_found_have_failed() -> None:
    points = np.array([[[10, 10, 2], [30, 10, 2]], [[110, 10, 2], [130, 10, 2]]], float)
    boxes = [[0, 0, 40, 40], [100, 0, 140, 40]]
    moved = points[:1] + np.array([2, 0, 0])
    one = {
        "found_boxes": boxes[:1], "found_scores": [0.9], "found_labels": [0], "found_points": moved,
        "true_boxes": boxes, "true_labels": [0, 0], "true_points": points,
    }  # fmt: skip
    found = landmark_metrics(rows_of([one]), ["face"], how="interocular", eyes=([0], [1]), head=(0, 1))
    assert found["nme"] == pytest.approx(0.1)
    assert found["failure_rate"] == 0.5
    assert found["auc_ced"] == pytest.approx(0)
    assert found["pck"] == found["pckh"] == 0.5
    far = {
        **one,
        "found_boxes": [[300, 0, 340, 40]],
        "true_boxes": boxes[:1],
        "true_labels": [0],
        "true_points": points[:1],
    }
    alone = landmark_metrics(rows_of([far]), ["face"], how="interocular", eyes=([0], [1]))
    assert alone["nme"] == pytest.approx(0.1)
