"""The task classify on its own: mixed and missing labels, heads that nothing is known of, what is decided."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from opsin.analyze.measure import measure
from opsin.data.transforms import AugmentSettings
from opsin.results.rows import Rows
from opsin.results.section import Table
from opsin.seeding import keys
from opsin.task import Batch, Geometry
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


def make(*heads: HeadSettings, **given: Any) -> Classify:
    settings = {"image_size": (8, 8), "channels": 1, "mean": (0.0,), "std": (1.0,), "small": True, "flip": False}
    return Classify(ClassifySettings.model_validate({"heads": heads, **settings, **given}))


def mixed(target: Tensor, head: HeadSettings, **augment: float) -> Tensor:
    """Targets of pictures that are each mixed with the next one."""
    n = len(target)
    images = torch.zeros(n, 1, 8, 8, dtype=torch.uint8)
    batch = Batch(
        images,
        {head.name: target},
        [],
        [],
        [str(i) for i in range(n)],
        keys(0, 0, np.arange(n)),
        (np.arange(n) + 1) % n,
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


def test_what_is_counted_is_what_is_said_at_the_operating_point() -> None:
    head = HeadSettings(name="label", class_names=("no", "yes"), thresholds=(0.8, 0.2))
    target = [0, 0, 1, 1, -1]
    logits = {"logits": np.log([[0.9, 0.1], [0.7, 0.3], [0.7, 0.3], [0.9, 0.1], [0.5, 0.5]])}
    shares = {}
    for decide in ("best", "operating-point"):
        task = make(head, decide=decide)
        said = task.predict_step(logits, list("abcde"), [Geometry((8, 8), (8, 8))] * 5)
        rows = Rows.collect([task.score(one, {"label": wanted}) for one, wanted in zip(said, target)])
        right = [float(one.heads[0].index == wanted) for one, wanted in zip(said, target)][:4]
        np.testing.assert_array_equal(task.correct(rows), [*right, np.nan])  # type: ignore[arg-type]
        shares[decide] = measure(task, rows)["accuracy"].value
        recalls = next(one for one in task.sections(rows) if isinstance(one, Table)).rows
        summary = task.summarize(rows)
        assert shares[decide] == summary["accuracy"] == np.mean(right)
        assert (summary["specificity"], summary["sensitivity"]) == (recalls[0][3], recalls[1][3])
        never = [note.text for note in task.warnings(rows) if note.code == "undefined_ratio"]
        assert bool(never) == (decide == "best")
    assert summary["sensitivity"] == summary["sensitivity_at_point"] == 0.5
