"""Data sets: columns, reading, specs, fingerprints, groups, processes."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from opsin.data import Dataset, from_arrays, from_files, load_data
from opsin.data.columns import StringColumn, ids_fingerprint, natural_key
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.task import ImageSpec


def save(path: Path, value: int = 90, mode: str = "RGB", size: tuple[int, int] = (8, 6), **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value // 2, 255 - value)).convert(mode).save(path, **options)
    return path


def folders(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for i in range(count):
            save(root / name / f"{i}.png", (i * 37) % 256)
    return root


@given(st.lists(st.text()), st.data())
def test_string_column_is_a_sequence(words: list[str], data: st.DataObject) -> None:
    words = [w.encode("utf-8", "replace").decode() for w in words]
    column = StringColumn(words)
    assert list(column) == words
    assert [column[i] for i in range(len(words))] == words
    assert column == words
    if words:
        chosen = data.draw(st.lists(st.integers(0, len(words) - 1)))
        assert list(column.take(np.array(chosen, np.int64))) == [words[i] for i in chosen]
        assert column[-1] == words[-1]
    assert list(pickle.loads(pickle.dumps(column))) == words
    with pytest.raises(IndexError):
        column[len(words)]


def test_a_million_ids_cost_their_bytes() -> None:
    column = StringColumn(f"train/cat/{i:07d}.jpg" for i in range(100_000))
    assert column.nbytes < 100_000 * 32


def test_natural_order() -> None:
    assert sorted(["b", "10", "2", "A", "a2", "a10"], key=natural_key) == ["2", "10", "A", "a2", "a10", "b"]


def test_reading_gives_image_and_target(tmp_path: Path) -> None:
    data = load_data(folders(tmp_path, {"cat": 3, "dog": 2}))
    sample = data[4]
    assert (sample.id, sample.target) == ("dog/1.png", {"label": 1})
    assert sample.image.shape == (3, 6, 8)
    assert data.size(4) == (6, 8)
    assert data.counts() == {"cat": 3, "dog": 2}
    assert data.bytes_of(4) == ((tmp_path / "dog" / "1.png").read_bytes(), "1.png")
    with pytest.raises(IndexError):
        data[5]


def test_select_is_a_view(tmp_path: Path) -> None:
    data = load_data(folders(tmp_path, {"cat": 3, "dog": 3}))
    view = data.select([5, 0, 3]).select(np.array([True, False, True]))
    assert list(view.ids) == ["dog/2.png", "dog/0.png"]
    assert view.targets["label"].tolist() == [1, 1]
    assert torch.equal(view[0].image, data[5].image)
    assert view.fingerprint != data.fingerprint
    assert view.heads == data.heads


def test_mixed_channels_are_read_as_the_widest_and_said(tmp_path: Path) -> None:
    folders(tmp_path, {"cat": 3, "dog": 3})
    save(tmp_path / "dog" / "grey.png", mode="L")
    save(tmp_path / "dog" / "alpha.png", mode="RGBA")
    data = load_data(tmp_path)
    assert data.spec == ImageSpec(3)
    assert data.conversions == {"grey to RGB (repeated)": 1, "RGBA to RGB (alpha composited on white)": 1}
    assert sum("converted when read" in p.message for p in data.problems) == 2
    assert all(data[i].image.shape[0] == 3 for i in range(len(data)))


def test_alpha_is_kept_where_it_says_something_everywhere(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "a").mkdir(exist_ok=True)
        Image.new("RGBA", (4, 4), (1, 2, 3, 100 + i)).save(tmp_path / "a" / f"{i}.png")
    assert load_data(tmp_path / "a").spec.channels == 4
    for i in range(3):
        Image.new("RGBA", (4, 4), (1, 2, 3, 255)).save(tmp_path / "a" / f"{i}.png")
    data = load_data(tmp_path / "a")
    assert data.spec.channels == 3
    assert data[0].image[:, 0, 0].tolist() == [1, 2, 3]


def test_color_is_never_dropped_in_silence(tmp_path: Path) -> None:
    data = load_data(folders(tmp_path, {"cat": 2, "dog": 2})).with_spec(ImageSpec(1))
    with pytest.raises(DataError, match=r"cat/0.png: this picture \(RGB to grey .*\) would lose color"):
        data[0]


def test_16_bits_and_8_bits_together(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (4, 4), 255).save(tmp_path / "flat.png")
    data = load_data(tmp_path)
    assert data.spec == ImageSpec(1, "uint16", (0.0, 65535.0))
    assert [int(data[i].image.to(torch.int64).max()) for i in range(2)] == [60000, 65535]


def test_float_pictures_have_the_range_that_was_seen(tmp_path: Path) -> None:
    Image.fromarray(np.linspace(-5, 700, 64, dtype=np.float32).reshape(8, 8)).save(tmp_path / "a.tif")
    data = load_data(tmp_path)
    assert data.spec == ImageSpec(1, "float32", (-5.0, 700.0))
    assert float(data[0].image.max()) == 700.0


def test_unreadable_pictures_are_problems_not_crashes(tmp_path: Path) -> None:
    folders(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 no")
    data = load_data(tmp_path)
    assert [p.sample_id for p in data.problems if p.level == "error"] == ["cat/bad.jpg"]
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 5 pictures"):
        load_data(tmp_path)


class TestFingerprint:
    def test_it_is_stable_and_does_not_depend_on_order(self, tmp_path: Path) -> None:
        data = load_data(folders(tmp_path, {"cat": 3, "dog": 3}))
        assert data.fingerprint == load_data(tmp_path).fingerprint
        assert data.fingerprint == data.select(np.arange(6)[::-1]).fingerprint

    def test_it_changes_with_labels_content_and_names(self, tmp_path: Path) -> None:
        root = folders(tmp_path, {"cat": 3, "dog": 3})
        seen = {load_data(root).fingerprint}
        save(root / "cat" / "0.png", 77)
        seen.add(load_data(root).fingerprint)
        (root / "cat" / "0.png").rename(root / "cat" / "9.png")
        seen.add(load_data(root).fingerprint)
        (root / "cat" / "1.png").rename(root / "dog" / "7.png")
        seen.add(load_data(root).fingerprint)
        assert len(seen) == 4

    def test_relabelled_arrays(self) -> None:
        images, labels = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1])
        first = from_arrays(images, labels)
        other = labels.copy()
        other[2] = 1
        assert first.fingerprint != from_arrays(images, other).fingerprint
        images = images.copy()
        images[3, 1, 1] = 1
        assert first.fingerprint != from_arrays(images, labels).fingerprint


class TestFromArrays:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
    @pytest.mark.parametrize(
        ("shape", "layout", "channels"),
        [((5, 8, 9), None, 1), ((5, 8, 9, 3), None, 3), ((5, 3, 8, 9), None, 3), ((5, 3, 9, 3), "NHWC", 3)],
    )
    def test_layouts(self, dtype: str, shape: tuple[int, ...], layout: str | None, channels: int) -> None:
        images = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
        data = from_arrays(images, np.arange(5), layout=layout)
        assert data.arrays is not None
        assert data.spec.channels == channels
        for i in range(5):
            assert np.array_equal(data[i].image.numpy(), data.arrays[i])
        view = data.select([3, 1])
        assert view.arrays is not None
        assert np.array_equal(view.arrays[0], data.arrays[3])
        assert data.id(2) == "arrays#2"

    def test_ambiguous_layout_and_wrong_labels(self) -> None:
        with pytest.raises(DataError, match="say layout="):
            from_arrays(np.zeros((2, 3, 9, 3), np.uint8))
        with pytest.raises(DataError, match=r"arrays#1: the label 7 is outside 0..1"):
            from_arrays(np.zeros((2, 9, 9), np.uint8), [0, 7], ["a", "b"])
        with pytest.raises(DataError, match="Did you mean 'cat'"):
            from_arrays(np.zeros((2, 9, 9), np.uint8), ["cat", "cst"], ["cat", "dog"])
        with pytest.raises(DataError, match="float64"):
            from_arrays(np.zeros((2, 9, 9)))

    def test_kinds_of_labels(self) -> None:
        images = np.zeros((3, 4, 4), np.uint8)
        assert from_arrays(images, ["b", "a", "b"]).targets["label"].tolist() == [1, 0, 1]
        multi = from_arrays(images, np.array([[1, 0], [1, 1], [np.nan, 0]]), ["x", "y"])
        assert multi.heads[0].kind == "multi"
        assert multi[1].target["label"].tolist() == [1.0, 1.0]
        assert multi.missing() == 1
        number = from_arrays(images, np.array([1.5, np.nan, 2.0]))
        assert (number.heads[0].kind, number[0].target["label"]) == ("regression", 1.5)

    def test_png_bytes_of_arrays(self) -> None:
        data = from_arrays(np.arange(2 * 4 * 5, dtype=np.uint16).reshape(2, 4, 5) * 1000)
        from opsin.data.image import read_image

        content, name = data.bytes_of(1)
        assert name == "arrays-1.png"
        assert torch.equal(read_image(content)[0], data[1].image)


def test_from_files(tmp_path: Path) -> None:
    folders(tmp_path, {"x": 3})
    data = from_files(sorted((tmp_path / "x").glob("*.png")), ["a", "b", "a"], root=tmp_path)
    assert (data.id(0), data[1].target) == ("x/0.png", {"label": 1})
    with pytest.raises(DataError, match="root="):
        from_files([Path("/nowhere/a.png")], root=tmp_path)


def test_ids_must_be_unique() -> None:
    data = from_arrays(np.zeros((2, 4, 4), np.uint8))
    with pytest.raises(DataError, match="'a' occurs twice"):
        Dataset("x", ["a", "a"], data.source)


class TestGroups:
    def data(self, tmp_path: Path) -> Dataset:
        for patient in ("p1", "p2"):
            for i in range(3):
                exif = Image.Exif()
                exif.get_ifd(0x8769)[0x9003] = f"2024:05:0{patient[1]} 12:0{i * 4}:00"
                save(tmp_path / "cat" / patient / f"{patient}_{i}.jpg", exif=exif)
                save(tmp_path / "dog" / patient / f"{patient}_{i}.jpg", exif=exif)
        return load_data(tmp_path)

    def test_parent_pattern_time_and_head(self, tmp_path: Path) -> None:
        data = self.data(tmp_path)
        assert len(set(data.groups("parent").tolist())) == 4
        assert len(set(data.groups(r"regex:(p\d+)_").tolist())) == 2
        assert len(set(data.groups("time:5min").tolist())) == 2
        assert len(set(data.groups("time:3min").tolist())) == 6
        assert len(set(data.groups("label").tolist())) == 2
        view = data.select([0, 5, 11])
        assert view.groups("time:1h").tolist() == [0, 1, 1]

    def test_what_cannot_be_a_group(self, tmp_path: Path) -> None:
        data = self.data(tmp_path)
        with pytest.raises(UnknownName, match="Did you mean 'parent'"):
            data.groups("parents")
        with pytest.raises(DataError, match=r"fits 6 of 12 ids; it does not fit 'cat/p2"):
            data.groups("regex:p1_")
        with pytest.raises(ConfigError, match="not a regular expression"):
            data.groups("regex:(")
        with pytest.raises(ConfigError, match="time:30s"):
            data.groups("time:soon")
        with pytest.raises(DataError, match="have no time"):
            from_arrays(np.zeros((2, 4, 4), np.uint8)).groups("time:1h")


def _read_in_child(data: Dataset, indices: list[int], queue: object) -> None:
    queue.put([int(data[i].image.to(torch.int64).sum()) for i in indices])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "kind"), [*(("fork", k) for k in ("folder", "zip", "tar.gz", "tar")), ("spawn", "zip")]
)
def test_reading_in_other_processes(method: str, kind: str, tmp_path: Path) -> None:
    import shutil

    root = folders(tmp_path / "set", {"cat": 4, "dog": 4})
    place = root
    if kind != "folder":
        names = {"zip": "zip", "tar.gz": "gztar", "tar": "tar"}
        place = Path(shutil.make_archive(str(tmp_path / "packed"), names[kind], root))
    data = load_data(place)
    want = [int(data[i].image.to(torch.int64).sum()) for i in range(8)]  # the archive is open here
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    children = [
        context.Process(target=_read_in_child, args=(data, [i for i in range(8) if i % 2 == k], queue))
        for k in range(2)
    ]
    for child in children:
        child.start()
    got = sorted(value for _ in children for value in queue.get(timeout=120))
    for child in children:
        child.join()
    assert got == sorted(want)
    assert [int(data[i].image.to(torch.int64).sum()) for i in range(8)] == want


def test_ids_fingerprint_is_of_the_set() -> None:
    assert ids_fingerprint(["a", "b"]) == ids_fingerprint(["b", "a"]) != ids_fingerprint(["a", "c"])
