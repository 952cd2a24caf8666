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
ASIDE = ("results/", "errors.py", "engine/listeners/", "engine/events.py")


def _files_on_the_way(call: Callable[[], object], stations: set[str]) -> set[str]:
    """Our files on the call stack whenever a station (`file:function`) is entered: those that a reader must open.

    What a station calls and returns from (a loss, a resize) is named by its call and need not be opened. The layers of an
    architecture count as one with it; results, errors and listeners do not count.
    """
    seen: set[str] = set()

    def note(frame, event, arg):  # type: ignore[no-untyped-def]
        if event != "call" or f"{_place(frame)}:{frame.f_code.co_name}" not in stations:
            return
        while frame is not None:
            place = _place(frame)
            if place and not place.startswith(ASIDE):
                seen.add("the architecture" if place.startswith(("models/", "layers/")) else place)
            frame = frame.f_back

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return seen


def _place(frame) -> str:  # type: ignore[no-untyped-def]
    name = frame.f_code.co_filename
    return Path(name).relative_to(HERE).as_posix() if name.startswith(str(HERE)) else ""


@pytest.fixture
def task() -> Classify:
    head = HeadSettings(name="label", class_names=("a", "b"))
    return Classify(
        ClassifySettings(
            heads=(head,), image_size=(28, 28), channels=1, mean=(0.5,), std=(0.25,), small=True, flip=False
        )
    )


def test_one_picture_from_disk_to_result(task: Classify, tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "one.png"
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(path)
    bundle = Bundle(
        task,
        "classify",
        ModelSpec("linear", {}, 1, 2, (28, 28)),
        task.assemble(build(ModelSpec("linear", {}, 1, 2, (28, 28)))),
    )
    bundle.predict(path)
    stations = {
        "data/image.py:read_image",
        "tasks/classify.py:prepare",
        "models/linear.py:forward",
        "tasks/classify.py:predict_step",
    }
    files = _files_on_the_way(lambda: bundle.predict(path), stations)
    assert files == {"bundle.py", "data/image.py", "tasks/classify.py", "the architecture"}


def test_one_batch_through_a_training_step(task: Classify) -> None:
    images = np.random.default_rng(0).integers(0, 255, (8, 28, 28), dtype=np.uint8)
    data = from_arrays(images, np.arange(8) % 2, class_names=("a", "b"))
    precision = Precision("fp32", torch.device("cpu"), False)
    model = task.assemble(build(ModelSpec("linear", {}, 1, 2, (28, 28))))
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
    stations = {"tasks/classify.py:augment", "tasks/classify.py:training_step", "models/linear.py:forward"}
    files = _files_on_the_way(lambda: loop._step(batch), stations)
    assert files == {"engine/loop.py", "tasks/classify.py", "the architecture"}
