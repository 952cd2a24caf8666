"""CIFAR-10 and CIFAR-100 as published: the binary and the python versions, in a folder or an archive.

The python version is a pickle. It is read by an unpickler that knows plain values and NumPy arrays and nothing else,
so that a file from a stranger cannot run code. CIFAR-100 has two heads, `fine` and `coarse`.
"""

from __future__ import annotations

import codecs
import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import normalized
from opsin.data.dataset import ArraySource, Dataset, HeadSpec
from opsin.data.layout import ReadOptions
from opsin.data.places import NO, Place, Verdict
from opsin.errors import DataError

NAMES = ("cifar",)

_PIXELS = 3 * 32 * 32
_FILES = {**{f"data_batch_{i}": 0 for i in range(1, 6)}, "test_batch": 2, "train": 0, "test": 2}


def _members(place: Place) -> list[tuple[str, int]]:
    """The files with pictures and the part of each, train files first."""
    names = [place.focus] if place.focus else place.names
    found = [
        n
        for n in names
        if n.rpartition("/")[2].removesuffix(".bin") in _FILES
        and (n.endswith(".bin") or "." not in n.rpartition("/")[2])
    ]
    chosen = [n for n in found if _kind(place, n)]
    return sorted(
        ((n, _FILES[n.rpartition("/")[2].removesuffix(".bin")]) for n in chosen), key=lambda pair: (pair[1], pair[0])
    )


def _kind(place: Place, name: str) -> str | None:
    """ "10" or "100" for binary files, "python" for pickles, None for others."""
    if not name.endswith(".bin"):
        return "python" if place.head(name, 2)[:1] == b"\x80" else None
    return "10" if "batch" in name.rpartition("/")[2] else "100"


def sniff(place: Place) -> Verdict:
    """Files named data_batch_1[.bin] ..., or train[.bin] and test[.bin]."""
    members = _members(place)
    batches = any("batch" in name.rpartition("/")[2] for name, _ in members)
    if not members or not (batches or place.focus or len(members) > 1):
        return NO
    return Verdict(0.95, f"CIFAR files {', '.join(n.rpartition('/')[2] for n, _ in members[:3])}")


class _Unpickler(pickle.Unpickler):
    """Plain values and NumPy arrays only."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np._core.multiarray._reconstruct  # type: ignore[attr-defined]
        if module == "_codecs" and name == "encode":
            return codecs.encode
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which plain data do not need")


def _unpickled(data: bytes, name: str) -> dict[bytes, Any]:
    try:
        values = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a broken pickle raises anything
        raise DataError(
            f"{name}: cannot be read as a CIFAR file ({error}). Only plain values and arrays are read from pickles."
        ) from error
    if not isinstance(values, dict):
        raise DataError(f"{name}: holds {type(values).__name__}; expected a dictionary with data and labels.")
    return {k.encode() if isinstance(k, str) else k: v for k, v in values.items()}


def load_images(place: Place, names: tuple[str, ...]) -> NDArray[np.uint8]:
    """All pictures of some CIFAR files, (N, 3, 32, 32) uint8."""
    return np.concatenate([_file(place, name)[0] for name in names])


def _file(place: Place, name: str) -> tuple[NDArray[np.uint8], dict[str, NDArray[np.int64]]]:
    """Pictures (N, 3, 32, 32) and labels by head."""
    data, where = place.read(name), place.where(name)
    kind = _kind(place, name)
    if kind == "python":
        values = _unpickled(data, where)
        images = np.asarray(values.get(b"data"))
        labels = {
            h: values[k]
            for h, k in (("label", b"labels"), ("fine", b"fine_labels"), ("coarse", b"coarse_labels"))
            if k in values
        }
        if images.dtype != np.uint8 or images.ndim != 2 or images.shape[1] != _PIXELS:
            raise DataError(
                f"{where}: its pictures are {images.dtype} of shape {images.shape}; expected uint8 of shape (N, "
                f"{_PIXELS})."
            )
        if not labels or any(len(column) != len(images) for column in labels.values()):
            raise DataError(
                f"{where}: {len(images)} pictures, but labels for {[len(c) for c in labels.values()] or 'none'} of "
                "them."
            )
        return images.reshape(-1, 3, 32, 32), {h: np.asarray(column, np.int64) for h, column in labels.items()}
    heads = ("label",) if kind == "10" else ("coarse", "fine")
    size = _PIXELS + len(heads)
    if not data or len(data) % size:
        raise DataError(
            f"{where}: {len(data)} bytes are no multiple of {size} (a CIFAR-{kind} record). Download it again."
        )
    rows = np.frombuffer(data, np.uint8).reshape(-1, size)
    columns = {h: rows[:, k].astype(np.int64) for k, h in enumerate(heads)}
    return rows[:, len(heads) :].reshape(-1, 3, 32, 32), {
        h: columns[h] for h in ("label", "fine", "coarse") if h in columns
    }


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read CIFAR files.

    Raises:
        DataError: if a file is cut off, holds anything but plain data, or labels have no class name.
    """
    del options
    members = _members(place)
    if not members:
        raise DataError(f"{place.title}: no CIFAR files (data_batch_1.bin, test_batch.bin, train, test, ...).")
    ids: list[str] = []
    columns: dict[str, list[NDArray[np.int64]]] = {}
    given: list[NDArray[np.int8]] = []
    for name, part in members:
        images, labels = _file(place, name)
        ids += [f"{normalized(name)}#{i}" for i in range(len(images))]
        given.append(np.full(len(images), part if len({p for _, p in members}) > 1 else -1, np.int8))
        for head, values in labels.items():
            columns.setdefault(head, []).append(values)
    targets = {head: np.concatenate(parts) for head, parts in columns.items()}
    folder = members[0][0].rpartition("/")[0]
    heads = tuple(
        HeadSpec(head, "single", _class_names(place, folder, head, values)) for head, values in targets.items()
    )
    source = ArraySource(load=load_images, args=(place, tuple(name for name, _ in members)))
    return Dataset(
        place.root.name, ids, source, format="cifar", heads=heads, targets=targets, given_split=np.concatenate(given)
    )


