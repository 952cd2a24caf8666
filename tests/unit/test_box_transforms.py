"""Views and augmentation with boxes: boxes read off painted pixels equal the moved ones, and keys decide everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou
from torchvision.transforms import v2
from torchvision.tv_tensors import BoundingBoxes, BoundingBoxFormat

from opsin import seeding
from opsin.data import box_transforms as bt
from opsin.data import transforms
from opsin.data.box_transforms import DetectAugment, Dropped
from opsin.data.loader import TrainLoader
from opsin.data.objects import Objects
from opsin.errors import ConfigError, ShapeError, UnknownName
from opsin.task import Batch, Geometry, Prepared, Sample

CHANNELS = 12  # one per object, so that objects that overlap can be told apart


def painted(
    boxes: Sequence[Sequence[int]], size: tuple[int, int], first: int = 0, interleaved: bool = True
) -> tuple[torch.Tensor, Objects]:
    """A black picture (CHANNELS, H, W) with box k white in channel `first + k`, which is its label; points at two corners."""
    pixels = np.zeros((*size, CHANNELS), np.uint8)
    for k, (x1, y1, x2, y2) in enumerate(boxes):
        pixels[y1:y2, x1:x2, first + k] = 255
    corners = np.array([[[b[0], b[1], 2], [b[2], b[3], 1], [0, 0, 0]] for b in boxes], float).reshape(-1, 3, 3)
    objects = Objects.of(boxes, np.arange(len(boxes)) + first, points=corners, num_points=3)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return image if interleaved else image.contiguous(), objects


def seen(image: torch.Tensor, label: int) -> tuple[float, float, float, float]:
    """The box of a channel's bright pixels."""
    channel = image[label].float()
    ys, xs = torch.nonzero(channel > channel.max() / 2, as_tuple=True)
    return float(xs.min()), float(ys.min()), float(xs.max() + 1), float(ys.max() + 1)


def agrees(image: torch.Tensor, objects: Objects, pixels: float = 1.0) -> None:
    height, width = image.shape[-2:]
    assert (objects.boxes_xyxy >= 0).all()
    assert (objects.boxes_xyxy <= [width, height, width, height]).all()
    assert (objects.boxes_xyxy[:, 2:] > objects.boxes_xyxy[:, :2]).all()
    for box, label, points in zip(objects.boxes_xyxy, objects.labels, objects.points):
        assert np.abs(np.array(seen(image, int(label))) - box).max() <= pixels + 1e-6, (box, seen(image, int(label)))
        for x, y, visibility in points:
            if visibility:
                assert 0 <= x <= width
                assert 0 <= y <= height


@st.composite
def pictures(draw: Any, first: int = 0, size: tuple[int, int] | None = None) -> tuple[torch.Tensor, Objects]:
    height, width = size or (draw(st.integers(24, 90)), draw(st.integers(24, 90)))
    boxes = []
    for _ in range(draw(st.integers(0, 3))):
        x, y = draw(st.integers(0, width - 9)), draw(st.integers(0, height - 9))
        boxes.append((x, y, draw(st.integers(x + 8, width)), draw(st.integers(y + 8, height))))
    return painted(boxes, (height, width), first, draw(st.booleans()))


ZOOMS = DetectAugment(zoom=(0.5, 2.5), aspect=1.4, shift=1.0, keep_side=4)
SSD = DetectAugment(view="ssd", keep_side=4)


# One picture ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["letterbox", "stretch"])
@given(picture=pictures(), size=st.tuples(st.integers(24, 90), st.integers(24, 90)))
@settings(max_examples=30, deadline=None)
def test_fit_gives_the_size_and_the_way_back(how: Any, picture: Any, size: tuple[int, int]) -> None:
    image, objects = picture
    fitted, geometry = bt.fit(image, size, how, fill=0)
    assert tuple(fitted.shape) == (CHANNELS, *size)
    assert geometry.offset == (0.0, 0.0)
    assert geometry.original_size == tuple(image.shape[1:])
    moved = bt.to_input(objects, geometry)
    agrees(fitted, bt.clip(moved, (0, 0, size[1], size[0]), 0, 0)[0])
    back = bt.move(moved, geometry.scale, geometry.offset)
    np.testing.assert_allclose(back.boxes_xyxy, objects.boxes_xyxy, atol=1e-9)
    np.testing.assert_allclose(back.points, objects.points, atol=1e-9)
    view = bt.training_view(image, objects, 5, size, DetectAugment(keep_side=0), how, 0)
    assert torch.equal(view.image, fitted)
    assert view.geometry == geometry
    np.testing.assert_allclose(view.objects.boxes_xyxy, moved.boxes_xyxy, atol=1e-9)


