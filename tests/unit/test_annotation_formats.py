"""Formats of boxes and points in detail: the rules of each, what it reports, and how it says what is wrong."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.analyze.inspect import inspect_data
from opsin.cli import main
from opsin.data import Dataset, load_data
from opsin.data.annotations import part_in, point_spec
from opsin.data.formats.coco import write as write_coco
from opsin.errors import ConfigError, DataError, UnknownName


def pictures(folder: Path, *names: str, size: tuple[int, int] = (60, 40)) -> Path:
    """Pictures of `size` (W, H)."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (i * 20 % 256, 90, 30)).save(folder / name)
    return folder


def write(path: Path, text: str | dict[str, Any] | list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))


def boxes(data: Dataset, i: int = 0) -> list[list[float]]:
    return [[round(v, 6) for v in box] for box in data.targets["objects"][i].boxes_xyxy.tolist()]


def words(data: Dataset, i: int = 0) -> list[str]:
    return [data.heads[0].class_names[k] for k in data.targets["objects"][i].labels]


def said(data: Dataset) -> str:
    return "\n".join(map(str, data.problems))


def coco(images: list[str], annotations: list[dict[str, Any]], categories: list[Any] | None = None) -> dict[str, Any]:
    return {
        "images": [{"id": k, "file_name": name, "width": 60, "height": 40} for k, name in enumerate(images)],
        "annotations": [{"id": k + 800, "image_id": 0, "category_id": 1, **one} for k, one in enumerate(annotations)],
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 7, "name": "ant"}],
    }


