"""The bottleneck cache: features computed once and kept on disk, so that a second head is trained in a moment.

The name of a file in the cache is a hash of everything that the features follow from: every weight before the tapped layer
(bit by bit), the network's structure and code, what the task does to a picture, the layer, and every byte of every picture.
When any of them changes the name is another one, so a stale file is never read. Files are written aside and renamed; one
that is damaged is computed again.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as dump_arrays
from torch import nn

from opsin import __version__
from opsin.data.dataset import Dataset
from opsin.data.home import cache_home
from opsin.data.loader import EvalLoader
from opsin.durable import write_durably
from opsin.models.weights import head_of
from opsin.task import Task
from opsin.transfer.features import HEAD_INPUT, Features, Pool, extract

LIBRARIES = ("torch", "torchvision", "timm", "pillow", "simplejpeg")  # that decode pictures and run networks
LIMIT_BYTES = 4 * 2**30  # of all files together; the ones not read for longest go first

_log = logging.getLogger("opsin")


@dataclass(frozen=True)
class Cached:
    """Features, and whether they were there already."""

    features: Features
    hit: bool
    path: Path


def features_of(
    task: Task[Any],
    model: nn.Module,
    dataset: Dataset,
    indices: NDArray[np.int64],
    *,
    layer: str = HEAD_INPUT,
    pool: Pool = "mean",
    batch_size: int = 64,
    folder: Path | None = None,
) -> Cached:
    """Features of samples, prepared as for prediction (no augmentation, in the order of `indices`), from the cache if there.

    Args:
        task: prepares the pictures.
        model: assembled; its weights decide the name in the cache.
        dataset: the pictures.
        indices: which of them, (N,).
        layer, pool: see `opsin.transfer.features.extract`.
        batch_size: pictures per pass.
        folder: of the cache; by default `<cache home>/features`.
    """
    folder = folder or cache_home() / "features"
    name = key(task, model, dataset, indices, layer, pool)
    path = folder / f"{name}.safetensors"
    ids = tuple(dataset.id(int(i)) for i in indices)
    values = _read(path)
    if values is not None and len(values) == len(ids):
        return Cached(Features(ids, values, layer), True, path)
    loader = EvalLoader(dataset, indices, task, batch_size=batch_size, workers="auto")
    try:
        found = extract(model, loader, layer, pool)
    finally:
        loader.close()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(path, dump_arrays({"values": np.ascontiguousarray(found.values)}))
        _prune(folder, keep=path)
    except OSError as error:  # what was computed is good without a cache too
        _log.warning("Features could not be kept in %s: %s.", folder, error)
    return Cached(found, False, path)


def key(task: Task[Any], model: nn.Module, dataset: Dataset, indices: NDArray[np.int64], layer: str, pool: str) -> str:
    """SHA-256 of everything that features follow from, in hex."""
    digest = hashlib.sha256()
    facts = {
        "versions": [__version__, *(f"{name} {version(name)}" for name in LIBRARIES)],
        "input": task.input_settings(),
        "spec": dataset.spec._asdict(),
        "layer": layer,
        "pool": pool,
        "structure": [(name, type(module).__qualname__, _plain(module)) for name, module in model.named_modules()],
    }
    digest.update(json.dumps(facts, sort_keys=True, default=str).encode())
    for code in sorted(_own_code([task, *model.modules()])):
        digest.update(code)
    after = head_of(model) if layer == HEAD_INPUT else set()  # what comes after the tapped layer does not matter
    for name, tensor in model.state_dict().items():
        if name not in after:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    for mark in _contents(dataset, indices):
        digest.update(mark)
    return digest.hexdigest()


def _plain(module: nn.Module) -> list[tuple[str, Any]]:
    """What a module keeps besides weights: strides, numbers of heads, rates."""
    kept = {name: value for name, value in vars(module).items() if not name.startswith("_") and name != "training"}
    return sorted(
        (name, repr(value)) for name, value in kept.items() if isinstance(value, int | float | str | tuple | list)
    )


def _own_code(things: Iterable[Any]) -> set[bytes]:
    """Source of a person's own modules; that of libraries is told apart by their versions."""
    kinds = {type(thing) for thing in things}
    own = [kind for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "opsin", "timm", "torchvision")]
    found = set()
    for kind in own:
        try:
            found.add(inspect.getsource(inspect.getmodule(kind) or kind).encode())
        except (OSError, TypeError):  # typed into a console: told apart by its structure and weights
            found.add(kind.__qualname__.encode())
    return found


def _contents(dataset: Dataset, indices: NDArray[np.int64]) -> list[bytes]:
    """One hash per sample, of its id and every byte of its file or array."""

    def one(i: int) -> bytes:
        name = dataset.id(i).encode("utf-8", "surrogateescape")
        data = (
            dataset.read(i).image.contiguous().numpy().tobytes()
            if dataset.arrays is not None
            else dataset.bytes_of(i)[0]
        )
        return hashlib.sha256(name + b"\0" + data).digest()

    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(one, indices.tolist()))


def _read(path: Path) -> NDArray[np.float32] | None:
    try:
        values: Mapping[str, NDArray[Any]] = load_arrays(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    with suppress(OSError):  # a cache that may only be read
        path.touch()
    return values.get("values")


def _prune(folder: Path, keep: Path) -> None:
    """Remove the files that were not read for longest, until the rest is small enough."""
    found = []
    for file in folder.glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another process was faster
            found.append((file.stat().st_mtime, file.stat().st_size, file))
    whole = 0
    for _, size, file in sorted(found, key=lambda one: one[0], reverse=True):
        whole += size
        if whole > LIMIT_BYTES and file != keep:
            file.unlink(missing_ok=True)