def test_letterbox_leaves_its_background_at_the_right_and_the_bottom() -> None:
    image = torch.full((3, 20, 40), 200, dtype=torch.uint8)
    wide, geometry = bt.fit(image, (32, 32))
    assert (wide[:, :16] == 200).all()
    assert (wide[:, 16:] == 114).all()
    assert geometry.scale == (1.25, 1.25)
    tall, _ = bt.fit(image.transpose(1, 2), (32, 32), fill=7)
    assert (tall[:, :, 16:] == 7).all()
    with pytest.raises(UnknownName):
        bt.fit(image, (8, 8), "squeeze")  # type: ignore[arg-type]
    with pytest.raises(ShapeError):
        bt.fit(image, (0, 8))


@pytest.mark.parametrize("how", ["letterbox", "stretch"])
@pytest.mark.parametrize("chosen", [ZOOMS, SSD], ids=["zoom", "ssd"])
@given(picture=pictures(), key=st.integers(0, 2**63), size=st.tuples(st.integers(24, 90), st.integers(24, 90)))
@settings(max_examples=60, deadline=None)
def test_the_boxes_of_a_view_are_those_of_its_pixels(
    chosen: DetectAugment, how: Any, picture: Any, key: int, size: tuple[int, int]
) -> None:
    image, objects = picture
    before = objects.boxes_xyxy.copy()
    view = bt.training_view(image, objects, key, size, chosen, how, 0)
    assert tuple(view.image.shape) == (CHANNELS, *size)
    # a pixel of the original may be several pixels of a zoomed view
    agrees(view.image, view.objects, max(1.0, 1 / min(view.geometry.scale)))
    assert len(view.objects) + view.dropped.objects == len(objects)
    assert np.array_equal(objects.boxes_xyxy, before)
    again = bt.training_view(image, objects, key, size, chosen, how, 0)
    assert torch.equal(again.image, view.image)
    assert np.array_equal(again.objects.points, view.objects.points)


def test_views_differ_between_keys_and_cover_the_allowed_zooms() -> None:
    image, objects = painted([(10, 10, 30, 30)], (60, 60))
    views = [bt.training_view(image, objects, key, (60, 60), ZOOMS, fill=0) for key in range(300)]
    scales = 1 / np.array([np.sqrt(np.prod(v.geometry.scale)) for v in views])
    assert 0.45 < scales.min() < 0.6
    assert 2.2 < scales.max() < 2.75
    assert abs(np.median(scales) - np.sqrt(0.5 * 2.5)) < 0.15
    shapes = np.array([v.geometry.scale[0] / v.geometry.scale[1] for v in views])
    assert shapes.min() < 0.8
    assert shapes.max() > 1.25


def test_ssd_views_expand_and_crop_as_the_paper_says() -> None:
    image, objects = painted([(20, 20, 40, 40)], (60, 60))
    views = [bt.training_view(image, objects, key, (60, 60), SSD, "stretch", 0) for key in range(300)]
    scales = np.array([v.geometry.scale for v in views])
    assert scales.max() > 2.5  # put on a background up to four times as large
    assert scales.min() < 0.5  # and crops
    assert all(len(v.objects) == 1 for v in views)  # a crop keeps at least one object's middle
    assert {v.dropped for v in views} == {Dropped(0, v.dropped.points) for v in views}


