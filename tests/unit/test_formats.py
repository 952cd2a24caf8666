"""Formats: what is recognized, what is refused, what is reported; archives; tables; raw arrays."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.analyze.check import CheckOptions, check
from opsin.analyze.inspect import inspect_data
from opsin.data import Dataset, from_arrays, load_data, make_split
from opsin.data.classes import infer_heads
from opsin.data.formats import format_module, sniff
from opsin.data.places import open_place
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.task import Sample


def save(path: Path, value: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 5), (value % 256, 50, 20)).save(path)


def tree(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        save(root / name, i * 31)
    return root


class TestFolder:
    def test_classes_in_natural_order_and_strays(self, tmp_path: Path) -> None:
        tree(tmp_path, "10/a.png", "2/b.png", "Ant/c.png", "ant2/d.png", "__MACOSX/x.png", ".hidden/y.png", "loose.png")
        (tmp_path / "2" / "notes.txt").write_text("x")
        (tmp_path / "2" / "Thumbs.db").write_text("x")
        shutil.copy(tmp_path / "2" / "b.png", tmp_path / "2" / "picture")
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("2", "10", "Ant", "ant2")
        assert len(data) == 4
        messages = {Path(p.where).name: p.message for p in data.problems}
        assert messages["notes.txt"] == "not used: it is not a picture."
        assert "looks like a PNG picture" in messages["picture"]
        assert "no class folder" in messages["loose.png"]
        assert "Thumbs.db" not in messages

    @pytest.mark.parametrize("val", ["val", "valid", "validation"])
    def test_parts(self, tmp_path: Path, val: str) -> None:
        names = [f"{part}/{c}/{i}.png" for part in ("train", val, "Test") for c in ("a", "b") for i in range(2)]
        data = load_data(tree(tmp_path, *names))
        assert {p: (data.given_split == k).sum() for k, p in enumerate(("train", "val", "test"))} == {
            "train": 4,
            "val": 4,
            "test": 4,
        }
        assert make_split(data).method == "as given"

    def test_parts_that_differ_in_classes(self, tmp_path: Path) -> None:
        trained = [f"train/{name}/{i}.png" for name in ("cat", "dog") for i in range(4)]
        data = load_data(tree(tmp_path, *trained, "test/cat/1.png", "test/dogs/1.png"))
        (problem,) = data.problems
        assert "train lacks 'dogs'; test lacks 'dog'" in problem.message
        assert inspect_data(data)["problems"] == [str(problem)]
        found = check(data, options=CheckOptions(only=("reader", "balance")))
        missing = {f.data["part"]: f.level for f in found if f.code == "class-missing-from-split"}
        assert missing == {"train": "error", "test": "warning"}
        with pytest.raises(DataError, match=r"1 of 3 classes of 'label'(.|\n)*not in train(.|\n)*: 'dogs'"):
            make_split(data)
        shutil.rmtree(tmp_path / "test" / "dogs")
        assert "test lacks 'dog'" in load_data(tmp_path).problems[0].message
        assert make_split(load_data(tmp_path)).counts["test"] == {"": 1, "cat": 1, "dog": 0}

    def test_nested_folders(self, tmp_path: Path) -> None:
        tree(tmp_path, "greek/alpha/1.png", "greek/beta/1.png", "latin/a/1.png")
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("greek", "latin")
        assert any("label=path" in p.message for p in data.problems)
        assert load_data(tmp_path, columns={"label": "path"}).heads[0].class_names == (
            "greek/alpha",
            "greek/beta",
            "latin/a",
        )
        with pytest.raises(ConfigError, match="label=top or label=path"):
            load_data(tmp_path, columns={"image": "x"})

    def test_a_wrapping_folder_is_looked_through(self, tmp_path: Path) -> None:
        data = load_data(tree(tmp_path, "set/data/a/1.png", "set/data/b/1.png"))
        assert data.heads[0].class_names == ("a", "b")
        assert data.id(0) == "set/data/a/1.png"

    def test_ids_are_nfc(self, tmp_path: Path) -> None:
        data = load_data(tree(tmp_path, "cafe\u0301/1.png", "b/1.png"))
        assert "caf\u00e9/1.png" in list(data.ids)
        assert data.heads[0].class_names == ("b", "caf\u00e9")
        assert data[1].image.shape == (3, 5, 6)

    def test_links_in_circles(self, tmp_path: Path) -> None:
        tree(tmp_path, "a/1.png", "b/1.png")
        (tmp_path / "a" / "again").symlink_to(tmp_path)
        assert len(load_data(tmp_path)) == 2


class TestRecognition:
    def test_annotations_of_other_tasks_are_refused(self, tmp_path: Path) -> None:
        masks = tree(tmp_path / "masks", "images/1.png", "masks/1.png")
        pairs = tree(tmp_path / "pairs", "train/1.png", "trainannot/1.png")
        for place in (masks, pairs):
            with pytest.raises(DataError, match="segmentation"):
                load_data(place)

    def test_boxes_are_not_taken_for_class_folders(self, tmp_path: Path) -> None:
        yolo = tree(tmp_path / "yolo", "images/1.png", "images/2.png")
        (yolo / "labels").mkdir()
        (yolo / "labels" / "1.txt").write_text("0 0.5 0.5 0.1 0.1\n")
        voc = tree(tmp_path / "voc", "JPEGImages/1.png")
        (voc / "Annotations").mkdir()
        (voc / "Annotations" / "1.xml").write_text("<annotation></annotation>")
        coco = tree(tmp_path / "coco", "train/1.png", "val/1.png")
        (coco / "instances.json").write_text(
            '{"images": [{"id": 1, "file_name": "train/1.png"}], "categories": [{"id": 1, "name": "cat"}], "annotations": '
            '[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}]}'
        )
        for place, name in ((yolo, "yolo"), (voc, "voc"), (coco, "coco")):
            data = load_data(place)
            assert (data.format, data.heads[0].kind) == (name, "objects")
            with pytest.raises(DataError, match=r"holds \d boxes in \d pictures.*opsin train detect"):
                infer_heads(data)

    def test_ambiguous_unknown_and_missing(self, tmp_path: Path) -> None:
        both = tree(tmp_path / "both", "a/1.png", "b/1.png")
        (both / "list.csv").write_text("image,label\na/1.png,x\nb/1.png,y\n")
        with pytest.raises(DataError, match=r"more than one format fits(.|\n)*--format csv(.|\n)*--format folder"):
            load_data(both)
        assert load_data(both, "csv").heads[0].class_names == ("x", "y")
        assert load_data(both, "folder").heads[0].class_names == ("a", "b")
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.txt").write_text("x")
        with pytest.raises(DataError, match=r"not recognized .* 1 files \(1 .txt\)"):
            load_data(tmp_path / "texts")
        with pytest.raises(DataError, match="Did you mean"):
            load_data(tmp_path / "bothe")
        with pytest.raises(UnknownName, match="Did you mean 'folder'"):
            load_data(both, "folders")

    def test_pictures_without_labels(self, tmp_path: Path) -> None:
        data = load_data(tree(tmp_path, "1.png", "2.png"))
        assert (data.format, data.heads, len(data)) == ("flat", (), 2)
        assert data[0].target == {}
        assert load_data(tmp_path / "1.png").id(0) == "1.png"

    def test_an_archive_in_a_folder_is_pointed_at(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "pets.zip", "w") as archive:
            archive.writestr("readme", "x")
        with pytest.raises(DataError, match=r"Give the archive itself: .*pets.zip"):
            load_data(tmp_path)


def _every(data: Dataset) -> Iterator[Sample]:
    return (data[i] for i in range(len(data)))


class TestArchives:
    @pytest.mark.parametrize("kind", ["zip", "tar", "gztar", "xztar", "bztar"])
    def test_same_as_the_folder(self, tmp_path: Path, kind: str) -> None:
        root = tree(tmp_path / "set", "train/a/1.png", "train/b/1.png", "test/a/2.png", "test/b/2.png")
        packed = load_data(shutil.make_archive(str(tmp_path / "set"), kind, root))
        data = load_data(root)
        assert list(packed.ids) == list(data.ids)
        assert packed.name == "set"
        assert packed.given_split.tolist() == data.given_split.tolist()
        assert all(torch.equal(packed[i].image, data[i].image) for i in range(4))
        copy = pickle.loads(pickle.dumps(packed))
        assert torch.equal(copy[2].image, data[2].image)
        assert copy.fingerprint == packed.fingerprint

    @pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "a/../../evil.png", "C:/evil.png"])
    def test_members_that_climb_out_are_refused(self, tmp_path: Path, name: str) -> None:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.writestr(name, b"x")
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
        for place in ("x.zip", "x.tar"):
            with pytest.raises(DataError, match="points outside the archive"):
                load_data(tmp_path / place)

    @pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
    def test_damaged_archives(self, tmp_path: Path, kind: str) -> None:
        root = tree(tmp_path / "set", *[f"{c}/{i}.png" for c in "ab" for i in range(20)])
        path = Path(shutil.make_archive(str(tmp_path / "set"), kind, root))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(DataError, match=r"set\.(zip|tar)"):
            _ = [sample.image for sample in _every(load_data(path))]

    def test_a_large_compressed_tar_says_what_to_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = shutil.make_archive(str(tmp_path / "set"), "gztar", tree(tmp_path / "set", "a/1.png", "b/1.png"))
        monkeypatch.setattr("opsin.data.places.MEMORY_LIMIT", 100)
        with pytest.raises(DataError, match="Extract it"):
            load_data(path)


class TestTables:
    def table(self, root: Path, text: str, name: str = "list.csv") -> Path:
        tree(root, "img/1.png", "img/2.png", "img/3.png")
        (root / name).write_text(text, encoding="utf-8")
        return root / name

    def test_roles_are_recognized(self, tmp_path: Path) -> None:
        path = self.table(
            tmp_path, "file,label,patient,split\nimg/1.png,cat,p1,train\nimg/2.png,dog,p1,val\nimg/3.png,,p2,test\n"
        )
        data = load_data(path)
        assert data.heads[0].class_names == ("cat", "dog")
        assert data.targets["label"].tolist() == [0, 1, -1]
        assert data.given_split.tolist() == [0, 1, 2]
        assert data.groups("patient").tolist() == [0, 0, 1]
        assert data.id(0) == "img/1.png"
        assert any("1 of 3 rows have no value" in p.message for p in data.problems)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("l.tsv", "file\tlabel\nimg/1.png\ta, b\nimg/2.png\tc\n"),
            ("l.csv", "file;label\nimg/1.png;a, b\nimg/2.png;c\n"),
            ("l.csv", '\ufefffile,label\r\n"img/1.png","a, b"\r\nimg/2.png, c\r\n'),
            ("l.jsonl", '{"file": "img/1.png", "label": "a, b"}\n{"file": "img/2.png", "label": "c"}\n'),
            ("l.json", '[{"file": "img/1.png", "label": "a, b"}, {"file": "img/2.png", "label": "c"}]'),
            ("l.csv", 'img/1.png,"a, b"\nimg/2.png,c\n'),
        ],
    )
    def test_kinds_of_tables(self, tmp_path: Path, name: str, text: str) -> None:
        data = load_data(self.table(tmp_path, text, name))
        assert data.heads[0].class_names == ("a, b", "c")

    def test_several_heads_and_kinds(self, tmp_path: Path) -> None:
        path = self.table(
            tmp_path, "path,color,tags,age,x,y\nimg/1.png,red,a|b,1.5,1,0\nimg/2.png,blue,|,3,0,\nimg/3.png,red,,,1,1\n"
        )
        data = load_data(
            path, columns={"image": "path", "color": "color", "labels": "tags", "age": "age", "flags": "x,y"}
        )
        kinds = {h.name: (h.kind, h.class_names) for h in data.heads}
        assert kinds == {
            "color": ("single", ("blue", "red")),
            "label": ("multi", ("a", "b")),
            "age": ("regression", ()),
            "flags": ("multi", ("x", "y")),
        }
        assert data[0].target["label"].tolist() == [1.0, 1.0]
        assert data[1].target["label"].tolist() == [0.0, 0.0]
        assert np.isnan(data[2].target["label"]).all()
        assert np.isnan(data[2].target["age"])
        assert data[1].target["flags"][0] == 0.0
        assert np.isnan(data[1].target["flags"][1])

    def test_kind_can_be_said(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "path,n\nimg/1.png,1\nimg/2.png,10\nimg/3.png,2\n")
        assert load_data(path).heads[0].class_names == ("1", "2", "10")
        assert load_data(path, columns={"label": "n:regression"}).heads[0].kind == "regression"

    def test_errors_name_file_and_line(self, tmp_path: Path) -> None:
        def error(text: str, **options: object) -> str:
            with pytest.raises((DataError, UnknownName)) as caught:
                load_data(self.table(tmp_path, text), **options)  # type: ignore[arg-type]
            return str(caught.value)

        assert "list.csv, line 3: the picture 'img/9.png' was not found" in error(
            "path,label\nimg/1.png,a\nimg/9.png,b\n"
        )
        assert "list.csv, line 3: 3 cells, but there are 2 columns" in error("path,label\nimg/1.png,a\nimg/2.png,b,c\n")
        assert "Did you mean 'label'" in error("path,label\nimg/1.png,a\n", columns={"label": "lable"})
        assert "line 4: the picture 'img/1.png' stands in line 2 too, with different values" in error(
            "path,label\nimg/1.png,a\nimg/2.png,b\nimg/1.png,b\n"
        )
        assert "line 3: 'x' in the column 'age' is not a number" in error(
            "path,age\nimg/1.png,1.5\nimg/2.png,x\n", columns={"label": "age:regression"}
        )
        assert "line 2: 'maybe' in the column 'split' is no part" in error(
            "path,label,split\nimg/1.png,a,maybe\n", columns={"label": "label", "split": "split"}
        )
        assert "which column is the label" in error("path,u,v\nimg/1.png,1,2\n")
        assert "no column holds paths" in error("u,v\n1,2\n")

    def test_skip_bad_drops_and_counts(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "path,label\nimg/1.png,a\nimg/9.png,b\nimg/2.png,b\nimg/2.png,b\n")
        data = load_data(path, skip_bad=True)
        assert len(data) == 2
        assert [p.level for p in data.problems if "line 3" in p.where] == ["error"]
        assert any("2 rows in all were left out" in p.message for p in data.problems)

    def test_names_without_folder_or_ending(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, "image_id,dx\n1,a\n2,b\n")
        assert load_data(path).id(1) == "img/2.png"

    def test_quoted_line_breaks_keep_line_numbers(self, tmp_path: Path) -> None:
        path = self.table(tmp_path, 'path,label,note\nimg/1.png,a,"two\nlines"\nimg/7.png,b,\n')
        with pytest.raises(DataError, match=r"line 4: the picture 'img/7.png'"):
            load_data(path, columns={"label": "label"})

    def test_train_and_test_tables(self, tmp_path: Path) -> None:
        self.table(tmp_path, "path,label\nimg/1.png,a\nimg/2.png,b\n", "train.csv")
        self.table(tmp_path, "path,label\nimg/3.png,a\n", "test.csv")
        data = load_data(tmp_path, "csv")
        assert dict(zip(data.ids, data.given_split.tolist())) == {"img/1.png": 0, "img/2.png": 0, "img/3.png": 2}


def idx(array: np.ndarray) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


class TestIdx:
    def place(self, root: Path, prefix: str = "", gz: bool = True) -> np.ndarray:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (12, 6, 5)).astype(np.uint8)
        labels = np.arange(12) % 4
        for part, rows in (("train", slice(0, 8)), ("t10k" if not prefix else "test", slice(8, 12))):
            for name, data in (
                (f"{prefix}{part}-images-idx3-ubyte", images[rows]),
                (f"{prefix}{part}-labels-idx1-ubyte", labels[rows]),
            ):
                (root / (name + ".gz" * gz)).write_bytes(gzip.compress(idx(data)) if gz else idx(data))
        return images

    @pytest.mark.parametrize("gz", [True, False])
    def test_pairs(self, tmp_path: Path, gz: bool) -> None:
        images = self.place(tmp_path, gz=gz)
        data = load_data(tmp_path)
        assert data.arrays is not None
        assert np.array_equal(data.arrays[:, 0], images)
        assert data.given_split.tolist() == [0] * 8 + [2] * 4
        assert data.heads[0].class_names == ("0", "1", "2", "3")
        assert np.array_equal(data[9].image[0].numpy(), images[9])
        assert data.id(8) == "t10k-images-idx3-ubyte" + ".gz" * gz + "#0"
        one = load_data(tmp_path / ("train-labels-idx1-ubyte" + ".gz" * gz))
        assert (len(one), set(one.given_split.tolist())) == (8, {-1})

    def test_emnist_is_turned_upright_and_named(self, tmp_path: Path) -> None:
        images = self.place(tmp_path, "emnist-letters-")
        (tmp_path / "emnist-letters-mapping.txt").write_text("0 65 97\n1 66 98\n2 67 99\n3 68 100\n")
        data = load_data(tmp_path)
        assert np.array_equal(data[0].image[0].numpy(), images[0].T)
        assert data.heads[0].class_names == ("A/a", "B/b", "C/c", "D/d")
        assert any("upright" in p.message for p in data.problems)

    def test_broken_files(self, tmp_path: Path) -> None:
        self.place(tmp_path, gz=False)
        path = tmp_path / "train-images-idx3-ubyte"
        whole = path.read_bytes()
        path.write_bytes(whole[:-3])
        with pytest.raises(DataError, match=r"its header says 8 x 6 x 5 uint8, which is 240"):
            load_data(tmp_path)
        path.write_bytes(whole)
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(7)))
        with pytest.raises(DataError, match="7 labels for 8 pictures"):
            load_data(tmp_path)

    def test_several_sets(self, tmp_path: Path) -> None:
        self.place(tmp_path, "emnist-letters-")
        self.place(tmp_path, "emnist-digits-")
        with pytest.raises(DataError, match="several IDX sets"):
            load_data(tmp_path)
        assert len(load_data(tmp_path / "emnist-digits-train-images-idx3-ubyte.gz")) == 8


class TestCifar:
    def pixels(self, n: int) -> np.ndarray:
        return np.random.default_rng(n).integers(0, 256, (n, 3072)).astype(np.uint8)

    def test_binary(self, tmp_path: Path) -> None:
        images, labels = self.pixels(6), np.arange(6, dtype=np.uint8) % 3
        rows = np.concatenate([labels[:, None], images], axis=1)
        (tmp_path / "data_batch_1.bin").write_bytes(rows[:4].tobytes())
        (tmp_path / "test_batch.bin").write_bytes(rows[4:].tobytes())
        (tmp_path / "batches.meta.txt").write_text("plane\ncar\nbird\n\n")
        data = load_data(tmp_path)
        assert np.array_equal(data[5].image.numpy(), images[5].reshape(3, 32, 32))
        assert data.heads[0].class_names == ("plane", "car", "bird")
        assert data.given_split.tolist() == [0] * 4 + [2] * 2
        (tmp_path / "test_batch.bin").write_bytes(b"123")
        with pytest.raises(DataError, match="no multiple of 3073"):
            load_data(tmp_path)

    def test_python_version_in_an_archive(self, tmp_path: Path) -> None:
        folder = tmp_path / "cifar-100-python"
        folder.mkdir()
        for name, n in (("train", 5), ("test", 3)):
            values = {b"data": self.pixels(n), b"fine_labels": list(range(n)), b"coarse_labels": [0] * n}
            (folder / name).write_bytes(pickle.dumps(values, protocol=2))
        (folder / "meta").write_bytes(
            pickle.dumps({"fine_label_names": list("abcde"), "coarse_label_names": ["all"]}, protocol=2)
        )
        data = load_data(shutil.make_archive(str(tmp_path / "c"), "gztar", tmp_path, "cifar-100-python"))
        assert [h.name for h in data.heads] == ["fine", "coarse"]
        assert data[6].target == {"fine": 1, "coarse": 0}
        assert data.heads[0].class_names == tuple("abcde")

    def test_pickles_that_run_code_are_refused(self, tmp_path: Path) -> None:
        class Evil:
            def __reduce__(self) -> tuple[object, ...]:
                return (Path.touch, (tmp_path / "ran",))

        (tmp_path / "data_batch_1").write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))
        with pytest.raises(DataError, match="which plain data do not need"):
            load_data(tmp_path)
        assert not (tmp_path / "ran").exists()


class TestWriting:
    def test_csv_keeps_everything(self, tmp_path: Path) -> None:
        root = tree(tmp_path / "in", "a.png", "b.png", "c.png")
        (root / "l.csv").write_text(
            "image,kind,tags,age,who,split\na.png,x,u|v,1.5,p,train\nb.png,,|,,q,val\nc.png,y,,2.25,q,test\n"
        )
        data = load_data(root / "l.csv", columns={"kind": "kind", "labels": "tags", "age": "age", "group": "who"})
        format_module("csv").write(data, tmp_path / "out")
        again = load_data(tmp_path / "out")
        assert again.heads == data.heads
        assert again.given_split.tolist() == data.given_split.tolist()
        for name in data.targets:
            assert np.array_equal(again.targets[name], data.targets[name], equal_nan=True)
        assert again.groups("group").tolist() == data.groups("group").tolist()
        assert [again.bytes_of(i)[0] for i in range(3)] == [data.bytes_of(i)[0] for i in range(3)]

    def test_classes_without_pictures_survive(self, tmp_path: Path) -> None:
        data = from_arrays(np.zeros((2, 4, 4), np.uint8), [2, 0], ["z", "empty", "a"])
        format_module("csv").write(data, tmp_path / "out")
        assert load_data(tmp_path / "out").heads == data.heads

    def test_existing_targets_and_losses_are_refused(self, tmp_path: Path) -> None:
        data = from_arrays(np.zeros((2, 4, 4), np.uint8), [0, -1], ["a", "b"])
        with pytest.raises(DataError, match="1 pictures have no label"):
            format_module("folder").write(data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        (tmp_path / "out").mkdir()
        for name in ("folder", "csv", "flat", "idx", "cifar"):
            with pytest.raises(DataError, match="exists already"):
                format_module(name).write(data, tmp_path / "out")


class TestRealData:
    @pytest.mark.parametrize(
        ("name", "format", "count", "classes"),
        [
            ("cats-dogs", "folder", 400, 2),
            ("mnist", "idx", 70000, 10),
            ("weizmann-actions", "folder", 36, 4),
            ("orl-faces/orl_faces.tar.gz", "folder", 400, 40),
            ("fer2013/fer2013_subset.tar.gz", "folder", 980, 7),
            ("omniglot/images_background_small1.zip", "folder", 2720, 5),
            ("kodak", "flat", 5, 0),
            ("tiny-coco", "coco", 100, 80),
            ("face-landmarks", "csv", 40, 1),
            ("coco16-tasks/object_detection", "yolo", 16, 80),
        ],
    )
    def test_recognized(self, shared_data: Path, name: str, format: str, count: int, classes: int) -> None:
        data = load_data(shared_data / name)
        assert (data.format, len(data)) == (format, count)
        assert (len(data.heads[0].class_names) if data.heads else 0) == classes
        assert data[count // 2].image.shape[0] == data.spec.channels

    @pytest.mark.parametrize(
        ("name", "word"),
        [
            ("bccd", r"BloodImage_00338.xml, object 13 \(RBC\): box \[504, 337, 504, 337\] is a single point"),
            ("membrane", "segmentation"),
            ("camvid", "segmentation"),
            ("dubai-aerial", "segmentation"),
            ("tabular", "not recognized"),
            ("video-clips", "not recognized"),
        ],
    )
    def test_refused(self, shared_data: Path, name: str, word: str) -> None:
        with pytest.raises(DataError, match=word):
            load_data(shared_data / name)

    def test_mnist_is_mnist(self, shared_data: Path) -> None:
        data = load_data(shared_data / "mnist")
        assert data.targets["label"][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert data.targets["label"][60000:60010].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
        assert sniff(open_place(shared_data / "mnist"))[0][0] == "idx"
