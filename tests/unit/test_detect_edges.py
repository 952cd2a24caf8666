"""Edges of the task detect and its bundle: boxes in the padding, boxes that are too small to learn, halved weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from opsin.bundle import _halved
from opsin.data.dataset import Dataset
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.point_settings import PointSettings
from opsin.data.sources import ArraySource
from opsin.data.targets import HeadSpec, PointSpec
from opsin.errors import ConfigError, DataError
from opsin.run.evaluating import _same_points
from opsin.task import Geometry, Sample
from opsin.tasks.detect import Detect, DetectSettings


def _task() -> Detect:
    return Detect(
        DetectSettings(
            class_names=("a",), image_size=(64, 64), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, flip=False
        )
    )


def test_a_box_in_the_padding_is_no_object() -> None:
    outputs = {
        "boxes": np.array([[[4, 40, 20, 60], [4, 4, 20, 40]]], np.float32),  # the picture ends at y = 32
        "scores": np.array([[0.9, 0.8]], np.float32),
        "labels": np.zeros((1, 2), np.int64),
        "overlap": np.float32(0.5),
    }
    found = _task().predict_step(outputs, ["p"], [Geometry((32, 64), (64, 64))])[0]
    assert found.boxes_xyxy.tolist() == [[4.0, 4.0, 20.0, 32.0]]


def test_boxes_too_small_to_be_learned_are_said() -> None:
    task = _task()
    objects = Objects.of([[0, 0, 400, 400], [500, 500, 520, 520]], [0, 0])  # 0.05 x: 20 and 1 pixels
    sample = Sample("p", torch.zeros((3, 1280, 1280), dtype=torch.uint8), {"objects": objects})
    batch = task.collate([task.prepare(sample, 0, train=True)], np.zeros(1, np.uint64))
    notes = {note.code: note.text for note in task.check_batch(torch.nn.Identity(), batch)}
    assert notes["small-boxes"].startswith("1 boxes of the first batch are less than 2 pixels")


def test_settings_that_contradict_each_other_are_refused() -> None:
    plain = _task().settings
    with pytest.raises(ConfigError, match=r"task\.thresholds has 2 scores for 1 classes"):
        Detect(plain.model_copy(update={"thresholds": (0.5, 0.5)}))
    points = PointSettings(names=("left", "right"))
    with pytest.raises(ConfigError, match=r"task\.points\.swaps"):
        Detect(plain.model_copy(update={"flip": True, "points": points}))
    Detect(plain.model_copy(update={"flip": True, "points": points.model_copy(update={"swaps": (1, 0)})}))


def test_halved_weights_never_overflow() -> None:
    assert _halved(torch.tensor([1.0, -2.0])).dtype == torch.float16
    large = torch.tensor([1.0, 1e5])  # a running variance may be
    assert _halved(large).dtype == torch.float32
    assert _halved(torch.arange(3)).dtype == torch.int64


@pytest.mark.parametrize("others", [("right eye", "left eye"), ("left eye",), None])
def test_other_data_must_have_the_points_of_the_model(others: tuple[str, ...] | None) -> None:
    names = ("left eye", "right eye")
    _same_points(names, _with_points(names))
    _same_points(names, _with_points(("point 0", "point 1")))
    with pytest.raises(DataError, match="left eye, right eye"):
        _same_points(names, _with_points(others))


def _with_points(names: tuple[str, ...] | None) -> Dataset:
    column = ObjectColumn.collect([Objects.of([[1, 1, 8, 8]], [0], num_points=len(names or ()))])
    head = HeadSpec("objects", "objects", ("a",), points=None if names is None else PointSpec(names))
    pictures = ArraySource(np.zeros((1, 3, 16, 16), np.uint8))
    return Dataset("d", ["p"], pictures, heads=[head], targets={"objects": column})


def test_given_points_go_over_those_of_the_data() -> None:
    spec = PointSpec(("left eye", "right eye", "nose"), skeleton=((0, 2),))
    found = PointSettings.of(spec, {"sigmas": (0.1, 0.1, 0.2)})
    assert (found.names, found.swaps, found.skeleton) == (spec.names, (1, 0, 2), ((0, 2),))
    assert found.sigmas == (0.1, 0.1, 0.2)
    assert PointSettings.of(spec, PointSettings(swaps=(0, 1, 2))).swaps == (0, 1, 2)
    assert PointSettings.of(spec, None).names == spec.names