def test_cutting_counts_what_it_drops() -> None:
    objects = Objects.of(
        [[0, 0, 10, 10], [7, 0, 17, 10], [8, 0, 18, 10], [30, 0, 40, 10], [8.5, 0, 10.5, 10]], [0, 1, 2, 3, 4],
        points=np.array([[[5, 5, 2], [12, 5, 1]]] * 5, float), area=np.array([50, 100, 100, 100, np.nan]),
    )  # fmt: skip
    kept, dropped = bt.clip(objects, (0, 0, 10, 10))
    assert kept.labels.tolist() == [0, 1]  # 30 % of the second is left, 20 % of the third, 1.5 pixels of the last
    assert dropped == Dropped(3, 2)
    assert kept.boxes_xyxy.tolist() == [[0, 0, 10, 10], [7, 0, 10, 10]]
    assert kept.area.tolist() == [50, pytest.approx(30)]
    assert kept.points[0].tolist() == [[5, 5, 2], [0, 0, 0]]
    assert bt.clip(objects, (0, 0, 10, 10), 0.0, 1.0)[0].labels.tolist() == [0, 1, 2, 4]
    empty, none = bt.clip(Objects.of(num_points=2), (0, 0, 10, 10))
    assert (len(empty), none) == (0, Dropped())


# A batch --------------------------------------------------------------------------------------------------------------


def batch_of(seed: int, count: int = 4, size: tuple[int, int] = (64, 80)) -> tuple[torch.Tensor, list[Objects]]:
    generator = np.random.default_rng(seed)
    images, objects = [], []
    for i in range(count):
        boxes = []
        for k in range(3):  # apart from each other, so that what is pasted brings nothing else along
            x, y = 27 * k + int(generator.integers(2, 8)), int(generator.integers(0, size[0] - 24))
            boxes.append((x, y, x + int(generator.integers(8, 16)), y + int(generator.integers(8, 24))))
        image, found = painted(boxes, size, 3 * (i % 4))
        images.append(image)
        objects.append(found)
    return torch.stack([i.permute(1, 2, 0) for i in images]).permute(0, 3, 1, 2), objects


KEYS = seeding.keys(3, 0, np.arange(4))


@pytest.mark.parametrize("axis", [0, 1])
def test_flips_are_torchvisions_and_swap_twins(axis: int) -> None:
    images, objects = batch_of(0)
    flip: Any = (bt.flip_horizontal, bt.flip_vertical)[axis]
    flipped, found = flip(images, objects, KEYS, 1.0)
    for image, before, after, one in zip(flipped, objects, found, images):
        agrees(image, after, 0.0)
        boxes: Any = BoundingBoxes(
            torch.from_numpy(before.boxes_xyxy), format=BoundingBoxFormat.XYXY, canvas_size=(64, 80)
        )
        theirs = (v2.RandomHorizontalFlip(1.0), v2.RandomVerticalFlip(1.0))[axis]
        picture, moved = theirs(one, boxes)
        assert torch.equal(picture, image)
        np.testing.assert_array_equal(moved.numpy(), after.boxes_xyxy)
    twice = flip(flipped, found, KEYS, 1.0)
    assert torch.equal(twice[0], images)
    assert all(np.array_equal(a.points, b.points) for a, b in zip(twice[1], objects))
    some, _ = flip(images, objects, seeding.keys(0, 0, np.arange(4)), 0.5)
    assert {torch.equal(a, b) for a, b in zip(some, images)} == {True, False}
    if axis == 0:
        swapped = bt.flip_horizontal(images, objects, KEYS, 1.0, (1, 0, 2))[1]
        np.testing.assert_array_equal(swapped[0].points, found[0].points[:, [1, 0, 2]])


