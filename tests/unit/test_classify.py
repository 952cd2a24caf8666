"""The task classify on its own: mixed and missing labels, heads that nothing is known of, what is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.data.transforms import AugmentSettings
from opsin.seeding import keys
from opsin.task import Batch
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


def make(*heads: HeadSettings, **given: Any) -> Classify:
    settings = {"image_size": (8, 8), "channels": 1, "mean": (0.0,), "std": (1.0,), "small": True, "flip": False}
    return Classify(ClassifySettings.model_validate({"heads": heads, **settings, **given}))


def mixed(target: Tensor, head: HeadSettings, **augment: float) -> Tensor:
    """Targets of pictures that are each mixed with the next one."""
    n = len(target)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    batch = Batch(
        images, {head.name: target}, [], [], [str(i) for i in range(n)], keys(0, 0, np.arange(n)), (np.arange(n) + 1) % n
    )
    return make(head, augment=AugmentSettings(**augment)).augment(batch).targets[head.name]  # type: ignore[arg-type]


def test_a_picture_that_is_not_mixed_keeps_its_labels_whatever_its_partner_lacks() -> None:
    target = torch.tensor([[1.0, 0.0], [torch.nan, 1.0], [0.0, torch.nan], [1.0, 1.0]])
    labels = HeadSettings(name="traits", kind="multi", class_names=("a", "b"))
    assert torch.equal(mixed(target, labels, mixup=0.4, mix=1e-9).isnan(), target.isnan())
    each = mixed(target, labels, mixup=1.0)
    assert torch.equal(each.isnan(), target.isnan() | target.roll(-1, 0).isnan())


def test_a_missing_class_counts_by_the_share_of_the_other_picture() -> None:
    target = torch.tensor([0, -1, 2, 1])
    label = HeadSettings(name="label", class_names=("a", "b", "c"))
    shares = mixed(target, label, mixup=1.0).sum(1)
    assert ((shares > 0) & (shares < 1)).tolist() == [True, True, False, False]
