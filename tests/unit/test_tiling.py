"""Tiles cover a picture, hold its objects once they show enough of them, and their answers join to the whole again."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import batched_nms, nms

from opsin.data import make_split
from opsin.data.build import from_arrays
from opsin.data.dataset import Dataset, HeadSpec
from opsin.data.formats import load_data
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.sampling import repeat_factors
from opsin.data.sources import ArraySource
from opsin.data.tiling import tile_dataset, tiles, untile
from opsin.errors import ConfigError, DataError
from opsin.recipe import SplitSettings
from opsin.results.detection import Candidates, Detection
from opsin.run.tiling import joined


@given(
    height=st.integers(1, 300), width=st.integers(1, 300), size=st.integers(1, 120), overlap=st.floats(0, 0.9)
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_tiles_cover_the_picture_with_their_overlap(height: int, width: int, size: int, overlap: float) -> None:
    size = max(size, max(height, width) // 12 + 1)
    found = tiles(height, width, size, overlap)
    covered = np.zeros((height, width), bool)
    for left, top, right, bottom in found:
        assert (right - left, bottom - top) == (min(size, width), min(size, height))
        covered[top:bottom, left:right] = True
    assert covered.all()
    assert found.min() >= 0
    lefts = np.unique(found[:, 0])
    if len(lefts) > 1:
        assert np.diff(lefts).max() <= max(1, int(size * (1 - overlap)))


def test_tiles_refuse_nonsense() -> None:
    with pytest.raises(ConfigError):
        tiles(10, 10, 4, 1.0)
    with pytest.raises(ConfigError):
        tiles(10, 10, 0)


def _made(count: int = 6) -> Dataset:
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (count, 3, 60, 90), dtype=np.uint8)
    boxes = [[2, 2, 20, 20], [40, 30, 60, 50], [25, 5, 35, 15]]
    column = ObjectColumn.collect([Objects.of(boxes[: 1 + i % 3], list(range(1 + i % 3))) for i in range(count)])
    head = HeadSpec("objects", "objects", ("a", "b", "c"))
    ids = [f"dir/{i}.png" for i in range(count)]
    return Dataset("made", ids, ArraySource(pixels), heads=(head,), targets={"objects": column})


def test_a_data_set_of_tiles_shows_what_the_pictures_hold() -> None:
    whole = _made()
    tiled = tile_dataset(whole, 40, 0.25)
    data = tiled.dataset
    assert len(data) == 6 * 2 * 3
    assert data.id(1) == "dir/0.png#25,0"
    pixels = whole.arrays
    assert pixels is not None
    for i in range(len(data)):
        x, y = tiled.offsets[i]
        sample = data[i]
        assert torch.equal(sample.image, torch.from_numpy(pixels[tiled.pictures[i], :, y : y + 40, x : x + 40]))
        assert data.size(i) == (40, 40)
        objects = sample.target["objects"]
        assert (objects.boxes_xyxy >= 0).all()
        assert (objects.boxes_xyxy <= 40).all()
        assert Image.open(io.BytesIO(data.bytes_of(i)[0])).size == (40, 40)
    # box b of picture 1, (40, 30, 60, 50), in the tile at (25, 20) and, cut, in that at (50, 20): half of it
    assert data[list(data.ids).index("dir/1.png#25,20")].target["objects"].boxes_xyxy.tolist()[-1] == [15, 10, 35, 30]
    assert data[list(data.ids).index("dir/1.png#50,20")].target["objects"].boxes_xyxy.tolist() == [[0, 10, 10, 30]]
    assert not len(data[list(data.ids).index("dir/1.png#50,0")].target["objects"])
    assert torch.equal(data.select(np.arange(0, len(data), 2))[3].image, data[6].image)
    assert data.arrays is None
    full = [tile_dataset(whole, 40, overlap, keep_empty=False).dataset.fingerprint for overlap in (0.25, 0.25, 0.6)]
    assert full[0] == full[1] != full[2]


def test_tiles_of_a_picture_stay_together_and_empty_ones_can_go() -> None:
    tiled = tile_dataset(_made(12), 40, 0.25, keep_empty=False)
    split = make_split(tiled.dataset, SplitSettings(group="group", fractions=(0.5, 0.25, 0.25)))
    for picture in range(12):
        assert len(set(split.assignment[tiled.pictures == picture].tolist())) == 1
    counts = tiled.dataset.targets["objects"].counts
    assert counts.min() == 1
    every = tile_dataset(_made(12), 40, 0.25).dataset
    assert 0 < len(tiled.dataset) < len(every)
    assert counts.sum() == every.targets["objects"].counts.sum()


def test_objects_that_no_tile_shows_enough_of_are_reported() -> None:
    data = _made(1)
    data.targets["objects"] = ObjectColumn.collect([Objects.of([[0, 0, 90, 60], [1, 1, 5, 5]], [0, 1])])
    found = tile_dataset(data, 30, 0.0)
    assert "1 of 2 objects" in str(found.dataset.problems[-1])
    assert found.dataset.targets["objects"].objects.labels.tolist() == [1]
    with pytest.raises(DataError, match="tiles already"):
        tile_dataset(found.dataset, 10)
    with pytest.raises(DataError, match="no boxes"):
        tile_dataset(from_arrays(np.zeros((2, 3, 8, 8), np.uint8), [0, 1]), 4)


def test_tiles_of_files(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for i, size in enumerate(((50, 70), (30, 30))):
        Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    files = load_data(tmp_path)
    column = ObjectColumn.collect([Objects.of([[1, 1, 9, 9]], [0])] * 2)
    data = Dataset(
        "files", files.ids, files.source, heads=(HeadSpec("objects", "objects", ("a",)),), targets={"objects": column}
    )
    found = tile_dataset(data, 40, 0.1).dataset
    assert list(found.ids) == ["0.png#0,0", "0.png#30,0", "0.png#0,10", "0.png#30,10", "1.png#0,0"]
    assert torch.equal(found.read(3, reduce_to=5).image, data[0].image[:, 10:50, 30:70])
    assert found.read(3).original_size is None


def test_cut_halves_are_merged_and_neighbors_are_not() -> None:
    boxes = np.array([[10, 10, 50, 20], [70, 10, 80, 20], [10, 10, 50, 20]], float)
    labels = np.array([0, 0, 1])
    found, offsets = [], tiles(40, 100, (40, 40), 0.2)
    for left, _, right, _ in offsets:
        cut = np.clip(boxes, [left, 0, left, 0], [right, 40, right, 40])
        inside = (cut[:, 2] - cut[:, 0]) / (boxes[:, 2] - boxes[:, 0]) >= 0.4
        found.append((cut[inside] - [left, 0, left, 0], np.full(inside.sum(), 0.5 + left / 1000), labels[inside]))
    whole = untile(found, offsets[:, :2], threshold=0.3)
    assert sorted(map(tuple, np.c_[whole.boxes, whole.labels])) == sorted(map(tuple, np.c_[boxes, labels]))
    assert (np.diff(whole.scores) <= 0).all()
    empty = untile([], [])
    assert empty.boxes.shape == (0, 4)


def test_nms_over_tiles_is_torchvisions() -> None:
    generator = np.random.default_rng(2)
    corners = generator.uniform(0, 40, (3, 30, 2))
    found = [
        (np.c_[c, c + generator.uniform(5, 20, (30, 2))], generator.uniform(size=30), generator.integers(0, 3, 30))
        for c in corners
    ]
    offsets = [(0, 0), (10, 5), (20, 0)]
    ours = untile(found, offsets, how="nms", threshold=0.4)
    boxes = np.concatenate([b + np.array([*o, *o]) for (b, _, _), o in zip(found, offsets)])
    scores, labels = (np.concatenate([one[k] for one in found]) for k in (1, 2))
    kept = batched_nms(*map(torch.from_numpy, (boxes, scores, labels)), 0.4).numpy()
    np.testing.assert_allclose(ours.boxes, boxes[kept])
    np.testing.assert_array_equal(ours.labels, labels[kept])
    one = untile(found, offsets, how="nms", threshold=0.4, agnostic=True)
    kept = nms(*map(torch.from_numpy, (boxes, scores)), 0.4).numpy()
    np.testing.assert_array_equal(one.positions, kept)


def test_repeat_factors_are_those_of_the_paper() -> None:
    column = ObjectColumn.collect(
        [Objects.of([[0, 0, 1, 1]] * len(k), k) for k in ([0], [0, 0], [0, 1], [0], [], [0], [0], [0], [0], [0])]
    )
    factors = repeat_factors(
        column, 3, threshold=0.4
    )  # class 0 in 0.9 of the pictures, class 1 in 0.1, class 2 in none
    assert factors.tolist() == [1, 1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert repeat_factors(ObjectColumn.collect([]), 3).shape == (0,)


def test_an_unsure_candidate_blows_up_no_box() -> None:
    sure, junk = [10.0, 10.0, 30.0, 30.0], [10.0, 10.0, 90.0, 80.0]
    half = [28.0, 10.0, 44.0, 30.0]  # in the next tile
    parts = [
        Detection("t", (100, 100), ("a",), _candidates(boxes, scores), np.array([0.3], np.float32))
        for boxes, scores in (([sure, junk], [0.9, 0.01]), ([[10.0, 10.0, 24.0, 30.0], half], [0.8, 0.2]))
    ]
    found = joined("p", (100, 120), parts, [(0, 0), (10, 0)], 100)
    assert found.boxes_xyxy.tolist() == [[10.0, 10.0, 34.0, 30.0]]  # grown by the sure half alone


def _candidates(boxes: list[list[float]], scores: list[float]) -> Candidates:
    labels, points = np.zeros(len(scores), np.int64), np.zeros((len(scores), 0, 3), np.float32)
    return Candidates(np.array(boxes, np.float32), np.array(scores, np.float32), labels, points)