def _class_names(place: Place, folder: str, head: str, values: NDArray[np.int64]) -> tuple[str, ...]:
    prefix = f"{folder}/" if folder else ""
    names: list[str] = []
    text = "batches.meta.txt" if head == "label" else f"{head}_label_names.txt"
    if place.has(prefix + text):
        names = [line.strip() for line in place.read(prefix + text).decode("utf-8").splitlines() if line.strip()]
    for meta, field in (("batches.meta", b"label_names"), ("meta", f"{head}_label_names".encode())):
        if not names and place.has(prefix + meta):
            stored = _unpickled(place.read(prefix + meta), place.where(prefix + meta)).get(field, [])
            names = [n.decode() if isinstance(n, bytes) else str(n) for n in stored]
    top = int(values.max()) + 1
    if names and top > len(names):
        raise DataError(f"{place.title}: the label {top - 1} of '{head}' has no name; {len(names)} names are given.")
    return tuple(names or map(str, range(top)))


def write(dataset: Dataset, to: str | os.PathLike[str]) -> None:
    """Write the binary version with `batches.meta.txt`; the folder appears when complete.

    Raises:
        DataError: if `to` exists, pictures are not RGB bytes of 32x32, or labels are not one class out of 256 each.
    """
    target, array = Path(to), dataset.arrays
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    if array is None or array.dtype != np.uint8 or array.shape[1:] != (3, 32, 32):
        raise DataError(f"{dataset.root}: CIFAR files hold RGB uint8 pictures of 32x32. Write it as folder or csv.")
    if (
        len(dataset.heads) != 1
        or dataset.heads[0].kind != "single"
        or len(dataset.heads[0].class_names) > 256
        or dataset.missing()
    ):
        raise DataError(
            f"{dataset.root}: CIFAR-10 files hold one class out of at most 256 for every picture. Write it as csv."
        )
    if (dataset.given_split == 1).any():
        raise DataError(f"{dataset.root}: CIFAR files have no val part. Write it as folder or csv.")
    values = dataset.targets[dataset.heads[0].name].astype(np.uint8)
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True)
    for name, chosen in (("data_batch_1.bin", dataset.given_split <= 0), ("test_batch.bin", dataset.given_split == 2)):
        if chosen.any():
            rows = np.concatenate([values[chosen, None], array[chosen].reshape(-1, _PIXELS)], axis=1)  # (N, 3073)
            (partial / name).write_bytes(rows.tobytes())
    (partial / "batches.meta.txt").write_text("\n".join(dataset.heads[0].class_names) + "\n", encoding="utf-8")
    partial.rename(target)
