"""Columns of boxes and points, rows whose entries differ in length, objects cut out, sizes of originals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opsin.data.build import from_files
from opsin.data.crops import crop_objects
from opsin.data.dataset import Dataset, HeadSpec
from opsin.data.objects import ObjectColumn, Objects
from opsin.errors import DataError, ShapeError
from opsin.results.rows import Rows


def _objects(count: int, shift: float = 0.0) -> Objects:
    boxes = [[i + shift, 1.0, i + 10.0 + shift, 12.0] for i in range(count)]
    return Objects.of(boxes, list(range(count)), points=np.full((count, 2, 3), 2.0))


def test_a_column_is_indexed_like_an_array() -> None:
    column = ObjectColumn.collect([_objects(2), _objects(0), _objects(3)], num_points=2)
    assert [len(one) for one in column] == [2, 0, 3]
    assert column.counts.tolist() == [2, 0, 3]
    assert column.pictures.tolist() == [0, 0, 2, 2, 2]
    chosen = column[np.array([2, 1, 2])]
    assert [len(one) for one in chosen] == [3, 0, 3]
    assert chosen[2].boxes_xyxy.tolist() == column[2].boxes_xyxy.tolist()
    assert [len(one) for one in column[np.array([True, False, False])]] == [2]
    assert column.present(4).tolist() == [[True, True, False, False], [False] * 4, [True, True, True, False]]


def test_a_fingerprint_does_not_depend_on_the_order_of_objects() -> None:
    some = _objects(3)
    assert some.tobytes() == some.take(np.array([2, 0, 1])).tobytes()
    assert some.tobytes() == _objects(3, shift=0.001).tobytes()
    assert some.tobytes() != _objects(3, shift=0.02).tobytes()
    assert _objects(0).tobytes() == b""


def test_objects_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="boxes"):
        Objects.of([[0, 0, 1, 1]], [0], area=[1.0, 2.0])


def test_ragged_rows_are_kept(tmp_path: Path) -> None:
    rows = Rows.collect(
        [
            {"id": name, "found_boxes": np.arange(4 * n, dtype=np.float32).reshape(n, 4)}
            for name, n in zip("abc", (2, 0, 2))
        ]
    )
    rows.save(tmp_path / "rows.npz")
    for table in (
        rows,
        Rows.load(tmp_path / "rows.npz"),
        Rows.concatenate([rows.select(np.array([0])), rows.select(np.array([1, 2]))]),
    ):
        assert [one.shape for one in table["found_boxes"]] == [(2, 4), (0, 4), (2, 4)]
        assert table["found_boxes"][0].dtype == np.float32
    assert rows.sorted_by_id().ids.tolist() == ["a", "b", "c"]


def _pictures(folder: Path) -> Dataset:
    names = ["one.png", "two.png"]
    for k, name in enumerate(names):
        pixels = np.zeros((40, 60, 3), np.uint8)
        pixels[10:30, 20:50] = 50 * (k + 1)
        Image.fromarray(pixels).save(folder / name)
    plain = from_files(names, root=folder)
    objects = [
        Objects.of([[20, 10, 50, 30], [0, 0, 4, 4]], [1, 0]),
        Objects.of([[20, 10, 50, 30], [0, 0, 60, 40]], [0, 1], crowd=[False, True]),
    ]
    head = HeadSpec("objects", "objects", ("cat", "dog"))
    targets = {"objects": ObjectColumn.collect(objects)}
    return Dataset("two", names, plain.source, root=str(folder), heads=(head,), targets=targets)


def test_objects_are_cut_out_into_class_folders(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    found = crop_objects(_pictures(tmp_path / "in"), tmp_path / "out")
    assert found["classes"] == {"cat": 1, "dog": 1}
    assert found["left_out"] == {"crowd": 1, "small": 1}
    with Image.open(tmp_path / "out" / "dog" / "one-0.png") as image:
        assert image.size == (30, 20)
        assert np.asarray(image).min() == 50
    listed = json.loads((tmp_path / "out" / "crops.json").read_text())
    assert listed["cat/two-0.png"]["box_xyxy"] == [20, 10, 50, 30]
    with pytest.raises(DataError, match="exists"):
        crop_objects(_pictures(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(DataError, match="no boxes"):
        crop_objects(from_files(["one.png"], root=tmp_path / "in"), tmp_path / "other")


def test_a_sample_knows_the_size_of_a_picture_decoded_smaller(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (800, 1200, 3), np.uint8)).save(tmp_path / "a.jpg")
    data = from_files(["a.jpg"], root=tmp_path)
    assert data.read(0).original_size is None
    small = data.read(0, reduce_to=100)
    assert small.image.shape[1:] == (100, 150)
    assert small.original_size == (800, 1200)


def test_training_on_tiles_keeps_the_tiles_of_a_picture_together(tmp_path: Path) -> None:
    from opsin.recipe import Layer
    from opsin.run import new_recipe
    from opsin.run.data import open_data

    names = [f"{k}.png" for k in range(12)]
    for name in names:
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(tmp_path / name)
    boxes = ObjectColumn.collect([Objects.of([[4, 4, 20, 20], [70, 40, 90, 60]], [0, 0]) for _ in names])
    head = HeadSpec("objects", "objects", ("thing",))
    source = from_files(names, root=tmp_path).source
    data = Dataset("tiles", names, source, heads=(head,), targets={"objects": boxes})
    recipe = new_recipe("detect", [Layer("test", {"data": {"tile": 48, "tile_overlap": 0.25}})])
    assert recipe.data.split.group == "picture"
    assert recipe.sources["data.split.group"] == "data.tile"
    opened = open_data(recipe.data, given=data)
    assert len(opened.dataset) == 12 * 6
    parts = {
        part: {opened.dataset.id(int(i)).partition("#")[0] for i in opened.indices(part)}
        for part in ("train", "val", "test")
    }
    assert not parts["train"] & parts["val"]
    assert not (parts["train"] | parts["val"]) & parts["test"]
    assert opened.dataset.read(0).image.shape == (3, 48, 48)
