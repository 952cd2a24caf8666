"""IDX files (MNIST, Fashion-MNIST, EMNIST), gzipped or not: pairs of images and labels.

Train and test pairs are found by name (`train-images-idx3-ubyte[.gz]`, `t10k-...`, `emnist-letters-test-...`). Class
names are the label values that occur, or those of a `classes.txt`/`labels.txt` (one a line), or an EMNIST mapping
beside the files. EMNIST files hold pictures lying on their side; they are turned upright, and that is reported.
"""

from __future__ import annotations

import gzip
import os
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import normalized
from opsin.data.dataset import ArraySource, Dataset, HeadSpec, Problem
from opsin.data.layout import ReadOptions
from opsin.data.places import NO, Place, Verdict
from opsin.errors import DataError

NAMES = ("idx",)

_IMAGES = re.compile(r"(?P<stem>.*?)[-_.]?images?[-_.]idx(?P<dims>[34])[-_.]ubyte(?P<gz>\.gz)?$", re.IGNORECASE)
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_PARTS = {"train": 0, "t10k": 2, "test": 2, "val": 1, "valid": 1, "validation": 1}


def _pairs(place: Place) -> dict[str, tuple[str, str]]:
    """Stem ("train", "emnist-letters-test", ...) to the names of its images and labels file."""
    wanted = _IMAGES.match(place.focus.replace("labels", "images").replace("idx1", "idx3")) if place.focus else None
    names = place.names if not place.focus else [p.name for p in place.root.iterdir()] if wanted else []
    pairs = {}
    for name in names:
        found = _IMAGES.match(name)
        if found is None or (wanted and found["stem"] != wanted["stem"]):
            continue
        base = re.sub(r"images?(?=[-_.]idx)", "labels", name, flags=re.IGNORECASE)
        base = re.sub(r"idx[34]", "idx1", base, flags=re.IGNORECASE)
        labels = next(
            (
                n
                for n in (base, base.removesuffix(".gz"), base + ".gz", base.replace("labels", "label"))
                if place.has(n)
            ),
            "",
        )
        pairs[found["stem"]] = (name, labels)
    return pairs


def sniff(place: Place) -> Verdict:
    """Files named like MNIST's."""
    pairs = _pairs(place)
    return (
        Verdict(0.95, f"IDX files {', '.join(sorted(Path(images).name for images, _ in pairs.values()))}")
        if pairs
        else NO
    )


def parse(data: bytes, name: str) -> NDArray[Any]:
    """The array in an IDX file, gzipped or not, in native byte order.

    Raises:
        DataError: if it is cut off, too long, or no IDX file.
    """
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"{name}: cannot be unpacked ({error}). Download it again.") from error
    if (
        len(data) < 4
        or data[:2] != b"\0\0"
        or data[2] not in _TYPES
        or not 1 <= data[3] <= 4
        or len(data) < 4 + 4 * data[3]
    ):
        raise DataError(
            f"{name}: not an IDX file (its first bytes are {data[:4].hex(' ')}; expected 00 00 type dimensions)."
        )
    dtype = np.dtype(_TYPES[data[2]])
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    start, count = 4 + 4 * data[3], int(np.prod([int(n) for n in shape], dtype=object))
    if len(data) - start != count * dtype.itemsize:
        raise DataError(
            f"{name}: holds {len(data) - start} bytes of values; its header says {' x '.join(map(str, shape))} "
            f"{dtype.name}, "
            f"which is {count * dtype.itemsize}. Download it again."
        )
    array = np.frombuffer(data, dtype, count, start).reshape(shape)
    return array if dtype.itemsize == 1 else array.astype(dtype.newbyteorder("="))


def load_images(place: Place, names: tuple[str, ...], upright: bool) -> NDArray[np.uint8]:
    """All pictures of some IDX files, (N, 1, H, W) or (N, C, H, W) uint8.

    Raises:
        DataError: if a file is broken, its values are not bytes, or sizes differ between files.
    """
    arrays = []
    for name in names:
        array = parse(place.read(name), place.where(name))
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise DataError(
                f"{place.where(name)}: holds {array.dtype} of shape {array.shape}; expected uint8 pictures (N, H, W)."
            )
        array = array[:, None] if array.ndim == 3 else array  # (N, H, W) -> (N, 1, H, W)
        if array.ndim == 4 and array.shape[1] not in (1, 3):
            array = array.transpose(0, 3, 1, 2)  # (N, H, W, C) -> (N, C, H, W)
        arrays.append(array.transpose(0, 1, 3, 2) if upright else array)
    if len({a.shape[1:] for a in arrays}) > 1:
        raise DataError(f"{place.title}: pictures differ in size between files: {[a.shape[1:] for a in arrays]}.")
    return np.ascontiguousarray(arrays[0]) if len(arrays) == 1 else np.concatenate(arrays)


