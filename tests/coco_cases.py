"""Detections and objects for the COCO oracles: as rows for us and as dictionaries for the evaluators."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np

from opsin.results.rows import Rows


def rows_of(pictures: list[dict[str, Any]]) -> Rows:
    """Rows from pictures that give `found_*` and `true_*` lists; what is left out is plain."""
    made = []
    for i, one in enumerate(pictures):
        m, d = len(one["true_labels"]), len(one["found_labels"])
        row = {
            "id": f"{i:06d}.jpg",
            "size": np.array([480, 640]),
            "found_boxes": np.asarray(one["found_boxes"], np.float32).reshape(d, 4),
            "found_scores": np.asarray(one["found_scores"], np.float32),
            "found_labels": np.asarray(one["found_labels"], np.int64),
            "true_boxes": np.asarray(one["true_boxes"], np.float64).reshape(m, 4),
            "true_labels": np.asarray(one["true_labels"], np.int64),
            "true_crowd": np.asarray(one.get("true_crowd", np.zeros(m)), bool),
            "true_difficult": np.asarray(one.get("true_difficult", np.zeros(m)), bool),
            "true_area": np.asarray(one.get("true_area", np.full(m, np.nan)), np.float64),
        }
        for name in ("found_points", "true_points"):
            if name in one:
                row[name] = np.asarray(one[name], np.float64)
        made.append(row)
    return Rows.collect(made)


def random_rows(seed: int, pictures: int = 4, classes: int = 3, *, size: int = 40, most: int = 6) -> Rows:
    """A few pictures with whole-numbered boxes, few score levels, crowds, empty lists: full of ties."""
    draw = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = draw.integers(0, size, (count, 2))
        return np.concatenate([corner, corner + draw.integers(1, size, (count, 2))], 1).astype(float)

    made = []
    for _ in range(pictures):
        m, d = draw.integers(0, most, 2)
        true = boxes(m)
        near = (
            np.concatenate([true[draw.integers(0, m, d)] + draw.integers(-3, 4, (d, 4)), boxes(d)]) if m else boxes(d)
        )
        near = near[draw.permutation(len(near))[:d]]
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        area = (true[:, 2] - true[:, 0]) * (true[:, 3] - true[:, 1]) * draw.choice([1.0, 0.5], m)
        made.append(
            {
                "found_boxes": near,
                "found_scores": draw.integers(1, 6, d) / 8,
                "found_labels": draw.integers(0, classes, d),
                "true_boxes": true,
                "true_labels": draw.integers(0, classes, m),
                "true_crowd": draw.random(m) < 0.15,
                "true_difficult": draw.random(m) < 0.2,
                "true_area": np.where(draw.random(m) < 0.3, np.nan, area),
            }
        )
    return rows_of(made)


def as_coco(rows: Rows, classes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The annotation file and the result list of the same rows."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for i in range(len(rows)):
        for j in range(len(rows["true_labels"][i])):
            box, area = rows["true_boxes"][i][j], rows["true_area"][i][j]
            one = {
                "id": len(annotations) + 1,
                "image_id": i + 1,
                "category_id": int(rows["true_labels"][i][j]) + 1,
                "bbox": xywh(box),
                "area": float((box[2] - box[0]) * (box[3] - box[1]) if np.isnan(area) else area),
                "iscrowd": int(rows["true_crowd"][i][j]),
            }
            if "true_points" in rows:
                points = rows["true_points"][i][j]
                one |= {"keypoints": points.ravel().tolist(), "num_keypoints": int((points[:, 2] > 0).sum())}
            annotations.append(one)
        for j in range(len(rows["found_labels"][i])):
            found = {
                "image_id": i + 1,
                "category_id": int(rows["found_labels"][i][j]) + 1,
                "score": float(rows["found_scores"][i][j]),
            }
            if "found_points" in rows:
                found["keypoints"] = rows["found_points"][i][j].ravel().tolist()
            else:
                found["bbox"] = xywh(rows["found_boxes"][i][j].astype(float))
            results.append(found)
    truth = {
        "info": {},
        "images": [{"id": i + 1, "height": 480, "width": 640, "file_name": str(rows.ids[i])} for i in range(len(rows))],
        "categories": [{"id": k + 1, "name": str(k)} for k in range(classes)],
        "annotations": annotations,
    }
    return truth, results


def xywh(box: Any) -> list[float]:
    """Corner and size of two corners."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def pycocotools_stats(truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> np.ndarray:
    """What pycocotools' summary says, nan for its -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        given = COCO()
        given.dataset = truth
        given.createIndex()
        found = given.loadRes(results) if results else COCO()
        if not results:
            found.dataset = {**truth, "annotations": []}
            found.createIndex()
        judge = COCOeval(given, found, kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    stats = np.asarray(judge.stats, np.float64)
    return np.where(stats < 0, np.nan, stats)
