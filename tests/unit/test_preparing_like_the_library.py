"""Photos are prepared as torchvision and timm prepare them for their weights, and without torch in the same way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from opsin.data.resize import resize
from opsin.export.standalone import classify as standalone
from opsin.export.standalone.pictures import resize as resize_without_torch
from opsin.models.published import find
from opsin.task import Sample
from opsin.tasks.classify import Classify, ClassifySettings

PHOTO = load_sample_image("china.jpg").copy()  # (427, 640, 3)


def _settings(name: str) -> ClassifySettings:
    one = find(name)
    heads = ({"name": "label", "class_names": ("a", "b")},)
    return ClassifySettings(
        heads=heads, image_size=one.image_size, channels=3, mean=one.mean, std=one.std, small=False, flip=True,
        crop_share=one.crop_share, interpolation=one.interpolation,
    )  # fmt: skip


def _theirs(name: str, photo: np.ndarray) -> torch.Tensor:
    """What the library's own transform makes of a picture, before normalization, in levels of uint8."""
    one = find(name)
    if one.library == "torchvision":
        from torchvision.models import get_model_weights

        found = get_model_weights(one.entry)[one.tag].transforms()(Image.fromarray(photo))
    else:
        import timm
        from timm.data import create_transform, resolve_data_config

        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(one.entry).to_dict())
        found = create_transform(**config, is_training=False)(Image.fromarray(photo))
    mean, std = torch.tensor(one.mean)[:, None, None], torch.tensor(one.std)[:, None, None]
    return (found * std + mean) * 255


@pytest.mark.parametrize(
    "name",
    ["resnet18", "resnet50.imagenet1k_v2", "timm/resnet18.a1_in1k", "timm/resnet18.tv_in1k", "timm/mobilenetv1_100"],
)
@pytest.mark.parametrize("upright", [False, True])
def test_evaluation_equals_the_librarys_own_transform(name: str, upright: bool) -> None:
    photo = np.ascontiguousarray(PHOTO.transpose(1, 0, 2) if upright else PHOTO)
    task = Classify(_settings(name))
    ours = task.prepare(Sample("a", torch.from_numpy(photo).permute(2, 0, 1)), 0, train=False).inputs
    difference = (ours.double() - _theirs(name, photo)).abs()
    assert difference.max() <= 1.001, "more than one level"
    assert difference.mean() < 0.05
    alone = standalone.prepare(photo, task.settings.model_dump(mode="json"))
    assert np.array_equal(alone, ours.numpy())


@pytest.mark.parametrize("size", [(100, 90), (600, 700), (427, 100), (13, 1000)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_bicubic_without_torch_is_the_same(size: tuple[int, int], dtype: str) -> None:
    part = PHOTO[100:227, 50:150]
    pixels = {"uint8": part, "uint16": part.astype(np.uint16) * 257, "float32": part.astype(np.float32) / 255}[dtype]
    ours = resize(torch.from_numpy(pixels).permute(2, 0, 1), size, "bicubic")[0].permute(1, 2, 0).numpy()
    alone = resize_without_torch(pixels, size, "bicubic")
    assert ours.dtype == alone.dtype == pixels.dtype
    if dtype == "uint8":
        assert np.array_equal(ours, alone)
    else:
        assert np.abs(ours.astype(np.float64) - alone).max() <= (1 if dtype == "uint16" else 1e-5)
    assert not np.array_equal(ours, resize(torch.from_numpy(pixels).permute(2, 0, 1), size)[0].permute(1, 2, 0).numpy())