def read(place: Place, options: ReadOptions) -> Dataset:
    """Read IDX pairs.

    Raises:
        DataError: if files are broken, counts of pictures and labels differ, or several sets lie together.
    """
    del options
    pairs = _pairs(place)
    if not pairs:
        raise DataError(
            f"{place.title}: no IDX pictures (named like train-images-idx3-ubyte or ...-images-idx3-ubyte.gz)."
        )
    sets: dict[str, list[str]] = {}
    for stem in pairs:
        sets.setdefault(re.sub(r"(train|t10k|test|val(id(ation)?)?)$", "", stem, flags=re.IGNORECASE), []).append(stem)
    if len(sets) > 1:
        raise DataError(
            f"{place.title}: several IDX sets lie together ({', '.join(sorted(s or 'unnamed' for s in sets))}). Give "
            "one of the files."
        )
    ((title, stems),) = sets.items()
    stems.sort(key=lambda s: _part(s) if _part(s) >= 0 else 9)
    names = tuple(pairs[stem][0] for stem in stems)
    upright = "emnist" in names[0].lower()
    source = ArraySource(load=load_images, args=(place, names, upright))
    ids, labels, given = [], [], []
    for stem in stems:
        images, label_name = pairs[stem]
        count = int.from_bytes(_start(place, images)[4:8], "big")
        values = parse(place.read(label_name), place.where(label_name)) if label_name else np.full(count, -1)
        if values.shape != (count,):
            raise DataError(
                f"{place.where(label_name)}: {values.shape[0]} labels for {count} pictures in {images}. Expected one "
                "label per picture."
            )
        ids += [f"{normalized(images)}#{i}" for i in range(count)]
        labels.append(values.astype(np.int64))
        given.append(np.full(count, _part(stem) if len(stems) > 1 else -1, np.int8))
    heads, targets = _labels(place, np.concatenate(labels), title)
    problems = (
        [Problem(place.where(names[0]), "EMNIST pictures lie on their side in the file; they were turned upright.")]
        if upright
        else []
    )
    return Dataset(
        place.root.name,
        ids,
        source,
        format="idx",
        heads=heads,
        targets=targets,
        given_split=np.concatenate(given),
        problems=problems,
    )


def _part(stem: str) -> int:
    return next((code for word, code in _PARTS.items() if stem.lower().endswith(word)), -1)


def _start(place: Place, name: str) -> bytes:
    head = place.head(name, 4096)
    if head[:2] == b"\x1f\x8b":
        try:
            return zlib.decompressobj(31).decompress(head, 16)
        except zlib.error as error:
            raise DataError(f"{place.where(name)}: cannot be unpacked ({error}). Download it again.") from error
    return head


def _labels(
    place: Place, values: NDArray[np.int64], title: str
) -> tuple[tuple[HeadSpec, ...], dict[str, NDArray[Any]]]:
    if not (values >= 0).any():
        return (), {}
    present = np.unique(values[values >= 0])
    names = _class_names(place, title)
    if names is None:
        names = {int(v): str(v) for v in present}
    if unknown := [int(v) for v in present if int(v) not in names]:
        raise DataError(
            f"{place.title}: the labels {unknown} have no name in the list of class names beside the files."
        )
    order = sorted(names)
    lookup = {value: k for k, value in enumerate(order)}
    mapped = np.array([lookup.get(int(v), -1) for v in range(int(values.max()) + 1)] + [-1], np.int64)[values]
    return (HeadSpec("label", "single", tuple(names[v] for v in order)),), {"label": mapped}


def _class_names(place: Place, title: str) -> dict[int, str] | None:
    folder = title.rpartition("/")[0] + "/" if "/" in title else ""
    mapping = f"{title.rstrip('-_')}-mapping.txt"
    if place.has(mapping):
        rows = [line.split() for line in place.read(mapping).decode().splitlines() if line.strip()]
        return {int(row[0]): "/".join(dict.fromkeys(chr(int(code)) for code in row[1:])) for row in rows}
    for name in (f"{folder}classes.txt", f"{folder}labels.txt"):
        if place.has(name):
            return dict(
                enumerate(line.strip() for line in place.read(name).decode("utf-8-sig").splitlines() if line.strip())
            )
    return None


def write(dataset: Dataset, to: str | os.PathLike[str]) -> None:
    """Write IDX files, with `classes.txt`; the folder appears when complete.

    Raises:
        DataError: if `to` exists, pictures are not grey bytes of one size, or labels are not one class out of 256 each.
    """
    target, array = Path(to), dataset.arrays
    if target.exists():
        raise DataError(f"{target}: exists already. Give a new folder.")
    if array is None or array.dtype != np.uint8 or array.shape[1] != 1:
        raise DataError(f"{dataset.root}: IDX holds grey uint8 pictures of one size. Write it as folder or csv.")
    if (
        len(dataset.heads) != 1
        or dataset.heads[0].kind != "single"
        or len(dataset.heads[0].class_names) > 256
        or dataset.missing()
    ):
        raise DataError(f"{dataset.root}: IDX holds one class out of at most 256 for every picture. Write it as csv.")
    values = dataset.targets[dataset.heads[0].name]
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True)
    for code, part in ((-1, "train"), (0, "train"), (1, "val"), (2, "t10k")):
        rows = np.flatnonzero(dataset.given_split == code)
        if len(rows):
            header = struct.pack(">IIII", 0x803, len(rows), *array.shape[2:])
            (partial / f"{part}-images-idx3-ubyte").write_bytes(header + array[rows].tobytes())
            (partial / f"{part}-labels-idx1-ubyte").write_bytes(
                struct.pack(">II", 0x801, len(rows)) + values[rows].astype(np.uint8).tobytes()
            )
    (partial / "classes.txt").write_text("\n".join(dataset.heads[0].class_names) + "\n", encoding="utf-8")
    partial.rename(target)