class TestCoco:
    def test_boxes_classes_and_marks(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        crowd = {"iscrowd": 1, "segmentation": {"counts": [1], "size": [40, 60]}, "category_id": 7, "area": 33}
        write(
            tmp_path / "x.json", coco(["a.png", "b.png"], [{"bbox": [1, 2, 3, 4.5]}, {"bbox": [0, 0, 9, 9], **crowd}])
        )
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("cat", "ant")  # in the order of ids, with a hole
        assert boxes(data) == [[1, 2, 4, 6.5], [0, 0, 9, 9]]
        assert words(data) == ["cat", "ant"]
        objects = data.targets["objects"][0]
        assert objects.crowd.tolist() == [False, True]
        assert np.isnan(objects.area[0])
        assert objects.area[1] == 33
        assert len(data.targets["objects"][1]) == 0
        assert list(data.attributes["coco_image_id"]) == ["0", "1"]
        assert "1 crowd regions" in said(data)
        assert load_data(tmp_path / "x.json").fingerprint == data.fingerprint

    def test_ids_of_classes_are_kept(self, tmp_path: Path) -> None:
        pictures(tmp_path / "of", "a.png")
        said = [{"bbox": [1, 2, 3, 4], "category_id": 7}, {"bbox": [5, 2, 3, 4]}]
        write(tmp_path / "of/x.json", coco(["a.png"], said))
        data = load_data(tmp_path / "of")
        assert data.heads[0].class_ids == (1, 7)
        write_coco(data, tmp_path / "to")
        written = json.loads((tmp_path / "to/annotations/instances.json").read_text())
        assert [(one["id"], one["name"]) for one in written["categories"]] == [(1, "cat"), (7, "ant")]
        assert [one["category_id"] for one in written["annotations"]] == [7, 1]
        assert load_data(tmp_path / "to").fingerprint == data.fingerprint

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                {"bbox": [40, 10, -5, 80]},
                r"x.json, annotation 800 \(a.png\): box \[40, 10, 35, 90\] has x2 <= x1. Expected positive width and "
                "height. Fix the file, or pass --skip-bad to drop and count such boxes",
            ),
            ({"bbox": [40, 10, 5, 0]}, "has y2 <= y1"),
            ({"bbox": [1, 2, 3]}, r"its bbox is \[1, 2, 3\]; expected \[x, y, width, height\]"),
            ({"bbox": [1, 2, float("nan"), 3]}, "no number"),
            ({"bbox": [1, 2, 3, 4], "image_id": 9}, "annotation 800: its image_id 9 is not among the images"),
            ({"bbox": [1, 2, 3, 4], "category_id": 5}, "its category_id 5 is not among the categories"),
        ],
    )
    def test_errors_name_the_annotation(self, tmp_path: Path, entry: dict[str, Any], message: str) -> None:
        pictures(tmp_path, "a.png")
        write(tmp_path / "x.json", coco(["a.png"], [entry, {"bbox": [1, 1, 5, 5]}]))
        with pytest.raises(DataError, match=message):
            load_data(tmp_path)
        data = load_data(tmp_path, skip_bad=True)
        assert boxes(data) == [[1, 1, 6, 6]]
        assert "were dropped in all" in said(data)

    def test_pictures_that_are_missing_or_of_another_size(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", size=(30, 20))
        write(tmp_path / "x.json", coco(["a.png", "gone.png"], [{"bbox": [1, 1, 5, 5]}]))
        with pytest.raises(DataError, match=r"x.json, image 1: its picture 'gone.png' was not found"):
            load_data(tmp_path)
        data = load_data(tmp_path, skip_bad=True)
        assert len(data) == 1
        assert "1 of 1 pictures compared have another size" in said(data)
        assert "is 30 x 20 (its EXIF orientation applied), annotated as 60 x 40" in said(data)

    def test_layout_of_roboflow(self, tmp_path: Path) -> None:
        listed = [
            {"id": 0, "name": "pets", "supercategory": "none"},
            {"id": 1, "name": "cat", "supercategory": "pets"},
            {"id": 2, "name": "dog", "supercategory": "pets"},
        ]
        for part in ("train", "valid", "test"):
            pictures(tmp_path, f"{part}/{part}.png")
            write(tmp_path / part / "_annotations.coco.json", coco([f"{part}.png"], [{"bbox": [1, 1, 5, 5]}], listed))
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("cat", "dog")
        assert dict(zip(data.ids, data.given_split.tolist())) == {"train.png": 0, "valid.png": 1, "test.png": 2}
        assert "'pets' is left out" in said(data)

    def test_parts_by_name_and_the_same_picture_name_in_two(self, tmp_path: Path) -> None:
        for part in ("train2017", "val2017"):
            pictures(tmp_path, f"{part}/1.png")
            write(tmp_path / f"annotations/instances_{part}.json", coco(["1.png"], [{"bbox": [1, 1, 5, 5]}]))
        data = load_data(tmp_path)
        assert dict(zip(data.ids, data.given_split.tolist())) == {"train/1.png": 0, "val/1.png": 1}
        assert [part_in(n) for n in ("a/train/x.json", "test_2.json", "trainer.json", "x.json")] == [0, 2, -1, -1]

    def test_keypoints(self, shared_data: Path) -> None:
        data = load_data(shared_data / "tiny-coco", columns={"annotations": "person_keypoints"})
        spec = data.heads[0].points
        assert spec is not None
        assert spec.swaps == (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)
        assert spec.sigmas[:3] == (0.026, 0.025, 0.025)
        assert (15, 13) in spec.skeleton
        assert data.targets["objects"].objects.points.shape == (226, 17, 3)
        raw = json.loads((shared_data / "tiny-coco/annotations/person_keypoints_val2017.json").read_text())
        one = next(a for a in raw["annotations"] if a["num_keypoints"] > 5)
        i = list(data.attributes["coco_image_id"]).index(str(one["image_id"]))
        x, y, w, h = one["bbox"]
        objects = data.targets["objects"][i]
        k = int(
            np.flatnonzero(
                np.allclose(objects.boxes_xyxy, [x, y, x + w, y + h])
                if len(objects) == 1
                else (np.abs(objects.boxes_xyxy - [x, y, x + w, y + h]) < 1e-9).all(1)
            )[0]
        )
        assert objects.points[k].reshape(-1).tolist() == one["keypoints"]
        with pytest.raises(UnknownName, match="person_keypoints"):
            load_data(shared_data / "tiny-coco", columns={"annotations": "person"})

    def test_camera_traps(self, tmp_path: Path) -> None:
        pictures(tmp_path, "L1/a.png", "L1/b.png", "L2/c.png", "L2/d.png")
        names = ("L1/a.png", "L1/b.png", "L2/c.png", "L2/d.png")
        images = [
            {"id": f"id-{k}", "file_name": name, "seq_id": f"s{k // 2}", "location": name[:2], "frame_num": k}
            for k, name in enumerate(names)
        ]
        annotations = [
            {"id": "x", "image_id": "id-0", "category_id": 0},
            {"id": "y", "image_id": "id-1", "category_id": 5, "bbox": [1, 2, 10, 10]},
            {"id": "z", "image_id": "id-2", "category_id": 5},
            {"id": "w", "image_id": "id-3", "category_id": 9, "bbox": [3, 3, 4, 4]},
        ]
        categories = [{"id": 0, "name": "empty"}, {"id": 5, "name": "fox"}, {"id": 9, "name": "owl"}]
        write(tmp_path / "traps.json", {"images": images, "annotations": annotations, "categories": categories})
        data = load_data(tmp_path)
        assert list(data.ids) == ["L1/a.png", "L1/b.png", "L2/d.png"]  # a fox without a box is no empty picture
        assert data.heads[0].class_names == ("fox", "owl")
        assert "1 pictures have a class but no box" in said(data)
        assert data.groups("location").tolist() == [0, 0, 1]
        assert list(data.attributes["seq_id"]) == ["s0", "s0", "s1"]
        whole = load_data(tmp_path, columns={"label": "category"})
        assert (whole.heads[0].kind, whole.heads[0].class_names) == ("single", ("empty", "fox", "owl"))
        assert whole.targets["label"].tolist() == [0, 1, 1, 2]
        for one in annotations:
            one.pop("bbox", None)
        write(tmp_path / "traps.json", {"images": images, "annotations": annotations, "categories": categories})
        assert load_data(tmp_path).targets["label"].tolist() == [0, 1, 1, 2]

    def test_files_that_hold_no_boxes(self, shared_data: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"captions_val2017.json: no 'categories'.*instances_\*.json"):
            load_data(shared_data / "tiny-coco/annotations/captions_val2017.json")
        with pytest.raises(DataError, match="panoptic segments"):
            load_data(shared_data / "coco16-tasks/panoptic_segmentation/annotations/panoptic_val2017.json")
        write(pictures(tmp_path, "a.png") / "x.json", '{"images": [], "annotations": [')
        with pytest.raises(DataError, match=r"x.json: not JSON"):
            load_data(tmp_path)
        with pytest.raises(ConfigError, match="annotations=NAME"):
            load_data(tmp_path, columns={"image": "x"})

    def test_forty_thousand_boxes_in_two_seconds(self, tmp_path: Path) -> None:
        file = pictures(tmp_path / "p", "0.png") / "0.png"
        names = [f"{k:05}.png" for k in range(5000)]
        for name in names:
            (tmp_path / "p" / name).hardlink_to(file)
        rng = np.random.default_rng(0)
        corners = rng.uniform(1, 30, (40000, 4))
        entries = [{"image_id": k % 5000, "bbox": box} for k, box in enumerate(corners.tolist())]
        write(tmp_path / "x.json", coco(names, entries))
        start = time.process_time()
        data = load_data(tmp_path)
        assert time.process_time() - start < 2.0
        assert len(data.targets["objects"].objects) == 40000
        assert np.allclose(data.targets["objects"][7].boxes_xyxy[1, :2], corners[5007, :2])


def voc(*objects: tuple[str, int, int, int, int], filename: str = "a.png", extra: str = "") -> str:
    nodes = "".join(
        f"<object><name>{n}</name>{extra}<bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax></bndbox>"
        "</object>"
        for n, a, b, c, d in objects
    )
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    return f"<annotation><filename>{filename}</filename>{size}{nodes}</annotation>"


class TestVoc:
    def test_pixels_count_from_one(self, tmp_path: Path) -> None:
        pictures(tmp_path, "JPEGImages/a.png", "JPEGImages/b.png")
        write(
            tmp_path / "Annotations/a.xml",
            voc(("cat", 1, 1, 60, 40), ("ant", 10, 5, 10, 9), extra="<difficult>1</difficult>"),
        )
        data = load_data(tmp_path)
        assert boxes(data) == [[0, 0, 60, 40], [9, 4, 10, 9]]
        assert data.heads[0].class_names == ("ant", "cat")
        assert data.targets["objects"][0].difficult.all()
        assert "1 pictures have no XML file and were not used" in said(data)
        write(tmp_path / "labels.txt", "cat\nant\nbee\n")
        assert load_data(tmp_path).heads[0].class_names == ("cat", "ant", "bee")

    def test_files_that_count_from_zero(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        write(tmp_path / "a.xml", voc(("cat", 0, 3, 60, 40)))
        write(tmp_path / "b.xml", voc(("cat", 2, 3, 6, 7), filename="b.png"))
        data = load_data(tmp_path)
        assert (boxes(data, 0), boxes(data, 1)) == ([[0, 3, 60, 40]], [[2, 3, 6, 7]])
        assert "a.xml, object 1), so these files count from 0" in said(data)
        assert boxes(load_data(tmp_path, columns={"origin": "1"}), 1) == [[1, 2, 6, 7]]
        (tmp_path / "a.xml").unlink()
        assert boxes(load_data(tmp_path, columns={"origin": "0"})) == [[2, 3, 6, 7]]
        with pytest.raises(ConfigError, match="origin=0 or origin=1"):
            load_data(tmp_path, columns={"origin": "2"})

    def test_two_empty_boxes_of_real_data(self, shared_data: Path) -> None:
        with pytest.raises(
            DataError, match=r"BloodImage_00338.xml, object 13 \(RBC\): box \[504, 337, 504, 337\] is a single point"
        ):
            load_data(shared_data / "bccd")
        data = load_data(shared_data / "bccd", skip_bad=True)
        assert data.counts() == {"Platelets": 361, "RBC": 4153, "WBC": 372}
        assert "2 boxes were dropped in all" in said(data)
        assert [int((data.given_split == k).sum()) for k in range(3)] == [205, 87, 72]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (voc(("cat", 20, 1, 10, 9)), r"a.xml, object 1 \(cat\): box \[20, 1, 10, 9\] has x2 <= x1"),
            (voc(("", 1, 1, 10, 9)), "a.xml, object 1: it has no name"),
            (voc(("cat", 1, 1, 10, 9)).replace("<xmax>10", "<xmax>ten"), "expected four numbers"),
            (voc(("cat", 1, 1, 10, 9))[:-5], "a.xml: broken XML"),
            ('<!DOCTYPE a [<!ENTITY x "y">]>' + voc(), "defines XML entities"),
        ],
    )
    def test_errors(self, tmp_path: Path, text: str, message: str) -> None:
        write(pictures(tmp_path, "a.png") / "a.xml", text)
        with pytest.raises(DataError, match=message):
            load_data(tmp_path)

    def test_lists_and_folders_of_parts(self, tmp_path: Path) -> None:
        pictures(tmp_path / "lists", *(f"JPEGImages/{k}.png" for k in "abc"))
        for k in "abc":
            write(tmp_path / f"lists/Annotations/{k}.xml", voc(("cat", 1, 1, 9, 9), filename=f"{k}.png"))
        write(tmp_path / "lists/ImageSets/Main/trainval.txt", "a\n")
        write(tmp_path / "lists/ImageSets/Main/test.txt", "b\n")
        write(tmp_path / "lists/ImageSets/Main/cat_test.txt", "b 1\nc -1\n")
        data = load_data(tmp_path / "lists")
        assert dict(zip(data.ids, data.given_split.tolist())) == {"a.png": 0, "b.png": 2}
        assert "1 annotated pictures stand in no list" in said(data)
        pictures(tmp_path / "folders", "train/a.png", "valid/b.png")
        write(tmp_path / "folders/train/a.xml", voc(("cat", 1, 1, 9, 9)))
        write(tmp_path / "folders/valid/b.xml", voc(("cat", 1, 1, 9, 9)))
        data = load_data(tmp_path / "folders")
        assert dict(zip(data.ids, data.given_split.tolist())) == {"a.png": 0, "b.png": 1}


