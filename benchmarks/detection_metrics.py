"""COCO's metrics of 5,000 pictures with 170,000 detections: ours, faster-coco-eval and pycocotools; intervals of 1,000 pictures.

Times are those of the processor, so that what else runs on the machine counts little. All three use one thread.

python benchmarks/detection_metrics.py [--pictures 5000] [--record]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
from recorded import record

from opsin.metrics.detection import detection_metrics
from opsin.metrics.intervals import bootstrap
from opsin.results.rows import Rows

CLASSES = 80
OBJECTS, DETECTIONS = 7.3, 34  # per picture, as in COCO's val2017
NAMES = ("map", "map50", "map75", "map_small", "map_medium", "map_large", "ar1", "ar10", "ar100")
BAR = 2.5  # seconds


def boxes(draw: np.random.Generator, count: int) -> np.ndarray:
    """Boxes of all of COCO's sizes in 640 x 480 pixels."""
    corner = draw.random((count, 2)) * (560, 400)
    return np.concatenate([corner, np.minimum(corner + np.exp(draw.normal(4, 0.9, (count, 2))), (640, 480))], 1)


def made(pictures: int) -> Rows:
    """Rows of a detector that finds about 70 % of the objects, some twice, and invents others; classes as unequal as COCO's."""
    draw = np.random.default_rng(0)
    shares = 1 / np.arange(1, CLASSES + 1)
    rows = []
    for i in range(pictures):
        m, d = draw.poisson(OBJECTS), draw.poisson(DETECTIONS)
        true, labels = boxes(draw, m), draw.choice(CLASSES, m, p=shares / shares.sum())
        found, said = boxes(draw, d), draw.choice(CLASSES, d, p=shares / shares.sum())
        real = (draw.random(d) < 0.45) & (m > 0)
        if m:
            of = draw.integers(0, m, d)[real]
            sides = np.tile(true[of, 2:] - true[of, :2], 2)
            found[real], said[real] = true[of] + draw.normal(0, 0.06, sides.shape) * sides, labels[of]
        row = {
            "id": f"{i:06d}.jpg",
            "found_boxes": found.astype(np.float32),
            "found_scores": np.where(real, draw.beta(4, 2, d), draw.beta(1, 5, d)).astype(np.float32),
            "found_labels": said,
            "true_boxes": true,
            "true_labels": labels,
            "true_crowd": draw.random(m) < 0.01,
            "true_difficult": np.zeros(m, bool),
            "true_area": np.full(m, np.nan),
        }
        rows.append(row)
    return Rows.collect(rows)


def as_coco(rows: Rows) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The rows as an annotation file and a list of results."""
    objects, results = [], []
    for i in range(len(rows)):
        for box, label, crowd in zip(rows["true_boxes"][i], rows["true_labels"][i], rows["true_crowd"][i]):
            x1, y1, x2, y2 = box.tolist()
            objects.append({
                "id": len(objects) + 1, "image_id": i + 1, "category_id": int(label) + 1, "iscrowd": int(crowd),
                "bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1),
            })  # fmt: skip
        for box, label, score in zip(rows["found_boxes"][i], rows["found_labels"][i], rows["found_scores"][i]):
            x1, y1, x2, y2 = box.tolist()
            one = {"image_id": i + 1, "category_id": int(label) + 1, "score": float(score)}
            results.append({**one, "bbox": [x1, y1, x2 - x1, y2 - y1]})
    images = [{"id": i + 1, "height": 480, "width": 640} for i in range(len(rows))]
    classes = [{"id": k + 1, "name": str(k)} for k in range(CLASSES)]
    return {"info": {}, "images": images, "categories": classes, "annotations": objects}, results


def timed_peer(
    module: Any, judge: Any, truth: dict[str, Any], results: list[dict[str, Any]]
) -> tuple[float, np.ndarray]:
    """Seconds of the processor from lists in memory to the numbers, and the numbers."""
    with contextlib.redirect_stdout(io.StringIO()):
        start = time.process_time()
        given = module.COCO()
        given.dataset = truth
        given.createIndex()
        judged = judge(given, given.loadRes(results), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
        return time.process_time() - start, np.asarray(judged.stats[: len(NAMES)])


def main() -> None:
    """Measure, compare, store."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--pictures", type=int, default=5000)
    words.add_argument("--record", action="store_true")
    given = words.parse_args()
    rows = made(given.pictures)
    classes = [str(k) for k in range(CLASSES)]
    detection_metrics(made(10), classes)  # imports
    start = time.process_time()
    found = detection_metrics(rows, classes)
    ours = time.process_time() - start
    numbers = np.array([float(found[name]) for name in NAMES])
    truth, results = as_coco(rows)
    fast, said = timed_peer(faster_coco_eval, faster_coco_eval.COCOeval_faster, truth, results)
    slow, reference = timed_peer(pycocotools.coco, pycocotools.cocoeval.COCOeval, truth, results)
    few = made(1000)
    start = time.process_time()
    bootstrap(lambda weights: detection_metrics(few, classes, weights), len(few), replicates=1000, seed=0)
    intervals = time.process_time() - start
    values = {
        "pictures": given.pictures,
        "detections": len(results),
        "objects": len(truth["annotations"]),
        "seconds": ours,
        "seconds_of_faster_coco_eval": fast,
        "seconds_of_pycocotools": slow,
        "difference_to_pycocotools": float(np.abs(numbers - reference).max()),
        "difference_to_faster_coco_eval": float(np.abs(numbers - said).max()),
        "intervals_of_1000_pictures_seconds": intervals,
        "bar": BAR,
        "met": bool(ours <= BAR and (numbers == reference).all()),
    }
    for name, value in values.items():
        print(f"{name}: {value}")
    if given.record:
        command = f"python benchmarks/detection_metrics.py --pictures {given.pictures} --record"
        record("detection-metrics", values, command)


if __name__ == "__main__":
    main()
