"""How many processes and workers there are changes nothing: the same weights to 1e-9, in double precision."""

from __future__ import annotations

import multiprocessing
import os
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from opsin.recipe import Layer


def _pictures(folder: Path, count: int = 103) -> Path:
    data = load_digits()
    for i in range(count):
        path = folder / str(data.target[i] % 5) / f"{i:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(data.images[i] * 15.9)).resize((40 + i % 3, 40)).save(path)
    return folder


def _settings(data: Path, workers: int = 0) -> dict[str, Any]:
    """Batch normalization, mixing with partners of other processes, clipping, averaging; the last batch is short."""
    return {
        "data": {"path": str(data), "workers": workers},
        "model": {"name": "smallnet", "kwargs": {"stem": 4, "widths": [8, 8], "depths": [1, 1]}},
        "optimizer": {"name": "sgd", "lr": 0.05, "clip_norm": 1.0, "ema": 0.9},
        "task": {"small": False, "image_size": [24, 24], "augment_preset": "strong"},
        "run": {
            "epochs": 2,
            "batch_size": 15,
            "precision": "fp64",
            "channels_last": False,
            "listeners": [],
            "threads": 1,
            "preflight": False,
        },
    }


def _train(folder: str, settings: dict[str, Any], rank: int = 0, world: int = 1, port: int = 0) -> None:
    from opsin.run import start

    if world > 1:
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_RANK": str(rank),
        }
    start("classify", [Layer("test", settings)], out=folder, quiet=True)


def _distance(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "bundle" / "weights.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("processes")
    _train(str(place / "alone"), _settings(_pictures(place / "data")))
    return place


def test_two_processes_with_unequal_shares(alone: Path) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    both = [
        spawn.Process(target=_train, args=(str(alone / "two"), _settings(alone / "data"), rank, 2, port))
        for rank in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(240)
        assert process.exitcode == 0
    assert _distance(alone / "alone", alone / "two") <= 1e-9


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_change_nothing(alone: Path, workers: int) -> None:
    _train(str(alone / f"workers-{workers}"), _settings(alone / "data", workers))
    assert _distance(alone / "alone", alone / f"workers-{workers}") == 0.0