class TestYolo:
    def test_rows(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/train/a.png", "images/train/b.png", "images/val/c.png")
        write(tmp_path / "labels/train/a.txt", "4 0.5 0.5 0.5 0.25\n\n1 0.1 0.1 0.3 0.1 0.3 0.4\n")
        write(tmp_path / "labels/val/c.txt", "")
        write(
            tmp_path / "data.yaml",
            "path: ../somewhere/else\ntrain: images/train\nval: [images/val]\nnames: {1: cat, 4: ant}\n",
        )
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("cat", "ant")
        assert boxes(data) == [[15, 15, 45, 25], [6, 4, 18, 16]]
        assert words(data) == ["ant", "cat"]
        assert dict(zip(data.ids, data.given_split.tolist())) == {"a.png": 0, "b.png": 0, "c.png": 1}
        assert "1 of 3 pictures have no label file" in said(data)
        assert "1 rows are outlines" in said(data)

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("0 12 20 4 4", r"a.txt, line 2: the value 12 lies outside 0 to 1. Expected shares"),
            ("0 0.5 0.5 1.1 0.2", "the value 1.1 lies outside"),
            ("9 0.5 0.5 0.1 0.1", r"the class 9 has no name \(2 are given: 0 to 1\)"),
            ("0 0.5 0.5 0.1", "4 values; expected 5"),
            ("0 0.5 0.5 0.1 0.1 0.9", "6 values; expected 5"),
            ("cat 0.5 0.5 0.1 0.1", "is not a row of numbers"),
            ("0 0.5 0.5 0 0.1", "has x2 <= x1"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path: Path, row: str, message: str) -> None:
        pictures(tmp_path, "images/a.png")
        write(tmp_path / "labels/a.txt", f"0 0.5 0.5 0.1 0.1\n{row}\n")
        write(tmp_path / "classes.txt", "cat\nant\n")
        with pytest.raises(DataError, match=message):
            load_data(tmp_path)
        assert len(load_data(tmp_path, skip_bad=True).targets["objects"][0]) == 1

    def test_poses(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/a.png")
        write(tmp_path / "labels/a.txt", "0 0.5 0.5 0.5 0.5 0.5 0.25 2 0.1 0.1 1 0 0 0\n")
        pose = "kpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n"
        write(tmp_path / "data.yaml", f"train: images\nval: images\nnc: 1\nnames: [person]\n{pose}")
        data = load_data(tmp_path)
        spec = data.heads[0].points
        assert spec is not None
        assert (spec.names, spec.swaps) == (("0", "1", "2"), (1, 0, 2))
        assert data.targets["objects"][0].points[0].tolist() == [[30, 10, 2], [6, 4, 1], [0, 0, 0]]
        assert data.given_split.tolist() == [-1]  # the same pictures for train and val are no parts
        write(tmp_path / "data.yaml", f"train: images\nval: images\nnc: 2\nnames: [person]\n{pose}")
        with pytest.raises(DataError, match=r"data.yaml: nc is 2, but 1 names are given"):
            load_data(tmp_path)

    def test_lists_of_pictures(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/x/a.png", "images/x/b.png")
        write(tmp_path / "labels/x/a.txt", "0 0.5 0.5 0.5 0.5\n")
        write(tmp_path / "train.txt", "./images/x/a.png\n")
        write(tmp_path / "val.txt", "/home/someone/set/images/x/b.png\n")
        write(tmp_path / "data.yaml", "train: train.txt\nval: val.txt\nnames: [cat]\n")
        data = load_data(tmp_path)
        assert dict(zip(data.ids, data.given_split.tolist())) == {"x/a.png": 0, "x/b.png": 1}
        write(tmp_path / "val.txt", "images/x/c.png\n")
        with pytest.raises(DataError, match=r"val.txt, line 1: the picture 'images/x/c.png' was not found"):
            load_data(tmp_path)

    def test_real_data_is_coco(self, shared_data: Path) -> None:
        data = load_data(shared_data / "coco16-tasks/object_detection")
        assert (len(data), data.heads[0].class_names[:2], len(data.heads[0].class_names)) == (
            16,
            ("person", "bicycle"),
            80,
        )
        outlines = load_data(shared_data / "coco16-tasks/instance_segmentation")
        i = list(data.ids).index("000000000724.jpg")
        wanted = sorted(boxes(data, i))
        assert np.allclose(sorted(boxes(outlines, list(outlines.ids).index("000000000724.jpg"))), wanted, atol=2.0)


class TestTables:
    def test_rows_are_objects(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png", "c.png")
        write(
            tmp_path / "t.csv",
            "image,xmin,ymin,xmax,ymax,class,site\na.png,1,2,30,4,cat,N\na.png,5,5,9.5,9,ant,N\nb.png,,,,,,S\nc.png,0,0,1,1,ant,S\n",
        )
        data = load_data(tmp_path)
        assert boxes(data) == [[1, 2, 30, 4], [5, 5, 9.5, 9]]
        assert [len(data.targets["objects"][i]) for i in range(3)] == [2, 0, 1]
        assert list(data.attributes["site"]) == ["N", "S", "S"]
        assert data.groups("site").tolist() == [0, 1, 1]

    @pytest.mark.parametrize(
        ("header", "row"),
        [
            ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,60,40,cat,6,4,30,20"),
            ("image,x1,y1,x2,y2,label", "a.png,6,4,30,20,cat"),
            ("image,x,y,w,h,class", "a.png,6,4,24,16,cat"),
            ("image,xmin,ymin,xmax,ymax,class", "a.png,0.1,0.1,0.5,0.5,cat"),
            ("a.png,6,4,30,20,cat", "b.png,,,,,"),
        ],
    )
    def test_ways_to_write_a_box(self, tmp_path: Path, header: str, row: str) -> None:
        pictures(tmp_path, "a.png", "b.png")
        write(tmp_path / "t.csv", f"{header}\n{row}\n")
        data = load_data(tmp_path / "t.csv")
        assert boxes(data) == [[6, 4, 30, 20]]
        assert words(data) == ["cat"]

    def test_named_columns_and_units(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png")
        write(tmp_path / "t.csv", "image,a,b,c,d,e\na.png,0.25,0.5,0.75,1,cat\n")
        named = {"xmin": "a", "ymin": "b", "xmax": "c", "ymax": "d", "class": "e"}
        assert boxes(load_data(tmp_path, columns=named)) == [[15, 20, 45, 40]]
        assert boxes(load_data(tmp_path, columns=named | {"units": "pixels"})) == [[0.25, 0.5, 0.75, 1]]
        with pytest.raises(UnknownName, match="Did you mean"):
            load_data(tmp_path, columns=named | {"class": "ee"})

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("a.png,9,2,3,4,cat", r"t.csv, line 2 \(a.png\): box \[9, 2, 3, 4\] has x2 <= x1"),
            ("a.png,1,2,x,4,cat", r"line 2 \(a.png\): 'x' in the column 'xmax' is not a number"),
            ("a.png,1,2,3,4,", "it has a box, but no class"),
            ("z.png,1,2,3,4,cat", "line 2: the picture 'z.png' was not found"),
        ],
    )
    def test_errors_name_the_line(self, tmp_path: Path, row: str, message: str) -> None:
        write(pictures(tmp_path, "a.png") / "t.csv", f"image,xmin,ymin,xmax,ymax,class\n{row}\n")
        with pytest.raises(DataError, match=message):
            load_data(tmp_path / "t.csv")

    def test_landmarks_of_real_faces(self, shared_data: Path) -> None:
        data = load_data(shared_data / "face-landmarks")
        objects = data.targets["objects"]
        assert objects.objects.points.shape == (40, 68, 3)
        h, w = data.size(0)
        assert boxes(data) == [[0, 0, w, h]]
        hull = load_data(shared_data / "face-landmarks", columns={"box": "hull"}).targets["objects"].objects
        assert np.array_equal(hull.boxes_xyxy[:, :2], hull.points[..., :2].min(axis=1))
        assert np.array_equal(hull.boxes_xyxy[:, 2:], hull.points[..., :2].max(axis=1))
        spec = data.heads[0].points
        assert spec is not None
        swaps = np.array(spec.swaps)
        assert np.array_equal(swaps[swaps], np.arange(68))
        mean = objects.objects.points[..., 0].mean(axis=0)  # over faces, twins lie left and right of the middle
        middle = mean[[27, 28, 29, 30, 33, 51, 57, 8]].mean()
        assert np.abs(mean + mean[swaps] - 2 * middle).max() < 12

    def test_classes_of_pictures_stay_what_they_are(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        write(tmp_path / "t.csv", "image,label,xmin,ymin,xmax,ymax\na.png,cat,1,2,3,4\nb.png,ant,1,2,3,4\n")
        assert load_data(tmp_path, columns={"label": "label"}).heads[0].kind == "single"


class TestTools:
    def test_labelme(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "b.png")
        shapes = [
            {"label": "cat", "points": [[30, 20], [10, 5]], "shape_type": "rectangle", "group_id": 3},
            {"label": "nose", "points": [[12, 6]], "shape_type": "point", "group_id": 3},
            {"label": "ant", "points": [[1, 1], [5, 2], [3, 9]], "shape_type": "polygon", "group_id": None},
            {"label": "ant", "points": [[20, 20], [23, 24]], "shape_type": "circle", "flags": {"difficult": True}},
            {"label": "spot", "points": [[1, 1]], "shape_type": "point", "group_id": None},
        ]
        values = {
            "version": "5.4.1",
            "flags": {},
            "shapes": shapes,
            "imagePath": "a.png",
            "imageHeight": 40,
            "imageWidth": 60,
        }
        write(tmp_path / "a.json", values)
        data = load_data(tmp_path)
        assert boxes(data) == [[10, 5, 30, 20], [1, 1, 5, 9], [15, 15, 25, 25]]
        assert data.heads[0].points is not None
        assert data.heads[0].points.names == ("nose",)
        assert data.targets["objects"][0].points[0].tolist() == [[12, 6, 2]]
        assert data.targets["objects"][0].difficult.tolist() == [False, False, True]
        for words_ in ("2 shapes are outlines", "1 points belong to no rectangle", "1 pictures have no JSON"):
            assert words_ in said(data)
        shapes[0]["points"] = [[30, 20], [30, 5]]
        write(tmp_path / "a.json", values)
        with pytest.raises(DataError, match=r"a.json, shape 1 \(cat\): box \[30, 5, 30, 20\] has x2 <= x1"):
            load_data(tmp_path)

    def test_cvat(self, tmp_path: Path) -> None:
        pictures(tmp_path, "images/train/a.png", "images/b.png")
        write(
            tmp_path / "annotations.xml",
            """<annotations><version>1.1</version><meta><job><labels>
            <label><name>person</name><type>skeleton</type></label><label><name>car</name><type>any</type></label>
            <label><name>eye</name><type>points</type><parent>person</parent></label>
            <label><name>hand</name><type>points</type><parent>person</parent></label></labels></job></meta>
            <image id="0" name="a.png" subset="train" width="60" height="40">
            <box label="car" occluded="1" xtl="1.5" ytl="2" xbr="30" ybr="20" z_order="0"/>
            <box label="car" occluded="0" xtl="10" ytl="10" xbr="30" ybr="20" rotation="90" z_order="0"/>
            <polygon label="car" occluded="0" points="1,1;5,2;3,9"/>
            <skeleton label="person"><points label="hand" outside="0" occluded="1" points="9,8"/>
            <points label="eye" outside="0" occluded="0" points="3,4"/></skeleton>
            <tag label="night" source="manual"/></image>
            <image id="1" name="b.png" width="60" height="40"/></annotations>""",
        )
        data = load_data(tmp_path)
        assert data.heads[0].class_names == ("person", "car")
        assert boxes(data) == [[1.5, 2, 30, 20], [15, 5, 25, 25], [1, 1, 5, 9], [3, 4, 9, 8]]
        assert data.targets["objects"][0].points[3].tolist() == [[3, 4, 2], [9, 8, 1]]
        assert dict(zip(data.ids, data.given_split.tolist())) == {"a.png": 0, "b.png": -1}
        assert list(data.attributes["tags"]) == ["night", ""]
        assert "1 boxes are rotated" in said(data)
        write(tmp_path / "annotations.xml", '<annotations><track id="0" label="car"/></annotations>')
        with pytest.raises(DataError, match="tracks of a video"):
            load_data(tmp_path)

    def test_label_studio(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png", "deep/b.png")
        box = {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["cat"]}
        point = {"x": 50, "y": 50, "width": 1, "keypointlabels": ["nose"]}
        results = [
            {"id": "r1", "type": "rectanglelabels", "value": box, "from_name": "label", "to_name": "image"},
            {"id": "r2", "type": "keypointlabels", "value": point, "parentID": "r1"},
            {"id": "r3", "type": "choices", "value": {"choices": ["sunny"]}},
        ]
        given = [{"result": [], "was_cancelled": True}, {"result": results}]
        tasks = [
            {"id": 4, "data": {"image": "/data/upload/1/1f3a5b7c-a.png", "site": "N"}, "annotations": given},
            {"id": 5, "data": {"image": "/data/local-files/?d=deep/b.png"}, "annotations": []},
        ]
        write(tmp_path / "project.json", tasks)
        data = load_data(tmp_path)
        assert boxes(data) == [[6, 10, 36, 30]]
        assert data.targets["objects"][0].points[0].tolist() == [[30, 20, 2]]
        assert list(data.attributes["site"]) == ["N", ""]
        assert "1 tasks have no annotation" in said(data)
        assert "1 results are neither boxes nor points" in said(data)
        box["width"] = 0
        write(tmp_path / "project.json", tasks)
        with pytest.raises(DataError, match=r"project.json, task 4 \(a.png\), result 1 \(cat\): box .* has x2 <= x1"):
            load_data(tmp_path)


def test_points_say_their_twins_by_name() -> None:
    spec = point_spec(["nose", "left_eye", "right_eye", "LeftHand", "RightHand"])
    assert spec.swaps == (0, 2, 1, 4, 3)
    assert spec.sigmas == ()
    assert point_spec(["a", "b"]).swaps == ()


def test_archives(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "bccd"
    names = [f"BloodImage_{k:05}" for k in range(5)]
    with zipfile.ZipFile(tmp_path / "cells.zip", "w") as archive:
        for name in names:
            archive.write(folder / "JPEGImages" / f"{name}.jpg", f"cells/JPEGImages/{name}.jpg")
            archive.write(folder / "Annotations" / f"{name}.xml", f"cells/Annotations/{name}.xml")
    data = load_data(tmp_path / "cells.zip")
    assert list(data.ids) == [f"{name}.jpg" for name in names]
    whole = load_data(folder, skip_bad=True)
    assert torch.equal(data[2].image, whole[2].image)
    assert boxes(data, 2) == boxes(whole, 2)


def test_inspect_and_convert(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "inspect", str(shared_data / "bccd"), "--skip-bad", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["format"], found["objects"]["objects"]["objects"]) == ("voc", 4886)
    assert sum(found["classes"]["objects"]["WBC"].values()) == 372
    assert main(["data", "inspect", str(shared_data / "face-landmarks")]) == 0
    assert "objects: 40, 1 to 1 per picture" in capsys.readouterr().out
    out = tmp_path / "out"
    words_ = ["data", "convert", str(shared_data / "tiny-coco"), "--to", "yolo", "--out", str(out), "--json"]
    assert main(words_) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert "lost: 10 x crowd marks (iscrowd): such regions become ordinary objects" in notes
    facts = inspect_data(load_data(out))["objects"]["objects"]
    assert (facts["objects"], facts["crowd"]) == (852, 0)


class TestHostile:
    """Files that are broken or wrong on purpose end in a message with file and place, never in a traceback or a guess."""

    @pytest.mark.parametrize(
        "change",
        [
            {"category_id": []},
            {"image_id": {}},
            {"bbox": "1234"},
            {"bbox": [0, 0, 10**400, 3]},
            {"bbox": [0, 0, 1e300, 3]},
            {"keypoints": ["x", 1, 2]},
            {"keypoints": [10**400, 1, 2]},
        ],
    )
    def test_coco_annotations(self, tmp_path: Path, change: dict[str, Any]) -> None:
        pictures(tmp_path, "a.png")
        categories = [{"id": 1, "name": "cat", "keypoints": ["nose"]}]
        write(tmp_path / "c.json", coco(["a.png"], [{"bbox": [1, 2, 3, 4], **change}], categories))
        with pytest.raises(DataError, match=r"c\.json, annotation"):
            load_data(tmp_path)

    @pytest.mark.parametrize(
        "categories",
        [
            [{"id": 1, "name": "cat"}, {"id": 1, "name": "ant"}],
            [{"id": [1], "name": "cat"}],
            [{"id": None, "name": "cat"}],
            [{"id": 1, "name": "cat", "keypoints": 5}],
            [{"id": 1, "name": "cat", "keypoints": ["a"], "skeleton": [[1]]}],
        ],
    )
    def test_coco_categories(self, tmp_path: Path, categories: list[Any]) -> None:
        pictures(tmp_path, "a.png")
        write(tmp_path / "c.json", coco(["a.png"], [{"bbox": [1, 2, 3, 4]}], categories))
        with pytest.raises(DataError, match=r"c\.json"):
            load_data(tmp_path)

    def test_coco_sizes_and_nesting(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png")
        values = coco(["a.png"], [{"bbox": [1, 2, 3, 4], "area": 10**400}])
        values["images"][0]["width"] = "wide"
        write(tmp_path / "c.json", values)
        data = load_data(tmp_path)
        assert boxes(data) == [[1, 2, 4, 6]]
        assert np.isnan(data.targets["objects"][0].area).all()
        write(tmp_path / "c.json", '{"images": [], "annotations": ' + "[" * 10**5 + "]" * 10**5 + "}")
        with pytest.raises(DataError, match="not JSON"):
            load_data(tmp_path)

    def test_coco_of_outlines_gives_the_boxes_around_them(self, tmp_path: Path) -> None:
        pictures(tmp_path, "a.png")
        outline = [[1, 2, 10, 2, 10, 20], [4, 1, 5, 1, 5, 3]]
        write(tmp_path / "c.json", coco(["a.png"], [{"segmentation": outline}, {"bbox": [1, 2, 3, 4]}]))
        data = load_data(tmp_path)
        assert boxes(data) == [[1, 1, 10, 20], [1, 2, 4, 6]]
        assert "1 objects have no bbox" in said(data)

    @pytest.mark.parametrize(
        ("row", "more"),
        [
            (b"inf .5 .5 .2 .2", ""),
            (b"0.7 .5 .5 .2 .2", ""),
            (b"\xff\xfe\x00", ""),
            (b"0 .5 .5 .2 .2 .1 .1 .2 .2 .3 .3", "kpt_shape: [3, 3]"),
            (b"0 .5 .5 .2 .2", "kpt_shape: [1, 3]\nflip_idx: 3"),
            (b"0 .5 .5 .2 .2", "kpt_shape: [1, 3]\nkpt_names: 3"),
            (b"0 .5 .5 .2 .2", "kpt_shape: [1, 3]\nskeleton: [[0, x]]"),
            (b"0 .5 .5 .2 .2", "more: " + "[" * 10**4),
            (b"0 .5 .5 .2 .2", "names: [[cat]]"),
        ],
    )
    def test_yolo(self, tmp_path: Path, row: bytes, more: str) -> None:
        pictures(tmp_path, "images/a.png")
        names = "" if more.startswith("names") else "names: [cat]\n"
        write(tmp_path / "data.yaml", f"{names}train: images\nval: images\n{more}\n")
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_bytes(row)
        with pytest.raises(DataError, match=r"a\.txt|data\.yaml"):
            load_data(tmp_path)

    def test_voc(self, tmp_path: Path) -> None:
        pictures(tmp_path, "JPEGImages/a.png")
        box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>10</xmax><ymax>20</ymax></bndbox>"
        text = f"<annotation><size><width>inf</width><height>4</height></size><object><name>a</name>{box}</object></annotation>"
        write(tmp_path / "Annotations" / "a.xml", text)
        assert boxes(load_data(tmp_path)) == [[0, 1, 10, 20]]
        for encoding in ("gb2312", "unknown"):
            write(tmp_path / "Annotations" / "a.xml", f'<?xml version="1.0" encoding="{encoding}"?>{text}')
            with pytest.raises(DataError, match=r"a\.xml: its encoding is not read .* Save it as UTF-8"):
                load_data(tmp_path)

    @pytest.mark.parametrize("change", [{"group_id": [1]}, {"flags": [1]}, {"points": [[10**400, 2], [1, 2]]}])
    def test_labelme(self, tmp_path: Path, change: dict[str, Any]) -> None:
        pictures(tmp_path, "a.png")
        shape = {"label": "cat", "points": [[1, 2], [10, 20]], "shape_type": "rectangle", **change}
        write(tmp_path / "a.json", {"shapes": [shape], "imagePath": "a.png", "imageHeight": "x", "imageWidth": 60})
        with pytest.raises(DataError, match=r"a\.json, shape 1"):
            load_data(tmp_path)

    @pytest.mark.parametrize("given", [5, [5], [{"result": [5]}]])
    def test_labelstudio(self, tmp_path: Path, given: Any) -> None:
        pictures(tmp_path, "a.png")
        task = {"id": 3, "data": {"image": "a.png"}, "annotations": given, "result": None}
        write(tmp_path / "export.json", [task])
        with pytest.raises(DataError, match=r"task 3.*annotations are no list"):
            load_data(tmp_path)
