"""The two reading paths stay short: every file of ours that runs for one picture, and for one training batch, is listed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import opsin
from opsin.bundle import Bundle
from opsin.data.build import from_arrays
from opsin.data.loader import TrainLoader
from opsin.engine.loop import Loop, Plan
from opsin.engine.optimizers import build_optimizer
from opsin.engine.precision import Precision
from opsin.models import ModelSpec, build
from opsin.recipe import OptimizerSettings
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings

HERE = Path(opsin.__file__).resolve().parent
SPEC = ModelSpec("smallnet", {}, 3, 2, (28, 28))

PICTURE = {"bundle.py", "data/image.py", "tasks/classify.py", "models/smallnet.py"}
"""What a reader opens to follow one picture to its result."""
PICTURE_HELPERS = {
    "data/headers.py": "fields of a JPEG's header",
    "data/spec.py": "channels and value range, as a value",
    "data/classes.py": "a picture brought to that spec",
    "data/resize.py": "resize, crop and the geometry that undoes them",
    "layers/normalize.py": "pixels minus mean, by deviation",
    "task.py": "named outputs as arrays",
    "results/classification.py": "the result, as a value",
}
STEP = {"engine/loop.py", "tasks/classify.py", "models/smallnet.py"}
"""What a reader opens to follow one batch through a training step."""
STEP_HELPERS = {
    "task.py": "a batch, moved to the device",
    "data/transforms.py": "the augmentations of a batch, from settings and keys",
    "data/augment_ops.py": "one augmentation each",
    "losses/classification.py": "cross entropy as sum and count",
    "layers/normalize.py": "pixels minus mean, by deviation",
    "seeding.py": "a key from seed and step",
    "engine/precision.py": "autocast",
    "engine/distributed.py": "sums over processes",
    "engine/events.py": "tells listeners",
}


def _files_entered(call: Callable[[], object]) -> set[str]:
    """Our files of which any function is called, with the functions printed."""
    entered: dict[str, dict[str, None]] = {}

    def note(frame, event, arg):  # type: ignore[no-untyped-def]
        name = Path(frame.f_code.co_filename)
        if event == "call" and name.is_relative_to(HERE):
            entered.setdefault(name.relative_to(HERE).as_posix(), {})[frame.f_code.co_name] = None

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    for name, functions in entered.items():
        print(f"{name}: {', '.join(functions)}")
    return set(entered)


@pytest.fixture
def task() -> Classify:
    head = HeadSettings(name="label", class_names=("a", "b"))
    return Classify(
        ClassifySettings(
            heads=(head,), image_size=(28, 28), channels=3, mean=(0.5,) * 3, std=(0.25,) * 3, small=True, flip=True,
            augment={"shift": 0.1, "flip_horizontal": True, "brightness": 0.2},
        )
    )  # fmt: skip


def test_one_picture_from_disk_to_result(task: Classify, tmp_path: Path) -> None:
    path = tmp_path / "one.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50, 3), np.uint8)).save(path)
    bundle = Bundle(task, "classify", SPEC, task.assemble(build(SPEC)).eval())
    bundle.predict(path)  # what is done once is done
    assert _files_entered(lambda: bundle.predict(path)) == PICTURE | PICTURE_HELPERS.keys()
    assert len(PICTURE) <= 4


def test_one_batch_through_a_training_step(task: Classify) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 28, 28, 3), dtype=np.uint8)
    data = from_arrays(images, np.arange(8) % 2, class_names=("a", "b"))
    precision = Precision("fp32", torch.device("cpu"), False)
    model = task.assemble(build(SPEC))
    loader = TrainLoader(data, np.arange(8), task, batch_size=8, seed=0)
    batch = next(iter(loader.epoch(0)))
    loop = Loop(
        task,
        model,
        {"main": build_optimizer(OptimizerSettings(), model.named_parameters(), 8)},
        lambda step: 1.0,
        loader,
        Plan(1),
        precision=precision,
    )
    loop._step(batch)
    assert _files_entered(lambda: loop._step(batch)) == STEP | STEP_HELPERS.keys()
    assert len(STEP) <= 3
