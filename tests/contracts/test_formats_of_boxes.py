"""Every format of boxes holds the same training set: the fingerprint survives any conversion, but for what is listed as lost."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.data import Dataset, load_data
from opsin.data.formats import format_module, formats, sniff
from opsin.data.objects import ObjectColumn
from opsin.data.places import open_place
from opsin.data.writing import LOSABLE, losses
from opsin.errors import DataError

BOXES = sorted(name for name in formats if hasattr(format_module(name), "LOSES"))
SETS = ("bccd", "coco", "keypoints", "yolo")


@cache
def source(folder: Path, name: str) -> Dataset:
    """Some pictures of a real data set, with its parts."""
    if name == "bccd":  # two of these have an empty box each
        return load_data(folder / "bccd", skip_bad=True).select(np.r_[310:316, 328:334])
    if name == "yolo":
        return load_data(folder / "coco16-tasks" / "object_detection").select(np.arange(8))
    columns = {"annotations": "person_keypoints"} if name == "keypoints" else None
    data = load_data(folder / "tiny-coco", columns=columns)
    column = data.targets["objects"]
    crowded = np.unique(column.pictures[column.objects.crowd])[:2]
    return data.select(np.unique([*range(1, 100, 16), *crowded]))


def without(data: Dataset, lost: tuple[str, ...]) -> Dataset:
    """The data set without what a format loses."""
    view = data.select(np.arange(len(data)))
    column = view.targets["objects"]
    objects = column.objects.copy()
    for mark in {"crowd", "difficult"} & set(lost):
        getattr(objects, mark)[:] = False
    if "points" in lost:
        objects = dataclasses.replace(objects, points=np.zeros((len(objects), 0, 3)))
        view.heads = tuple(dataclasses.replace(head, points=None) for head in view.heads)
    view.targets = {"objects": ObjectColumn(objects, column.starts)}
    return view


def test_all_of_them_are_here() -> None:
    assert {"coco", "csv", "cvat", "labelme", "labelstudio", "tfrecord", "voc", "yolo"} <= set(BOXES)
    for name in BOXES:
        assert set(format_module(name).LOSES) <= set(LOSABLE)


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("first", BOXES)
def test_any_conversion_keeps_the_training_set(shared_data: Path, tmp_path: Path, name: str, first: str) -> None:
    """From the source into `first`, and from there into every format."""
    data, module = source(shared_data, name), format_module(first)
    module.write(data, tmp_path / "first")
    assert sniff(open_place(tmp_path / "first"))[0][0] == first
    again = load_data(tmp_path / "first")
    left = without(data, module.LOSES)
    assert again.fingerprint == left.fingerprint
    assert parts(again) == parts(data)
    assert not [p for p in again.problems if p.level == "error"]
    for second in BOXES:
        other = format_module(second)
        other.write(again, tmp_path / second)
        converted = load_data(tmp_path / second)
        assert converted.fingerprint == without(again, other.LOSES).fingerprint, second
        assert parts(converted) == parts(data), second
        if "attributes" not in (*module.LOSES, *other.LOSES):
            assert attributes(converted) == attributes(data), second
        if "area" not in (*module.LOSES, *other.LOSES):
            assert np.allclose(areas(converted), areas(data)), second


def parts(data: Dataset) -> dict[str, int]:
    return dict(zip(data.ids, data.given_split.tolist()))


def attributes(data: Dataset) -> dict[str, Any]:
    columns = {k: list(v) for k, v in data.attributes.items() if k != "coco_image_id"}
    return {name: {k: columns[k][i] for k in columns} for i, name in enumerate(data.ids)}


def areas(data: Dataset) -> np.ndarray:
    """Of all objects in the order of ids, that of the box where none is given."""
    order = np.array(sorted(range(len(data)), key=list(data.ids).__getitem__))
    objects = data.targets["objects"][order].objects
    boxes = (objects.boxes_xyxy[:, 2:] - objects.boxes_xyxy[:, :2]).prod(axis=1)
    return np.where(np.isnan(objects.area), boxes, objects.area)


@pytest.mark.parametrize("name", BOXES)
def test_pictures_come_back_byte_for_byte_and_empty_ones_stay(shared_data: Path, tmp_path: Path, name: str) -> None:
    data = source(shared_data, "keypoints")
    assert (data.targets["objects"].counts == 0).any()
    format_module(name).write(data, tmp_path / "out")
    again = load_data(tmp_path / "out")
    position = {key: i for i, key in enumerate(again.ids)}
    for i, key in enumerate(data.ids):
        assert again.bytes_of(position[key])[0] == data.bytes_of(i)[0]
    assert again[0].image.shape[0] == 3


@pytest.mark.parametrize("name", BOXES)
def test_parts_may_be_missing(shared_data: Path, tmp_path: Path, name: str) -> None:
    data = source(shared_data, "bccd").select(np.arange(4))
    data.given_split = np.full(4, -1, np.int8)
    format_module(name).write(data, tmp_path / "out")
    again = load_data(tmp_path / "out")
    assert parts(again) == parts(data)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("name", BOXES)
def test_pictures_of_one_name_in_several_folders(shared_data: Path, tmp_path: Path, name: str) -> None:
    """Ids keep their folders, also one that is called like a part, and names beyond ASCII."""
    data = source(shared_data, "bccd").select(np.arange(3))
    data.ids = type(data.ids)(["a/x 1.jpg", "b/x 1.jpg", "Z\u00fcrich/c/x 1.jpg"])
    data.given_split = np.array([0, 0, 2], np.int8)
    format_module(name).write(data, tmp_path / "out")
    again = load_data(tmp_path / "out")
    assert parts(again) == parts(data)
    assert again.fingerprint == data.fingerprint


@pytest.mark.parametrize("name", BOXES)
def test_boxes_beyond_the_picture(shared_data: Path, tmp_path: Path, name: str) -> None:
    """They are kept as they are, or the change is said; decimals come back exactly."""
    data = source(shared_data, "bccd").select(np.arange(1))
    objects = data.targets["objects"][0].take(np.arange(3))
    objects.boxes_xyxy[:] = [[-5.125, 7.333333333333, 20.005, 700], [1, 1, 2, 2], [0.015, 0, 640, 480]]
    data.targets = {"objects": ObjectColumn(objects, np.array([0, 3]))}
    notes = format_module(name).write(data, tmp_path / "out")
    again = load_data(tmp_path / "out")
    if notes:
        assert "clipped" in notes[0]
        objects.boxes_xyxy[0] = [0, 7.333333333333, 20.005, 480]
    assert np.allclose(
        sorted(again.targets["objects"][0].boxes_xyxy.tolist()), sorted(objects.boxes_xyxy.tolist()), atol=1e-9
    )


def test_losses_are_counted(shared_data: Path) -> None:
    data = source(shared_data, "keypoints")
    crowd = int(data.targets["objects"].objects.crowd.sum())
    seen = int((data.targets["objects"].objects.points[..., 2] > 0).sum())
    assert crowd
    assert seen
    said = losses(data, format_module("voc").LOSES)
    assert any(line.startswith(f"lost: {crowd} x crowd marks") for line in said)
    assert any(line.startswith(f"lost: {seen} x labeled points") for line in said)
    assert losses(data, format_module("coco").LOSES) == []


@pytest.mark.parametrize("name", BOXES)
def test_nothing_half_written_stays(
    shared_data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = source(shared_data, "bccd").select(np.arange(3))
    read, calls = data.bytes_of, []

    def failing(i: int) -> tuple[bytes, str]:
        calls.append(i)
        if len(calls) == 3:
            raise DataError("the disk is gone")
        return read(i)

    monkeypatch.setattr(data, "bytes_of", failing)
    with pytest.raises(DataError, match="the disk is gone"):
        format_module(name).write(data, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        format_module(name).write(data, tmp_path / "out")


@pytest.mark.parametrize("name", [n for n in BOXES if n != "csv"])
def test_classes_of_pictures_are_refused(tmp_path: Path, name: str) -> None:
    from opsin.data import from_arrays

    data = from_arrays(np.zeros((2, 4, 4), np.uint8), [0, 1], ["a", "b"])
    with pytest.raises(DataError, match="holds boxes, and this data set has 'label'"):
        format_module(name).write(data, tmp_path / "out")
    assert not (tmp_path / "out").exists()
