"""The task keypoints: one sample per object, points that move with their pictures, rows and metrics."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.points import TRIANGLE, triangles

from opsin.data import point_transforms
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.point_names import eyes, swaps_by_name
from opsin.data.splits import make_split
from opsin.data.targets import HeadSpec, PointSpec
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.metrics import keypoint_report
from opsin.models import Located
from opsin.recipe import SplitSettings, overrides
from opsin.results.rows import Rows
from opsin.run import new_recipe
from opsin.seeding import keys
from opsin.task import Sample, as_arrays
from opsin.tasks.keypoints import Keypoints, KeypointsSettings


def made(**settings: object) -> tuple[Keypoints, object]:
    data = Keypoints.view(triangles(20))
    return Keypoints(Keypoints.infer(data, np.arange(len(data)), settings)), data


# One sample per object ---------------------------------------------------------------------------------------------------


def test_objects_become_samples_that_know_their_picture() -> None:
    data = triangles(6)
    seen = Keypoints.view(data)
    assert list(seen.ids)[:4] == ["p000.png#0", "p001.png#0", "p001.png#1", "p002.png#0"]
    assert list(seen.attributes["picture"])[:3] == ["p000.png", "p001.png", "p001.png"]
    for i in range(len(seen)):
        sample = seen.read(i)
        name, _, k = sample.id.partition("#")
        place = list(data.ids).index(name)
        assert torch.equal(sample.image, data.read(place).image)
        whole = data.targets["objects"][place]
        assert np.array_equal(sample.target["objects"].points[0], whole.points[int(k)])


def test_objects_without_points_and_crowds_are_left_out_and_counted() -> None:
    data = triangles(6)
    every = data.targets["objects"].objects
    every.points[0, :, 2] = 0
    every.crowd[3] = True
    seen = Keypoints.view(data)
    assert list(seen.ids)[:3] == ["p001.png#0", "p001.png#1", "p003.png#0"]
    assert "2 of 9 objects are left out" in seen.problems[-1].message


def test_all_objects_of_a_picture_lie_in_one_part_and_given_parts_are_kept() -> None:
    data = triangles(60)
    seen = Keypoints.view(data)
    group = Keypoints.defaults["data"]["split"]["group"]
    for settings in (SplitSettings(group=group), SplitSettings(group=group, folds=4, fold=1)):
        split = make_split(seen, settings)
        parts: dict[str, set[int]] = {}
        for name, part in zip(seen.attributes["picture"], split.assignment.tolist()):
            parts.setdefault(name, set()).add(part)
        assert all(len(own) == 1 for own in parts.values())
        assert set(split.assignment.tolist()) == {0, 1, 2}
    data.given_split = np.arange(60, dtype=np.int8) % 3
    given = Keypoints.view(data)
    assert [int(p) for p in given.given_split] == [int(name[1:4]) % 3 for name in given.ids]


def test_data_without_points_are_refused() -> None:
    data = triangles(4)
    data.heads = (HeadSpec("objects", "objects", ("triangle",)),)
    with pytest.raises(DataError, match="no objects with points"):
        Keypoints.view(data)


def test_what_is_said_of_the_points_is_put_beside_what_the_data_say() -> None:
    recipe = new_recipe("keypoints", [overrides(["task.points.swaps=[1, 0, 2]"])])
    task, data = made(**recipe.task)
    known = data.heads[0].points
    assert task.settings.points.swaps == (1, 0, 2)
    assert task.settings.points.names == known.names
    assert task.settings.points.skeleton == known.skeleton
    with pytest.raises(ConfigError, match="each position from 0 to 2 once"):
        made(points={"swaps": (0, 0, 2)})


# Names -------------------------------------------------------------------------------------------------------------------


def test_names_tell_swaps_and_eyes() -> None:
    coco = ("nose", "left_eye", "right_eye", "left_ankle", "right_ankle")
    assert swaps_by_name(coco) == (0, 2, 1, 4, 3)
    assert eyes(coco) is None, "a body has no inter-ocular errors"
    assert eyes(("nose", "left_eye", "right_eye")) == (1, 2)
    face = ("left_eye_inner", "left_eye_outer", "right_eye_inner", "right_eye_outer", "left_brow")
    assert eyes(face) == (1, 3)
    assert swaps_by_name(face) == (), "the right brow is missing"
    assert swaps_by_name(("a", "b")) == ()
    numbers = tuple(map(str, range(68)))
    assert eyes(numbers) == (36, 45)
    swaps = swaps_by_name(numbers)
    assert sorted(swaps) == list(range(68))
    assert all(swaps[swaps[k]] == k for k in range(68))
    assert [k for k in range(68) if swaps[k] == k] == [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]


def test_the_68_swaps_fit_real_faces(shared_data) -> None:  # type: ignore[no-untyped-def]
    """Mirrored mean face, points swapped: the same face again."""
    table = np.genfromtxt(shared_data / "face-landmarks/face_landmarks.csv", delimiter=",", skip_header=1)[:, 1:]
    faces = table.reshape(len(table), 68, 2)
    faces = faces - faces.mean(1, keepdims=True)
    mean = (faces / np.abs(faces).max((1, 2), keepdims=True)).mean(0)
    mirrored = mean[list(swaps_by_name(tuple(map(str, range(68)))))] * [-1, 1]
    assert np.abs(mirrored - mean).max() < 0.1
    assert np.abs(mean * [-1, 1] - mean).max() > 0.5


# Points move with their pictures -----------------------------------------------------------------------------------------


def spot(image: torch.Tensor, value: float) -> np.ndarray:
    """Center of the pixels near a value, (x, y)."""
    y, x = np.nonzero(np.abs(image[0].numpy().astype(float) - value) < 25)
    return np.array([x.mean() + 0.5, y.mean() + 0.5])


def middle(image: torch.Tensor, near: torch.Tensor) -> np.ndarray:
    """Center of brightness within 12 pixels of a place, (x, y)."""
    y, x = np.mgrid[: image.shape[1], : image.shape[2]] + 0.5
    mass = image[0].numpy() * ((x - float(near[0])) ** 2 + (y - float(near[1])) ** 2 <= 144)
    return np.array([(mass * x).sum(), (mass * y).sum()]) / mass.sum()


def dotted(size: tuple[int, int] = (120, 90)) -> tuple[torch.Tensor, np.ndarray]:
    """A picture with a bright and a middle-gray disk, and their places."""
    places = np.array([[30.0, 40.0, 2], [61.0, 70.0, 2]])
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    image = np.zeros(size, np.uint8)
    for (px, py, _), value in zip(places, (250, 130)):
        image[(x - px) ** 2 + (y - py) ** 2 <= 36] = value
    return torch.from_numpy(image)[None], places


@pytest.mark.parametrize("shape", [(96, 96), (64, 128), (128, 64)])
def test_cutting_out_and_back(shape: tuple[int, int]) -> None:
    image, places = dotted()
    box = point_transforms.window((20, 30, 70, 80), shape, 1.25)
    assert (box[2] - box[0]) / (box[3] - box[1]) == pytest.approx(shape[1] / shape[0])
    cut, geometry = point_transforms.cut_out(image, box, shape, "bilinear")
    assert cut.shape == (1, *shape)
    moved = point_transforms.to_input(places, geometry)
    np.testing.assert_allclose(spot(cut, 250), moved[0, :2], atol=0.7)
    np.testing.assert_allclose(moved[:, :2] * geometry.scale + geometry.offset, places[:, :2])
    assert geometry.original_size == (120, 90)


def test_a_box_that_leaves_the_picture_is_padded() -> None:
    image, places = dotted()
    cut, geometry = point_transforms.cut_out(image, (-30, -20, 60, 70), (90, 90), "bilinear")
    np.testing.assert_allclose(spot(cut, 250), point_transforms.to_input(places, geometry)[0, :2], atol=0.2)
    assert int(cut[0, :20].max()) == 0


def test_turning_and_mirroring_move_points_with_pixels() -> None:
    image, places = dotted((96, 96))
    points = torch.from_numpy(places.astype(np.float32))[None]
    for angle in (25.0, -40.0, 90.0):
        turned, moved = point_transforms.turned(image[None], points, np.array([angle]), (0, 255))
        np.testing.assert_allclose(spot(turned[0], 250), moved[0, 0, :2], atol=0.5)
        np.testing.assert_allclose(middle(turned[0], moved[0, 1, :2]), moved[0, 1, :2], atol=0.5)
    deep = image[None].float() / 51 - 2
    turned, moved = point_transforms.turned(deep, points, np.array([25.0]), (-2.0, 3.0))
    np.testing.assert_allclose(spot((turned[0] + 2) * 51, 250), moved[0, 0, :2], atol=0.5)
    flipped, other = point_transforms.mirrored(image[None], points, np.array([True]), (1, 0))
    np.testing.assert_allclose(spot(flipped[0], 250), other[0, 1, :2], atol=0.1)
    same, kept = point_transforms.mirrored(image[None], points, np.array([False]), (1, 0))
    assert torch.equal(same[0], image)
    assert torch.equal(kept, points)


def test_augmentation_depends_on_the_sample_key_alone() -> None:
    task, data = made(image_size=(64, 64))
    every = keys(0, 0, np.arange(6))
    prepared = [task.prepare(data.read(i), int(every[i]), train=True) for i in range(6)]
    whole = task.augment(task.collate(prepared, every))
    for i in range(6):
        alone = task.augment(task.collate([prepared[i]], every[i : i + 1]))
        assert torch.equal(alone.inputs[0], whole.inputs[i])
        torch.testing.assert_close(alone.targets["points"][0], whole.targets["points"][i])
    again = task.prepare(data.read(0), int(every[1]), train=True)
    assert not torch.equal(again.inputs, prepared[0].inputs)
    plain = task.prepare(data.read(0), int(every[0]), train=False)
    assert torch.equal(plain.inputs, task.prepare(data.read(0), int(every[1]), train=False).inputs)


def test_points_of_shrunk_pictures_are_those_of_the_original() -> None:
    task, data = made(image_size=(64, 64))
    sample = data.read(0)
    half = replace(sample, image=sample.image[:, ::2, ::2], original_size=(64, 64))
    full, small = (task.prepare(one, 0, train=False) for one in (sample, half))
    assert np.abs(full.target["points"] - small.target["points"]).max() < 4
    for one in (full, small):
        back = one.target["points"][:, :2] * one.geometry.scale + one.geometry.offset
        np.testing.assert_allclose(back, sample.target["objects"].points[0, :, :2])


# Settings ----------------------------------------------------------------------------------------------------------------


def test_inferred_settings() -> None:
    task, _ = made()
    assert task.settings.points.names == TRIANGLE.names
    assert task.settings.flip
    assert task.settings.normalize == "box"
    assert task.model_facts["num_points"] == 3
    assert task.monitor.name == "oks_map"
    assert Keypoints(KeypointsSettings.model_validate(task.settings.model_dump(mode="json"))).settings == task.settings


def test_no_mirroring_where_names_do_not_tell() -> None:
    data = Keypoints.view(triangles(8))
    data.heads = (HeadSpec("objects", "objects", ("triangle",), PointSpec(("a", "b", "c"))),)
    indices = np.arange(len(data))
    settings = Keypoints.infer(data, indices, {})
    assert not settings.flip
    assert Keypoints(settings).monitor.name == "nme"
    with pytest.raises(ConfigError, match=r"task\.points\.swaps"):
        Keypoints.infer(data, indices, {"flip": True})
    with pytest.raises(ConfigError, match=r"task\.eyes"):
        Keypoints.infer(data, indices, {"normalize": "interocular"})


@pytest.mark.parametrize(("box", "size"), [((10, 30), (256, 192)), ((30, 10), (192, 256)), ((20, 21), (128, 128))])
def test_input_size_follows_the_boxes(box: tuple[int, int], size: tuple[int, int]) -> None:
    data = Keypoints.view(triangles(4))
    count = len(data)
    points = np.full((count, 3, 3), 2.0)
    objects = Objects.of([[0, 0, *box]] * count, [0] * count, points=points)
    data.targets["objects"] = ObjectColumn(objects, np.arange(count + 1))
    assert Keypoints.infer(data, np.arange(count), {}).image_size == size


# Rows and metrics --------------------------------------------------------------------------------------------------------


def rows_of(task: Keypoints, data: object, noise: float, seed: int = 0) -> Rows:
    draws = np.random.default_rng(seed)
    found = []
    for i in range(len(data)):  # type: ignore[arg-type]
        one = task.prepare(data[i], 0, train=False)  # type: ignore[index]
        places = one.target["points"][:, :2] + draws.normal(0, noise, (3, 2))
        outputs = as_arrays(Located(torch.from_numpy(places)[None], torch.rand(1, 3)))
        result = task.predict_step(outputs, [one.id], [one.geometry])[0]
        found.append(task.score(result, one.original))
    return Rows.collect(found).sorted_by_id()


def test_right_points_have_no_error_and_full_precision() -> None:
    task, data = made(image_size=(64, 64))
    found = {name: float(value) for name, value in task.summarize(rows_of(task, data, 0.0)).items()}
    assert found["nme"] < 1e-6
    assert found["oks_map"] == pytest.approx(1.0)
    assert found["pck"] == 1
    assert found["auc_ced"] == pytest.approx(1.0, abs=1e-5)
    assert found["failure_rate"] == 0


def test_metrics_in_closed_form() -> None:
    task, data = made(image_size=(64, 64))
    rows = rows_of(task, data, 4.0)
    errors = []
    for found, true, box in zip(rows["found_points"], rows["true_points"], rows["box"]):
        size = np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        errors.append(np.linalg.norm(found[:, :2] - true[:, :2], axis=1) / size)
    each = np.mean(errors, axis=1)
    got = {name: float(value) for name, value in task.summarize(rows).items()}
    assert got["nme"] == pytest.approx(each.mean())
    assert got["failure_rate"] == pytest.approx(np.mean(each > 0.1))
    assert got["failure_rate_08"] == pytest.approx(np.mean(each > 0.08))
    assert got["auc_ced"] == pytest.approx(np.mean(np.clip(1 - each / 0.1, 0, None)))
    assert got["pck"] == pytest.approx(np.mean(np.array(errors) <= 0.2))


def test_weights_are_repeated_rows() -> None:
    task, data = made(image_size=(64, 64))
    rows = rows_of(task, data, 3.0)
    twice = rows["picture"] == "p003.png"
    doubled = Rows.concatenate(
        [
            rows,
            Rows(
                {
                    **{name: rows.select(twice)[name] for name in rows},
                    "id": np.array([f"x{i}" for i in range(int(twice.sum()))]),
                    "picture": np.array(["x"] * int(twice.sum())),
                }
            ),
        ]
    )
    weighted = task.summarize(rows, 1.0 + twice)
    repeated = task.summarize(doubled)
    for name in ("nme", "pck", "auc_ced", "failure_rate", "oks_map", "oks_ar"):
        assert float(weighted[name]) == pytest.approx(float(repeated[name])), name
    many = task.summarize(rows, np.stack([np.ones(len(rows)), 1.0 + twice]))
    assert many["oks_map"].shape == (2,)
    assert float(many["nme"][1]) == pytest.approx(float(weighted["nme"]))


def test_oks_is_that_of_pycocotools() -> None:
    coco, cocoeval = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    task, data = made(image_size=(64, 64))
    rows = rows_of(task, data, 3.0)
    names, place = np.unique(rows["picture"], return_inverse=True)
    truth, said = [], []
    for i in range(len(rows)):
        box = rows["box"][i]
        truth.append({
            "id": i + 1, "image_id": int(place[i]), "category_id": 1, "iscrowd": 0, "num_keypoints": 3,
            "area": float(rows["area"][i]), "keypoints": rows["true_points"][i].ravel().tolist(),
            "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()],
        })  # fmt: skip
        said.append({
            "image_id": int(place[i]), "category_id": 1, "keypoints": rows["found_points"][i].ravel().tolist(),
            "score": float(rows["found_points"][i][:, 2].astype(np.float64).mean()),
        })  # fmt: skip
    known = coco.COCO()
    images = [{"id": i} for i in range(len(names))]
    known.dataset = {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "x"}], "info": {}}
    known.createIndex()
    judge = cocoeval.COCOeval(known, known.loadRes(said), "keypoints")
    judge.params.kpt_oks_sigmas = np.array(TRIANGLE.sigmas)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    got = task.summarize(rows)
    for name, k in (("oks_map", 0), ("oks_map50", 1), ("oks_map75", 2), ("oks_ar", 5)):
        assert float(got[name]) == pytest.approx(judge.stats[k], abs=1e-9), name
    assert 0.05 < float(got["oks_map"]) < 0.95


def test_eyes_that_are_not_labeled_are_said() -> None:
    task, data = made(image_size=(64, 64), normalize="interocular", eyes=(0, 1))
    rows = rows_of(task, data, 2.0)
    rows["true_points"][0][0, 2] = 0
    given = keypoint_report.judged(rows, (0, 1), "interocular")
    assert given.replaced == 1
    assert np.isnan(given.errors[0, 0])
    apart = np.linalg.norm(rows["true_points"][1][0, :2] - rows["true_points"][1][1, :2])
    away = np.linalg.norm(rows["found_points"][1][2, :2] - rows["true_points"][1][2, :2])
    assert given.errors[1, 2] == pytest.approx(away / apart)
    assert any(note.code == "eyes_missing" for note in task.warnings(rows))


def test_sections_name_points_and_the_worst_pictures() -> None:
    task, data = made(image_size=(64, 64))
    rows = rows_of(task, data, 3.0)
    table, curve, gallery = task.sections(rows)
    assert [row[0] for row in table.rows] == list(TRIANGLE.names)
    assert "root of its area" in table.note
    _, y = curve.lines["objects"]
    assert bool((np.diff(y) >= 0).all())
    worst = rows.ids[np.argmax(keypoint_report.judged(rows, None, "box").nme)]
    assert gallery.pictures[0].id == worst


def test_rows_are_saved_and_read(tmp_path) -> None:  # type: ignore[no-untyped-def]
    task, data = made(image_size=(64, 64))
    rows = rows_of(task, data, 3.0)
    rows.save(tmp_path / "rows.npz")
    again = Rows.load(tmp_path / "rows.npz")
    assert {n: float(v) for n, v in task.summarize(again).items()} == pytest.approx(
        {n: float(v) for n, v in task.summarize(rows).items()}, nan_ok=True
    )


# Predictions and explanations --------------------------------------------------------------------------------------------


def test_a_picture_without_a_box_is_the_object() -> None:
    task, _ = made(image_size=(64, 64))
    one = task.prepare(Sample("x.png", torch.zeros(1, 80, 100, dtype=torch.uint8)), 0, train=False)
    assert one.target == {}
    outputs = as_arrays(Located(torch.full((1, 3, 2), 32.0), torch.ones(1, 3)))
    result = task.predict_step(outputs, [one.id], [one.geometry])[0]
    np.testing.assert_allclose(result.points_xy, [[50, 40]] * 3, atol=1)
    assert result.size == (80, 100)
    assert set(result.to_dict()["points"]) == set(TRIANGLE.names)
    assert result.columns()["top_x"] == f"{result.point('top')[0]:.2f}"


def test_aims() -> None:
    task, _ = made(image_size=(64, 64))
    points = torch.tensor([[[10.0, 20], [30, 40], [50, 60]]], requires_grad=True)
    answer = Located(points, torch.tensor([[0.2, 0.9, 0.5]]))
    outputs = as_arrays(answer)
    aim = task.aim(outputs)
    assert aim.class_name == "right_foot"
    assert float(aim.pick(answer)) == pytest.approx(0.9)
    moved = answer._replace(points=points + torch.tensor([3.0, 4]))
    assert float(aim.pick(moved)) == pytest.approx(0.9 * np.exp(-25 / (2 * 0.05**2 * 2 * 64**2)))
    place = task.aim(outputs, class_name="top", head="y")
    assert float(place.pick(answer)) == pytest.approx(60 / 64)
    with pytest.raises(UnknownName):
        task.aim(outputs, class_name="nose")
