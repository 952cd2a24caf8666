"""What a checkpoint gives back is what was put in, whatever the optimizer and the memory layout."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from opsin.bundle import Bundle
from opsin.engine.checkpoint import Store, contiguous, load_strictly, optimizer_tensors, restore_optimizer
from opsin.engine.optimizers import build_optimizer
from opsin.errors import CheckpointError, ConfigError, DataError, OpsinError
from opsin.models import ModelSpec, build
from opsin.recipe import OptimizerSettings, Recipe
from opsin.results.rows import Rows
from opsin.run.folder import RunFolder
from opsin.tasks.classify import Classify, ClassifySettings, HeadSettings


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, number: int) -> None:
    images = torch.randn(4, 8, 9, 9, generator=torch.Generator().manual_seed(number))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images.contiguous(memory_format=torch.channels_last)).float().square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _made(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(400, 3))
    model = model.to(memory_format=torch.channels_last)
    return model, build_optimizer(OptimizerSettings.model_validate({"name": name}), model.named_parameters(), 32)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon"])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(name: str) -> None:
    model, optimizer = _made(name)
    for number in range(3):
        _step(model, optimizer, number)
    tensors, plain = optimizer_tensors(optimizer, "o")
    kept = load(save(contiguous({**tensors, **{f"model.{n}": t for n, t in model.state_dict().items()}})))
    again, other = _made(name)
    load_strictly(again, {n.removeprefix("model."): t for n, t in kept.items() if n.startswith("model.")}, "test")
    restore_optimizer(other, "o", {n: t for n, t in kept.items() if n.startswith("o.")}, plain)
    for number in range(3, 6):
        _step(model, optimizer, number)
        _step(again, other, number)
    for (label, one), two in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(one, two), label


def test_a_damaged_checkpoint_is_named_with_the_way_out(tmp_path: Path) -> None:
    store = Store(tmp_path, keep=3)
    for step in (1, 2):
        store.save(step, {"x": torch.zeros(3)}, {"a": step})
    path = tmp_path / "step-00000002" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"step-00000002.*resume from step-00000001"):
        store.load()
    (tmp_path / "step-00000002" / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"state\.json"):
        store.load()


def test_only_the_latest_are_kept_and_half_written_ones_go(tmp_path: Path) -> None:
    (tmp_path / ".step-00000009.partial").mkdir()
    store = Store(tmp_path, keep=2)
    for step in (1, 2, 3):
        store.save(step, {"x": torch.zeros(1)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def _bundle() -> Bundle:
    head = HeadSettings(name="label", class_names=("a", "b"))
    settings = ClassifySettings(
        heads=(head,), image_size=(8, 8), channels=1, mean=(0.5,), std=(0.2,), small=True, flip=False
    )
    spec = ModelSpec("linear", {}, 1, 2, (8, 8))
    task = Classify(settings)
    return Bundle(task, "classify", spec, task.assemble(build(spec)))


def test_a_bundle_a_recipe_and_rows_are_synced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    plain = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.add(os.fstat(handle).st_ino), plain(handle)))
    _bundle().save(tmp_path / "bundle")
    Recipe("classify").save(tmp_path / "recipe.json")
    Rows({"id": np.array(["a"])}).save(tmp_path / "val.npz")
    names = ("bundle/weights.safetensors", "bundle/bundle.json", "bundle", "recipe.json", "val.npz", ".")
    assert [name for name in names if (tmp_path / name).stat().st_ino not in synced] == []
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize("text", ["", '{"version": 1, "form', "[]"])
@pytest.mark.parametrize(
    ("name", "read", "error"),
    [
        ("recipe.json", Recipe.load, ConfigError),
        ("bundle.json", lambda path: Bundle.load(path.parent), CheckpointError),
        ("run.json", lambda path: RunFolder(path.parent).read(path.name), DataError),
        ("val.npz", Rows.load, DataError),
    ],
)
def test_a_damaged_file_is_named(
    name: str, read: Callable[[Path], object], error: type[OpsinError], text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(error, match=name):
        read(tmp_path / name)


def test_a_bundle_without_a_key_is_named(tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text('{"version": 1, "format": "opsin-bundle"}')
    with pytest.raises(CheckpointError, match=r"bundle\.json is damaged \(KeyError: 'task'\)"):
        Bundle.load(tmp_path)
