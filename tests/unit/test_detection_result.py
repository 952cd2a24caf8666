"""What came of detecting objects in one picture: drawn, cut out, as JSON and as COCO results."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image

from opsin.errors import ShapeError
from opsin.report.marks import marked, window_of
from opsin.results.detection import Candidates, Detection
from opsin.results.section import Mark

NAMES = ("cat", "dog")


def detection(
    boxes: list[list[float]], scores: list[float], labels: list[int], *, size: tuple[int, int] = (100, 200),
    thresholds: tuple[float, ...] = (0.5, 0.3), points: int = 0,
) -> Detection:  # fmt: skip
    count = len(scores)
    spots = np.tile(np.array([[20.0, 30.0, 0.9], [40.0, 50.0, 0.1]], np.float32)[:points], (count, 1, 1))
    candidates = Candidates(
        np.array(boxes, np.float32).reshape(count, 4), np.array(scores, np.float32), np.array(labels, np.int64),
        spots.reshape(count, points, 3),
    )  # fmt: skip
    return Detection("a.png", size, NAMES, candidates, np.array(thresholds, np.float32), ((0, 1),) if points else ())


BOTH = detection([[10, 20, 60, 80], [100, 5, 190, 95], [0, 0, 5, 5]], [0.9, 0.4, 0.4], [0, 1, 0])


def test_each_class_has_its_threshold() -> None:
    assert [one.class_name for one in BOTH] == ["cat", "dog"]
    assert (len(BOTH), BOTH.counts(), BOTH.classes) == (2, {"cat": 1, "dog": 1}, ("cat", "dog"))
    assert len(BOTH.at(0.5)) == 1
    assert len(BOTH.at(0.0)) == 3
    assert BOTH.score == pytest.approx(0.9)
    np.testing.assert_array_equal(BOTH.boxes_xyxy, [[10, 20, 60, 80], [100, 5, 190, 95]])


def test_none_found_is_an_answer() -> None:
    for nothing in (detection([], [], []), BOTH.at(1.0)):
        assert list(nothing) == []
        assert nothing.counts() == {}
        assert nothing.crops(Image.new("RGB", (200, 100))) == []
        assert nothing.draw(Image.new("RGB", (500, 250))).tobytes() == bytes(500 * 250 * 3)
    assert detection([], [], []).score == 1.0
    assert BOTH.at(1.0).score == pytest.approx(0.1)
    assert detection([], [], []).coco(1) == []
    numbered = BOTH.coco(7, {name: 10 * k for k, name in enumerate(BOTH.class_names)})
    assert [one["category_id"] for one in numbered] == [10 * (one["category_id"] - 1) for one in BOTH.coco(7)]


def test_plain_values_for_json() -> None:
    values = json.loads(json.dumps(BOTH.to_dict()))
    assert values["objects"][0] == {"class": "cat", "score": 0.9, "box_xyxy": [10.0, 20.0, 60.0, 80.0]}
    assert values["size"] == [100, 200]
    posed = json.loads(json.dumps(detection([[0, 0, 9, 9]], [0.8], [1], points=2).to_dict()))
    assert posed["objects"][0]["points"] == [[20.0, 30.0, 0.9], [40.0, 50.0, 0.1]]
    cells = BOTH.columns()
    assert (cells["objects"], cells["classes"]) == (2, "cat:1 dog:1")
    assert cells["boxes"] == "cat:0.9000:10.0,20.0,60.0,80.0 dog:0.4000:100.0,5.0,190.0,95.0"


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (64, 64), (200, 100), (5000, 40), (3000, 4000)])
def test_drawn_on_tiny_and_huge_pictures(width: int, height: int) -> None:
    found = detection([[0, 0, width, height], [0, 0, 0, 0]], [0.9, 0.8], [0, 1], size=(height, width), points=2)
    for mode in ("RGB", "L", "RGBA"):
        drawn = found.draw(Image.new(mode, (width, height)))
        factor = -(-240 // max(width, height))
        assert drawn.size == (width * factor, height * factor)
        assert np.asarray(drawn).any()


def test_drawn_where_the_box_is() -> None:
    drawn = np.asarray(detection([[100, 50, 300, 150]], [0.9], [0], size=(400, 600)).draw(Image.new("RGB", (600, 400))))
    touched = drawn.any(2)
    assert touched[100, 100]
    assert touched[100, 300]
    assert touched[50, 200]
    assert touched[150, 200]
    assert not touched[100, 200], "the object itself stays as it is"
    small = np.asarray(detection([[10, 5, 30, 15]], [0.9], [0], size=(40, 60)).draw(Image.new("RGB", (60, 40))))
    assert small.shape == (160, 240, 3)
    assert small[40, 40].any()
    assert small[40, 120].any()
    assert not small[40, 80].any()


def test_crops() -> None:
    image = Image.fromarray(np.arange(200 * 100, dtype=np.uint16).astype(np.uint8).reshape(100, 200))
    cuts = BOTH.crops(image)
    assert [(name, cut.size) for name, cut in cuts] == [("cat", (50, 60)), ("dog", (90, 90))]
    np.testing.assert_array_equal(np.asarray(cuts[0][1]), np.asarray(image)[20:80, 10:60])
    assert [cut.size for _, cut in BOTH.crops(image, margin=0.1)] == [(62, 72), (108, 100)]
    assert detection([[10, 10, 10, 10]], [0.9], [0]).crops(image) == []


def test_coco_results_are_scored_by_pycocotools() -> None:
    coco, evaluation = (pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval"))
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 7, "width": 200, "height": 100}],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20, 50, 60], "area": 3000, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 2, "bbox": [100, 5, 90, 90], "area": 8100, "iscrowd": 0},
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judged = evaluation.COCOeval(truth, truth.loadRes(json.loads(json.dumps(BOTH.coco(7)))), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    assert judged.stats[0] == pytest.approx(1.0)
    assert len(BOTH.coco(7)) == 3, "metrics see what is too unsure to be shown, too"


@pytest.mark.parametrize(
    ("boxes", "scores", "labels", "thresholds"),
    [
        ([[0, 0, 1, np.nan]], [0.5], [0], (0.5, 0.5)),
        ([[0, 0, 1, 1]], [1.5], [0], (0.5, 0.5)),
        ([[0, 0, 1, 1]], [0.5], [0, 1], (0.5, 0.5)),
        ([[0, 0, 1, 1]], [0.5], [0], (0.5,)),
    ],
)
def test_what_does_not_fit_is_refused(boxes: list, scores: list, labels: list, thresholds: tuple) -> None:  # type: ignore[type-arg]
    with pytest.raises(ShapeError, match=r"a\.png"):
        detection(boxes, scores, labels, thresholds=thresholds)


def test_marks_are_drawn_where_they_are() -> None:
    blank = Image.new("RGB", (100, 50))  # half of the original
    drawn = np.asarray(marked(blank, (100, 200), [Mark((20, 20, 120, 80))]))
    assert drawn.shape == (100, 200, 3)
    assert drawn[50, 20].any()
    assert drawn[20, 70].any()
    assert drawn[50, 120].any()
    assert not drawn[50, 70].any()
    dashes = np.asarray(marked(blank, (100, 200), [Mark((20, 20, 120, 80), true=True)]))[20, 20:120].any(1)
    assert 0.2 < dashes.mean() < 0.8


def test_the_surroundings_of_a_box() -> None:
    assert window_of(None, (100, 200)) == (0, 0, 200, 100)
    assert window_of((100, 400, 140, 440), (1000, 2000)) == (60, 360, 180, 480)
    left, top, right, bottom = window_of((0, 0, 4, 4), (1000, 2000))
    assert (left, top, right, bottom) == (0, 0, 48, 48), "never less than 48 pixels"
    assert window_of((0, 0, 90, 90), (100, 100)) == (0, 0, 100, 100), "never beyond the picture"
    shown = marked(Image.new("RGB", (2000, 1000)), (1000, 2000), [Mark((100, 400, 140, 440))], (100, 400, 140, 440))
    assert max(shown.size) >= 192
    assert np.asarray(shown).any()
