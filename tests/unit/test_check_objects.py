"""The data doctor on boxes and points: each check provoked on a made data set, and quiet on a clean one."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from opsin.analyze.check import CheckOptions, Findings, check
from opsin.analyze.check.page import page_html
from opsin.analyze.check.table import render
from opsin.analyze.inspect import inspect_data
from opsin.data.dataset import Dataset, HeadSpec
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.sources import ArraySource
from opsin.data.target_sheet import draw_objects, target_sheet
from opsin.data.targets import PointSpec
from opsin.errors import ShapeError

N, HEIGHT, WIDTH = 40, 80, 120
QUIET = CheckOptions(few=1, train_side=120, tiny_object=4.0)
NAMES = ("cat", "dog")
POINTS = PointSpec(("left eye", "right eye", "nose"), (1, 0, 2))


def clean(seed: int = 0, points: bool = False) -> list[Objects]:
    """Two or three boxes per picture, well inside, with fractions of pixels."""
    generator = np.random.default_rng(seed)
    found = []
    for i in range(N):
        count = 2 + i % 2
        low = np.stack([5 + 36.0 * np.arange(count), generator.uniform(5, 30, count)], axis=1)
        boxes = np.concatenate([low, low + generator.uniform(12, 30, (count, 2))], axis=1)
        # eyes a third in from the sides (the left one is to the right, as in a face that looks at us), nose in the middle
        at = np.array([[2 / 3, 0.3], [1 / 3, 0.3], [0.5, 0.5]])
        marks = boxes[:, None, :2] + at * (boxes[:, None, 2:] - boxes[:, None, :2])
        marks = np.concatenate([marks, np.full((count, 3, 1), 2.0)], axis=2)
        labels = np.arange(count) % 2
        found.append(Objects.of(boxes, labels, points=marks if points else None))
    return found


def dataset(pictures: list[Objects], names: tuple[str, ...] = NAMES, points: PointSpec | None = None) -> Dataset:
    generator = np.random.default_rng(9)
    coarse = generator.integers(0, 256, (len(pictures), 9, 9, 3), dtype=np.uint8)
    scenes = [np.asarray(Image.fromarray(one).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)) for one in coarse]
    pixels = np.stack(scenes).transpose(0, 3, 1, 2)
    head = HeadSpec("objects", "objects", names, points)
    ids = [f"{i:02}.png" for i in range(len(pictures))]
    return Dataset("made", ids, ArraySource(pixels), heads=(head,), targets={"objects": ObjectColumn.collect(pictures)})


def found(pictures: list[Objects], options: CheckOptions = QUIET, points: PointSpec | None = None) -> Findings:
    data = dataset(pictures, points=points)
    findings = check(data, options=options)
    json.dumps(findings.to_dict())
    for finding in findings:
        assert not finding.marks or len(finding.marks) == len(finding.groups) == len(finding.captions)
    return findings


def moved(pictures: list[Objects], i: int, boxes: np.ndarray) -> None:
    pictures[i] = replace(pictures[i], boxes_xyxy=np.asarray(boxes, float))


def test_a_clean_set_has_no_finding() -> None:
    for points in (None, POINTS):
        findings = found(clean(points=points is not None), points=points)
        assert [(f.code, f.text) for f in findings] == []


def _out(pictures: list[Objects]) -> None:
    moved(pictures, 3, pictures[3].boxes_xyxy + np.array([0, 0, 0, 60]))


def _gone(pictures: list[Objects]) -> None:
    moved(pictures, 3, pictures[3].boxes_xyxy + np.array([0, 200, 0, 200]))


def _degenerate(pictures: list[Objects]) -> None:
    moved(pictures, 3, np.concatenate([pictures[3].boxes_xyxy[:1], [[4, 5, 4, 9]], [[9, 8, 5, 20]]]))


def _doubled(pictures: list[Objects]) -> None:
    pictures[3] = pictures[3].take(np.array([0, 1, 0]))


def _two_classes(pictures: list[Objects]) -> None:
    doubled = pictures[3].take(np.array([0, 1, 0]))
    pictures[3] = replace(doubled, labels=np.array([0, 1, 1]))


def _tiny(pictures: list[Objects]) -> None:
    moved(pictures, 3, [[4, 5, 7, 9], [50, 5, 53, 9], [80, 30, 83, 60]])


def _swapped(pictures: list[Objects]) -> None:
    for i in range(N):
        moved(pictures, i, pictures[i].boxes_xyxy[:, [1, 0, 3, 2]])


def _touching(low: float, high: float) -> Callable[[list[Objects]], None]:
    def change(pictures: list[Objects]) -> None:
        for i in range(N):
            boxes = np.rint(pictures[i].boxes_xyxy)
            boxes[0, :2] = low
            boxes[-1, 2:] = [WIDTH - high, HEIGHT - high]
            moved(pictures, i, boxes)

    return change


def _first_empty(pictures: list[Objects]) -> None:
    for i in range(N):
        pictures[i] = replace(pictures[i], labels=np.ones_like(pictures[i].labels))


def _empty(pictures: list[Objects]) -> None:
    pictures[:25] = [Objects.of(num_points=pictures[0].points.shape[1])] * 25


def _none(pictures: list[Objects]) -> None:
    pictures[:] = [Objects.of()] * N


def _many(pictures: list[Objects]) -> None:
    grid = np.array([[x, y, x + 8, y + 8] for x in range(2, 100, 14) for y in range(2, 60, 14)], float) + 0.3
    pictures[3] = Objects.of(grid, np.arange(len(grid)) % 2)


CASES: dict[str, tuple[Callable[[list[Objects]], None], str, str, int]] = {
    "out": (_out, "box-outside-picture", "warning", 3),
    "gone": (_gone, "box-without-picture", "error", 3),
    "degenerate": (_degenerate, "degenerate-box", "error", 2),
    "doubled": (_doubled, "doubled-box", "warning", 1),
    "two classes": (_two_classes, "box-of-two-classes", "warning", 1),
    "tiny": (_tiny, "tiny-object", "info", 3),
    "first class empty": (_first_empty, "class-ids-shifted", "warning", 0),
    "without objects": (_empty, "picture-without-objects", "warning", 25),
    "no objects": (_none, "no-objects", "error", 0),
    "very many": (_many, "object-count-outlier", "info", 1),
    "swapped": (_swapped, "swapped-coordinates", "error", 0),
    "from one": (_touching(1, 0), "boxes-from-one", "warning", 0),
    "below zero": (_touching(-1, 0), "boxes-below-zero", "warning", 0),
    "end early": (_touching(0, 1), "boxes-end-early", "info", 0),
}


@pytest.mark.parametrize("name", CASES)
def test_every_check_finds_what_was_planted(name: str) -> None:
    change, code, level, count = CASES[name]
    pictures = clean()
    change(pictures)
    findings = found(pictures)
    finding = findings[code]
    assert finding.level == level
    if count:
        assert finding.data["count"] == count
    if name not in ("without objects", "no objects", "swapped") and finding.groups:
        assert finding.ids == ("03.png",)
    if finding.marks and name in ("degenerate", "doubled"):
        assert finding.marks == {"degenerate": ((2, 1),), "doubled": ((2,),)}[name]
    assert finding.fix


def test_right_counting_is_not_called_wrong() -> None:
    pictures = clean()
    _touching(0, 0)(pictures)
    assert not {"boxes-from-one", "boxes-below-zero", "boxes-end-early"} & {f.code for f in found(pictures)}


def test_which_coordinates_changed_places_is_said() -> None:
    pictures = clean()
    for i in range(N):
        wide = np.array([[72, 40, 82, 84], [71, 50, 83, 95]])  # 44 x 10 and 45 x 12
        pictures[i] = Objects.of(wide, [0, 1])
    assert found(pictures)["swapped-coordinates"].data["exchanged"] == "width and height"
    pictures = clean()
    _swapped(pictures)
    assert found(pictures)["swapped-coordinates"].data["exchanged"] == "x and y"
    pictures = clean()
    for i in range(N):  # corners read as a corner and a size
        boxes = pictures[i].boxes_xyxy
        moved(pictures, i, np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))
    finding = found(pictures)["swapped-coordinates"]
    assert finding.data["exchanged"] == "the far corner and the size"


def test_points_outside_and_mirrored() -> None:
    pictures = clean(points=True)
    points = pictures[3].points.copy()
    points[1, 2, 0] += 60
    pictures[3] = replace(pictures[3], points=points)
    mirrored = pictures[5].points.copy()
    mirrored[:, [0, 1]] = mirrored[:, [1, 0]]
    pictures[5] = replace(pictures[5], points=mirrored)
    findings = found(pictures, points=POINTS)
    assert findings["point-outside-box"].ids == ("03.png",)
    assert findings["point-outside-box"].marks == ((1,),)
    assert "nose" in findings["point-outside-box"].captions[0]
    assert findings["mirrored-points"].ids == ("05.png",)
    assert findings["mirrored-points"].data["count"] == len(mirrored)


def test_copies_with_other_objects_and_leaks_are_found() -> None:
    data = dataset(clean())
    pixels = data.arrays
    assert pixels is not None
    pixels[1] = pixels[0]  # two objects and three
    pixels[4] = pixels[2]  # two objects each
    parts = (np.arange(N) % 2).astype(np.int8)
    findings = check(data, parts, options=QUIET)
    assert findings["duplicate-with-different-labels"].groups == (("00.png", "01.png"),)
    assert findings["exact-duplicate-across-splits"].ids == ("00.png", "01.png")
    assert findings["exact-duplicate"].ids == ("02.png", "04.png")
    assert "1 cat, 1 dog" in findings["exact-duplicate"].captions[0]


def test_balance_counts_objects() -> None:
    pictures = clean()
    for i in range(1, N):
        pictures[i] = replace(pictures[i], labels=np.zeros_like(pictures[i].labels))
    findings = check(dataset(pictures), options=CheckOptions(few=20))
    assert "object" in findings["class-imbalance"].text
    assert "fewer than 20 objects" in findings["few-samples"].text
    head = findings.profile["heads"][0]
    assert (head["noun"], head["classes"][1]["total"]) == ("object", 1)
    parts = np.ones(N, np.int8)
    parts[0] = 0
    assert check(dataset(clean()), parts, options=QUIET).profile["heads"][0]["classes"][0]["train"] == 1


def test_the_explorer_counts_what_is_there() -> None:
    pictures = clean(points=True)
    _touching(0, 0)(pictures)
    pictures[7] = Objects.of(num_points=3)
    about = found(pictures, points=POINTS).profile["objects"][0]
    total = sum(len(one) for one in pictures)
    assert (about["count"], about["pictures"], about["empty"]) == (total, N - 1, 1)
    assert sum(about["per_picture"]["counts"]) == N
    assert about["per_picture"]["counts"] == np.bincount([len(one) for one in pictures]).tolist()
    assert sum(about["side"]["counts"]) == sum(about["aspect"]["counts"]) == sum(about["sizes"].values()) == total
    assert about["truncated"] == 2 * (N - 1)
    assert [one["anchors"] for one in about["anchors"]] == [3, 6, 9]
    recalls = [one["recall"]["0.5"] for one in about["anchors"]]
    assert recalls == sorted(recalls)
    assert about["together"] == {"classes": ["cat", "dog"], "pictures": [[N - 1, N - 1], [N - 1, N - 1]]}
    assert about["points"][2] == {"name": "nose", "labeled": total, "visible": total}


@pytest.mark.parametrize("change", [None, _out, _degenerate, _none, _empty, _many])
def test_page_table_and_inspect_show_objects(change: Callable[[list[Objects]], None] | None) -> None:
    pictures = clean()
    if change:
        change(pictures)
    data = dataset(pictures)
    findings = check(data, options=QUIET)
    page = page_html(findings, data)
    assert "Objects per class" in page
    assert "<h2>Objects</h2>" in page
    assert page.count("<img") >= (0 if change is _none else 10)
    console = Console(width=100)
    with console.capture() as text:
        console.print(render(findings))
    assert "objects" in text.get()
    about = inspect_data(data)
    json.dumps(about)
    assert about["objects"]["objects"]["objects"] == sum(len(one) for one in pictures)
    assert sum(about["classes"]["objects"]["cat"].values()) == sum(int((one.labels == 0).sum()) for one in pictures)
    assert "train detect" in about["next"]


def test_boxes_are_drawn_where_they_are() -> None:
    objects = Objects.of([[10, 20, 30, 40], [50, 10, 70, 30]], [0, 1], points=np.full((2, 1, 3), [20.0, 30.0, 2.0]))
    colors = [(70, 190, 110), (225, 45, 35)]
    drawn = np.asarray(draw_objects(Image.new("L", (60, 50)), objects, (0.5, 1.0), colors=colors))
    colored = drawn.astype(int).sum(2) > 0
    red = drawn[..., 0].astype(int) > drawn[..., 1].astype(int) + 50
    ys, xs = np.nonzero(red & (np.arange(60) > 20))
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (25, 34, 10, 29)
    ys, xs = np.nonzero(colored & ~red)
    assert (xs.min(), xs.max(), ys.min(), ys.max()) == (5, 14, 20, 39)
    assert red[29:31, 9:11].all()
    one = Objects.of([[20, 20, 21, 21]], [0])
    grown = np.asarray(draw_objects(Image.new("L", (40, 40)), one, colors=["#ffffff"], least=[9.0]))
    ys, xs = np.nonzero(grown[..., 0])
    assert (xs.max() - xs.min() + 1, ys.max() - ys.min() + 1) == (9, 9)


def test_a_batch_is_drawn_as_the_model_gets_it(tmp_path: Path) -> None:
    images = torch.zeros(3, 3, 64, 96)
    images[1] = 1.0
    objects = [Objects.of([[8, 16, 40, 48]], [1]), Objects.of(), Objects.of([[0, 0, 96, 64]], [0])]
    sheet = target_sheet(images, objects, NAMES, ids=["a.png", "b.png", "c.png"], value_range=(0.0, 1.0))
    assert [cell.caption for cell in sheet.rows[0].cells] == ["a.png\n1 object", "b.png\n0 objects", "c.png\n1 object"]
    first, second, _ = (np.asarray(cell.picture).astype(int) for cell in sheet.rows[0].cells)
    assert first.shape == (192, 288, 3)  # three times as large
    ys, xs = np.nonzero(first.sum(2))
    assert (xs.min(), xs.max(), ys.max()) == (24, 119, 143)
    assert second.min() == 255
    assert Image.open(sheet.save(tmp_path / "check" / "targets.png")).size[0] > 3 * 288
    assert len(target_sheet(images, objects, NAMES, most=2).rows[0].cells) == 2
    gray = target_sheet(images[:, :1] * 65535, objects, NAMES, value_range=(0.0, 65535.0))
    assert np.asarray(gray.rows[0].cells[1].picture).min() == 255
    with pytest.raises(ShapeError):
        target_sheet(images, objects[:2], NAMES)