@given(seed=st.integers(0, 10**6), epoch=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_mosaic_boxes_are_those_of_the_pixels(seed: int, epoch: int) -> None:
    images, objects = batch_of(seed)
    keys = seeding.keys(1, epoch, np.arange(4))
    chosen = DetectAugment(mosaic=1.0, mosaic_zoom=(0.6, 1.4), keep_side=4)
    three = (np.arange(4)[:, None] + [1, 2, 3]) % 4
    output, found, dropped = bt.mosaic(images, objects, three, keys, chosen, 0)
    assert output.shape == images.shape
    for image, one in zip(output, found):
        agrees(image, one, 1.4)  # a pixel of the original is up to 1.4 pixels
    assert sum(len(one) for one in found) + dropped.objects == 12 * 4


def test_mosaic_shows_four_pictures_and_leaves_others_alone() -> None:
    images = (torch.arange(4, dtype=torch.uint8) * 50 + 10).view(4, 1, 1, 1).expand(4, 3, 32, 32).contiguous()
    none = [Objects.of()] * 4
    partners = np.array([[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]])
    output, _, _ = bt.mosaic(images, none, partners, KEYS, DetectAugment(mosaic=1.0, mosaic_zoom=(1.0, 1.0)), 0)
    for one in output:
        assert set(one.unique().tolist()) == {10, 60, 110, 160}
    same, _, _ = bt.mosaic(images, none, partners, KEYS, DetectAugment(), 0)
    assert torch.equal(same, images)


def test_pasted_objects_hide_none_and_lie_where_their_boxes_say() -> None:
    chosen, pasted = DetectAugment(copy_paste=1.0, paste_most=3), 0
    for seed in range(12):
        images, objects = batch_of(seed)
        keys = seeding.keys(2, seed, np.arange(4))
        others = bt.partners(keys, 1)[:, 0]
        output, found = bt.copy_paste(images, objects, images, objects, others, keys, chosen)
        for i, (image, one) in enumerate(zip(output, found)):
            agrees(image, one, 0.0)
            assert torch.equal(image[3 * i : 3 * i + 3] > 127, images[i, 3 * i : 3 * i + 3] > 127)
            overlap = box_iou(*[torch.from_numpy(one.boxes_xyxy)] * 2)
            assert (overlap[~torch.eye(len(one), dtype=torch.bool)] == 0).all()
            pasted += len(one) - 3
    assert pasted > 20
    crowds = [Objects.of(one.boxes_xyxy, one.labels, crowd=[True] * 3, points=one.points) for one in objects]
    assert [len(one) for one in bt.copy_paste(images, objects, images, crowds, others, keys, chosen)[1]] == [3] * 4


def test_mixup_keeps_the_objects_of_both() -> None:
    images, objects = batch_of(4)
    others = bt.partners(KEYS, 1)[:, 0]
    output, found = bt.mixup(images, objects, images, objects, others, KEYS, DetectAugment(mixup=1.0))
    for i, (image, one) in enumerate(zip(output, found)):
        agrees(image, one, 0.0)
        assert sorted(one.labels) == sorted([*objects[i].labels, *objects[others[i]].labels])
        shares = [image[objects[k].labels].max() / 255 for k in (i, others[i])]
        assert float(sum(shares)) == pytest.approx(1.0, abs=0.01)


def test_multi_scale_draws_one_multiple_of_the_stride_for_all() -> None:
    images, objects = batch_of(5)
    sizes = set()
    for key in range(200):
        output, found = bt.multi_scale(images, objects, key, (0.5, 1.5), 16)
        sizes.add(tuple(output.shape[2:]))
        for image, one in zip(output, found):
            agrees(image, one, 1.0)
    assert sizes == {(32, 48), (48, 64), (64, 80), (80, 96), (96, 128)} or {s[0] for s in sizes} == {32, 48, 64, 80, 96}
    assert all(side % 16 == 0 for size in sizes for side in size)


def test_colors_change_by_chance_and_boxes_do_not() -> None:
    images, objects = batch_of(6)
    rgb = images[:, :3] // 2 + 40
    chosen = DetectAugment(brightness=0.3, contrast=0.3, saturation=0.3, color=0.5)
    out = bt.augment(rgb, objects, seeding.keys(5, 0, np.arange(4)), chosen)
    changed = [not torch.equal(a, b) for a, b in zip(out.images, rgb)]
    assert set(changed) == {True, False}
    every = transforms.color_jitter(rgb, seeding.keys(5, 0, np.arange(4)), 0.3, 0.3, 0.3)
    assert all(torch.equal(a, b) for a, b, c in zip(out.images, every, changed) if c)
    assert all(a is b for a, b in zip(out.objects, objects))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_everything_together_depends_on_keys_alone(dtype: torch.dtype) -> None:
    """The batch in another order and in parts, with partners at other places, gives the same pictures and boxes."""
    images, objects = batch_of(8)
    images = images if dtype == torch.uint8 else images.float() / 255
    fill = 0.0
    chosen = DetectAugment(
        mosaic=0.5,
        copy_paste=0.7,
        mixup=0.4,
        flip_horizontal=0.5,
        flip_vertical=0.5,
        multi_scale=(0.5, 1.5),
        keep_side=4,
    )
    before, copies = images.clone(), [one.copy() for one in objects]
    for epoch in range(8):
        keys = seeding.keys(6, epoch, np.arange(4))
        others = bt.partners(keys, 3)
        given: Any = {"batch_key": int(keys[0]), "stride": 16, "swaps": (1, 0, 2), "fill": fill}
        whole = bt.augment(images, objects, keys, chosen, partners=others, **given)
        order = np.array([2, 0, 1, 3])
        place = np.argsort(order)
        shuffled = bt.augment(
            images[order], [objects[i] for i in order], keys[order], chosen, partners=place[others[order]][:2], **given
        )
        for k, i in enumerate(order[:2]):
            assert torch.equal(shuffled.images[k], whole.images[i])
            assert np.array_equal(shuffled.objects[k].boxes_xyxy, whole.objects[i].boxes_xyxy)
            assert np.array_equal(shuffled.objects[k].points, whole.objects[i].points)
        assert whole.images.dtype == dtype
    assert torch.equal(images, before)
    assert all(np.array_equal(a.boxes_xyxy, b.boxes_xyxy) for a, b in zip(objects, copies))


def test_partners_are_other_samples() -> None:
    keys = seeding.keys(0, 0, np.arange(9))
    others = bt.partners(keys, 3)
    assert others.shape == (9, 3)
    assert (others != np.arange(9)[:, None]).all()
    assert all(sorted(column) == list(range(9)) for column in others.T)
    assert bt.partners(keys, 0).shape == (9, 0)
    images, objects = batch_of(0)
    with pytest.raises(ShapeError):
        bt.augment(images, objects, KEYS, DetectAugment(mosaic=1.0), partners=others[:4, :1] % 4)
    with pytest.raises(ShapeError):
        bt.augment(images, objects[:2], KEYS, DetectAugment())


def test_presets() -> None:
    assert bt.preset("plain") == DetectAugment()
    assert not bt.preset("plain").views
    assert bt.preset("standard").views
    assert bt.preset("standard").partners == 0
    assert bt.preset("strong").partners == 3
    assert bt.preset("strong", flip=False).flip_horizontal == 0
    assert DetectAugment(mixup=0.1).partners == 1
    with pytest.raises(UnknownName):
        bt.preset("extreme")


# Through the loader ----------------------------------------------------------------------------------------------------


class _Painted:
    """Painted pictures of many sizes that pretend to be files."""

    def __len__(self) -> int:
        return 21

    def id(self, i: int) -> str:
        return f"{i:02}.png"

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        size = (40 + i, 50 + 2 * i)
        image, objects = painted([(5, 6, 20 + i, 30), (22, 8, 40, 28)], size, 2 * (i % 6))
        return Sample(self.id(i), image, {"objects": objects})


class _Detect:
    """As a task for boxes does it."""

    static_prepare, reduce_to = False, None
    settings = bt.preset("strong").model_copy(update={"mosaic": 0.6, "copy_paste": 0.5, "mixup": 0.4, "keep_side": 4.0})

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        view = bt.training_view(sample.image, sample.target["objects"], key, (64, 64), self.settings, fill=0)
        return Prepared(sample.id, view.image, {"objects": view.objects}, view.geometry, sample.target)

    def collate(self, samples: Sequence[Prepared], keys: np.ndarray) -> Batch:
        inputs = torch.stack([s.inputs for s in samples])
        geometry: list[Geometry] = [s.geometry for s in samples]
        targets = {"objects": [s.target["objects"] for s in samples]}
        return Batch(inputs, targets, geometry, [s.original for s in samples], [s.id for s in samples], keys)

    def partners(self, keys: np.ndarray) -> np.ndarray:
        return bt.partners(keys, self.settings.partners)

    def augment(self, batch: Batch) -> bt.Augmented:
        calm = self.settings.model_copy(update={"brightness": 0.0, "contrast": 0.0, "saturation": 0.0})
        return bt.augment(
            batch.inputs,
            batch.targets["objects"],
            batch.keys,
            calm,
            partners=batch.partners,
            batch_key=batch.key,
            fill=0,
        )


def _epoch(**options: Any) -> list[tuple[list[str], bt.Augmented]]:
    task: Any = _Detect()
    loader = TrainLoader(_Painted(), np.arange(21), task, batch_size=8, seed=4, **options)
    try:
        return [(batch.ids, task.augment(batch)) for batch in loader.epoch(1)]
    finally:
        loader.close()


def test_workers_and_processes_change_nothing() -> None:
    plain = _epoch()
    for other in (_epoch(workers=2), _epoch(rank=0, world=2), _epoch(rank=1, world=2)):
        shares = {name: (a, k) for ids, a in other for k, name in enumerate(ids)}
        assert shares
        for ids, whole in plain:
            for k, name in enumerate(ids):
                if name in shares:
                    part, j = shares[name]
                    assert torch.equal(part.images[j], whole.images[k])
                    assert np.array_equal(part.objects[j].boxes_xyxy, whole.objects[k].boxes_xyxy)
    both = [name for rank in (0, 1) for ids, _ in _epoch(rank=rank, world=2) for name in ids]
    assert sorted(both) == [f"{i:02}.png" for i in range(21)]


def test_splitting_a_batch_keeps_its_key_and_several_partners() -> None:
    batch = Batch(torch.zeros(6, 1), {}, [], [], list("abcdef"), KEYS, np.arange(18).reshape(6, 3), 77)
    parts = batch.split(2)
    assert [part.key for part in parts] == [77] * 3
    assert [part.partners.tolist() for part in parts if part.partners is not None][1] == [[6, 7, 8], [9, 10, 11]]


def test_weights_repeat_samples_as_often_as_they_are_due() -> None:
    weights = np.ones(21)
    weights[3], weights[5] = 4.0, 0.5
    task: Any = _Detect()
    loader = TrainLoader(_Painted(), np.arange(21), task, batch_size=8, seed=4, weights=weights)
    assert (loader.steps_per_epoch, loader.samples_per_epoch) == (3, 21)
    counts = np.zeros(21)
    for epoch in range(400):
        due = np.bincount(loader._due(epoch, weights), minlength=21)
        expected = weights / weights.sum() * 21
        assert due.sum() == 21
        assert (np.abs(due - expected) < 1).all()
        counts += due
    np.testing.assert_allclose(counts / 400, expected, atol=0.1)
    ids = [name for batch in loader.epoch(0) for name in batch.ids]
    assert sorted(ids) == sorted(f"{i:02}.png" for i in loader._due(0, weights))
    with pytest.raises(ConfigError):
        TrainLoader(_Painted(), np.arange(21), task, batch_size=8, seed=4, weights=np.zeros(21))


def test_last_epochs_see_pictures_as_they_are() -> None:
    images, objects = batch_of(4)
    chosen = DetectAugment(mosaic=1.0, copy_paste=1.0, mixup=1.0, mix_until=0.75)
    others = bt.partners(KEYS[:4], 3)[:3]
    before = bt.augment(images, objects, KEYS[:4], chosen, partners=others, done=0.74)
    after = bt.augment(images, objects, KEYS[:4], chosen, partners=others, done=0.75)
    assert not torch.equal(before.images, images[:3])
    assert torch.equal(after.images, images[:3])
    assert after.objects == objects[:3]
