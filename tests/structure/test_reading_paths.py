"""The two reading paths stay short: which of our files one picture, and one training batch, pass through."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

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
ASIDE = ("results/", "errors.py", "seeding.py", "engine/listeners/", "engine/events.py", "registry.py")
"""Not counted: results, errors, events and listeners, and two that a reader need not open to follow the way."""


def _files(call: Callable[[], object], lines: int) -> dict[str, int]:
    """Our files that run during a call, with the number of different lines that ran in each; `lines` is the least."""
    seen: dict[str, set[int]] = {}

    def trace(frame, event, arg):  # type: ignore[no-untyped-def]
        name = frame.f_code.co_filename
        if not name.startswith(str(HERE)):
            return None
        place = Path(name).relative_to(HERE).as_posix()
        seen.setdefault(place, set()).add(frame.f_lineno)
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)
    return {name: len(ran) for name, ran in seen.items() if len(ran) >= lines and not name.startswith(ASIDE)}


@pytest.fixture
def task() -> Classify:
    head = HeadSettings(name="label", class_names=("a", "b"))
    return Classify(ClassifySettings(heads=(head,), image_size=(28, 28), channels=1, mean=(0.5,), std=(0.25,), small=True, flip=False))


def test_one_picture_from_disk_to_result(task: Classify, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "one.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
    bundle = Bundle(task, "classify", ModelSpec("linear", {}, 1, 2, (28, 28)), task.assemble(build(ModelSpec("linear", {}, 1, 2, (28, 28)))))
    bundle.predict(path)
    files = _files(lambda: bundle.predict(path), lines=8)
    assert set(files) >= {"bundle.py", "data/image.py", "tasks/classify.py"}
    assert len(files) <= 4, files


def test_one_batch_through_a_training_step(task: Classify) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 28, 28), dtype=np.uint8)
    data = from_arrays(images, np.arange(8) % 2, class_names=("a", "b"))
    precision = Precision("fp32", torch.device("cpu"), False)
    model = task.assemble(build(ModelSpec("linear", {}, 1, 2, (28, 28))))
    loader = TrainLoader(data, np.arange(8), task, batch_size=8, seed=0)
    batch = next(iter(loader.epoch(0)))
    loop = Loop(task, model, {"main": build_optimizer(OptimizerSettings(), model.named_parameters(), 8)}, lambda step: 1.0, loader, Plan(1), precision=precision)
    loop._step(batch)
    files = _files(lambda: loop._step(batch), lines=8)
    assert set(files) >= {"engine/loop.py", "tasks/classify.py"}
    assert len(files) <= 3, files
