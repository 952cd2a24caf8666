"""Data sets as columns: ids, targets and where each picture lies, flat in memory whatever the number of samples.

A data set can be pickled, forked and spawned: archives and raw arrays are opened again in each process.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Mapping, Sequence, Sized
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from opsin.data.columns import StringColumn
from opsin.data.groups import group_codes, sample_times
from opsin.data.image import read_original
from opsin.data.objects import ObjectColumn
from opsin.data.sources import SAMPLED, ArraySource, FileSource, Problem, learn_spec
from opsin.data.spec import conversion_name, convert, loses
from opsin.data.targets import HeadSpec, count_classes
from opsin.errors import DataError, UnknownName
from opsin.task import ImageSpec, Sample

__all__ = ["PARTS", "ArraySource", "Dataset", "FileSource", "HeadSpec", "Problem"]

PARTS = ("train", "val", "test")
"""Names of the parts of a split; their positions are the codes in `given_split` (-1: none given)."""


class Dataset:
    """Pictures with ids and targets.

    Args:
        name: short name, for messages and run folders.
        ids: N unique sample ids: relative POSIX paths (NFC), plus `#index` where a file holds several pictures.
        source: where the pictures are.
        format: name of the format it was read from.
        root: what the person gave, for messages.
        heads: the questions; none for pictures without labels.
        targets: head name to (N,) int64 class positions (-1: missing), (N, K) float32 of 0 and 1 (nan: missing),
            or (N,) float64 numbers (nan: missing), or an `ObjectColumn` of boxes and points.
        attributes: further columns of text, by name ("" where a cell is missing).
        given_split: (N,) int8, positions in `PARTS` or -1.
        spec: what pictures are turned into when read; learned from the files when not given.
        problems: what the reader found.
        roles: for tables, which attribute is "group" and which is "time".

    Raises:
        DataError: if an id occurs twice, or a column has another length.
    """

    def __init__(
        self,
        name: str,
        ids: Iterable[str],
        source: FileSource | ArraySource,
        *,
        format: str = "arrays",
        root: str = "",
        heads: Sequence[HeadSpec] = (),
        targets: Mapping[str, Any] | None = None,
        attributes: Mapping[str, StringColumn] | None = None,
        given_split: NDArray[np.int8] | None = None,
        spec: ImageSpec | None = None,
        problems: Iterable[Problem] = (),
        roles: Mapping[str, str] | None = None,
    ) -> None:
        self.name, self.format, self.root = name, format, root or name
        self.ids = ids if isinstance(ids, StringColumn) else StringColumn(ids)
        self.source, self.heads = source, tuple(heads)
        self.targets = dict(targets or {})
        self.attributes, self.roles = dict(attributes or {}), dict(roles or {})
        self.given_split = (
            np.full(len(self.ids), -1, np.int8) if given_split is None else np.asarray(given_split, np.int8)
        )
        self.problems: list[Problem] = list(problems)
        self.opened: dict[str, Any] = {}  # path and options of `load_data`, by which it can be opened again
        self.rows: NDArray[np.int64] | None = None
        self.cuts: NDArray[np.int64] | None = (
            None  # (N, 4) left, top, right, bottom: the piece of its picture that each is
        )
        self._spec = spec
        self._conversions: dict[str, int] = {}
        self._check()

    def _check(self) -> None:
        n = len(self.ids)
        columns: dict[str, Sized] = {**self.targets, **self.attributes, "given_split": self.given_split}
        for what, column in columns.items():
            if len(column) != n:
                raise DataError(f"{self.root}: the column '{what}' has {len(column)} entries for {n} pictures.")
        if missing := [head.name for head in self.heads if head.name not in self.targets]:
            raise DataError(f"{self.root}: no targets for the head(s) {', '.join(missing)}.")
        if len(set(self.ids)) != n:
            seen: set[str] = set()
            twice = next(i for i in self.ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
            raise DataError(
                f"{self.root}: the sample id '{twice}' occurs twice. Ids must be unique; rename one of the files."
            )

    # Reading ----------------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ids)

    def id(self, i: int) -> str:
        """Id of sample i."""
        return self.ids[i]

    def __getitem__(self, i: int) -> Sample:
        return self.read(i)

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        """Sample i: its image in `self.spec`, and its target by head name (int, float, float32 (K,), or `Objects`).

        Args:
            reduce_to: JPEG files may be decoded smaller, with a short side of at least this many pixels.

        Raises:
            DataError: if the file cannot be decoded, or has color or depth that `self.spec` would lose.
        """
        if not -len(self) <= i < len(self):
            raise IndexError(f"sample {i} of a data set with {len(self)}")
        i %= len(self)
        target = {name: self._target(values, i) for name, values in self.targets.items()}
        if self.cuts is not None:
            reduce_to = None
        if isinstance(self.source, ArraySource):
            pixels = torch.from_numpy(np.array(self.source.array[self._row(i)]))
            return Sample(self.ids[i], self._cut(pixels, i), target)
        place, name = self.source.place, self.source.names[self._row(i)]
        image, have, size = read_original(place.read(name), reduce_to=reduce_to, name=place.where(name))
        want = self.spec
        if have != want:
            if loses(have, want):
                raise DataError(
                    f"{place.where(name)}: this picture ({conversion_name(have, want)}) would lose color or depth. "
                    "The data set "
                    f"was taken for {want.channels} channel(s) of {want.dtype} after looking at "
                    f"{min(SAMPLED, len(self))} "
                    f"pictures. Convert the file, or say what the pictures are: dataset.with_spec(ImageSpec(...))."
                )
            image = convert(image, have, want)
        return Sample(self.ids[i], self._cut(image, i), target, size if self.cuts is None else None)

    def _cut(self, image: torch.Tensor, i: int) -> torch.Tensor:
        if self.cuts is None:
            return image
        left, top, right, bottom = self.cuts[i].tolist()
        return image[:, top:bottom, left:right]

    @staticmethod
    def _target(values: NDArray[Any], i: int) -> Any:
        return values[i].copy() if values.ndim > 1 else values[i].item()

    def _row(self, i: int) -> int:
        return i if self.rows is None else int(self.rows[i])

    @cached_property
    def arrays(self) -> NDArray[Any] | None:
        """All pictures as one array (N, C, H, W) where the format holds them so, else None; `arrays[i]` is
        `read(i).image`."""
        if not isinstance(self.source, ArraySource) or self.cuts is not None:
            return None
        return self.source.array if self.rows is None else self.source.array[self.rows]

    def bytes_of(self, i: int) -> tuple[bytes, str]:
        """The file of sample i as it is, and its name; pictures from raw arrays and pieces are given as PNG (or
        .npy where PNG cannot)."""
        if isinstance(self.source, FileSource) and self.cuts is None:
            name = self.source.names[self._row(i)]
            return self.source.place.read(name), name.rpartition("/")[2]
        pixels = self.read(i).image.numpy()
        stem, file = self.ids[i].rpartition("/")[2].replace("#", "-"), io.BytesIO()
        hwc = pixels.transpose(1, 2, 0)  # (C, H, W) -> (H, W, C)
        if (pixels.dtype == np.uint8 and pixels.shape[0] in (1, 3, 4)) or (
            pixels.dtype == np.uint16 and pixels.shape[0] == 1
        ):
            Image.fromarray(hwc[..., 0] if pixels.shape[0] == 1 else np.ascontiguousarray(hwc)).save(file, "PNG")
            return file.getvalue(), stem + ".png"
        np.save(file, pixels, allow_pickle=False)
        return file.getvalue(), stem + ".npy"

    # What the pictures are --------------------------------------------------------------------------------------------

    @property
    def spec(self) -> ImageSpec:
        """What every picture is turned into when read; see `conversions` for what that changes."""
        if self._spec is None:
            self._spec = self._learn()
        return self._spec

    @property
    def conversions(self) -> dict[str, int]:
        """Named conversions that reading applies, with how many of the sampled pictures need each."""
        _ = self.spec
        return self._conversions

    def with_spec(self, spec: ImageSpec) -> Dataset:
        """The same data set, read as `spec`."""
        view = self.select(np.arange(len(self)))
        view._spec, view._conversions = spec, {}
        return view

    def _learn(self) -> ImageSpec:
        spec, conversions, problems = learn_spec(self.source, self.rows, self.ids, self.root)
        self._conversions, self.problems = conversions, self.problems + problems
        return spec

    def size(self, i: int) -> tuple[int, int]:
        """(H, W) of picture i as `read(i)` gives it, from its header alone."""
        if self.cuts is not None:
            left, top, right, bottom = self.cuts[i].tolist()
            return bottom - top, right - left
        row = self._row(i % len(self))
        if isinstance(self.source, ArraySource):
            return self.source.array.shape[2], self.source.array.shape[3]
        return self.source.probe(row).size

    # Columns ----------------------------------------------------------------------------------------------------------

    def head(self, name: str | None = None) -> HeadSpec:
        """A head by name, the first one by default.

        Raises:
            UnknownName: if there is no such head.
        """
        known = {head.name: head for head in self.heads}
        if name is None and self.heads:
            return self.heads[0]
        if name not in known:
            hint = "" if self.heads else f"{self.root} holds pictures without labels."
            raise UnknownName("head", name or "label", known, hint)
        return known[name]

    def groups(self, spec: str) -> NDArray[np.int64]:
        """Group codes (N,) for `COLUMN`, `parent`, `regex:...` or `time:5min`; see `opsin.data.groups`."""
        return group_codes(self, spec)

    def times(self) -> NDArray[np.float64]:
        """Seconds since 1970 (N,): from the time column if one is named, else from EXIF; nan where unknown."""
        return sample_times(self)

    def select(self, indices: Sequence[int] | NDArray[Any]) -> Dataset:
        """The samples at `indices` (or where a boolean mask (N,) is true) as a data set; pictures are not copied."""
        chosen = np.asarray(indices)
        if chosen.dtype == np.bool_:
            chosen = np.flatnonzero(chosen)
        chosen = chosen.astype(np.int64)
        view = Dataset.__new__(Dataset)
        view.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("arrays", "fingerprint")})
        view.opened = {}
        view.rows = chosen if self.rows is None else self.rows[chosen]
        view.cuts = None if self.cuts is None else self.cuts[chosen]
        view.ids = self.ids.take(chosen)
        view.targets = {name: values[chosen] for name, values in self.targets.items()}
        view.attributes = {name: column.take(chosen) for name, column in self.attributes.items()}
        view.given_split = self.given_split[chosen]
        view._spec, view._conversions = self.spec, dict(self._conversions)
        view.problems = list(self.problems)
        return view

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "arrays"}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (first 32 hex digits) over heads, spec and, in the order of ids, every id, target and content mark.

        The mark of a file is its size with a CRC-32 of its first and last 64 KiB (inside a zip: its stored CRC-32); of
        a raw array, the CRC-32 of all its bytes. So it changes with any label, and with a file's content unless only
        the middle of a file larger than 128 KiB changes at equal size.
        """
        digest = hashlib.sha256(repr((self.heads, self.spec)).encode())
        ids = list(self.ids)
        for i in sorted(range(len(ids)), key=ids.__getitem__):
            digest.update(f"{ids[i]}\0{self._mark(i)}\0".encode("utf-8", "surrogateescape"))
            for head in self.heads:
                digest.update(self.targets[head.name][i].tobytes())
        return digest.hexdigest()[:32]

    def _mark(self, i: int) -> tuple[int, ...]:
        piece = () if self.cuts is None else tuple(self.cuts[i].tolist())
        return (*self._content(i), *piece)

    def _content(self, i: int) -> tuple[int, int]:
        if isinstance(self.source, FileSource):
            return self.source.place.edges(self.source.names[self._row(i)])
        pixels = np.ascontiguousarray(self.source.array[self._row(i)])
        return pixels.nbytes, zlib.crc32(pixels.tobytes())

    def counts(self, head: str | None = None) -> dict[str, int]:
        """Samples per class of a head (none for a regression head); of objects, how many there are."""
        spec = self.head(head)
        sums = count_classes(spec, self.targets[spec.name])
        return {name: int(count) for name, count in zip(spec.class_names, sums)}

    def missing(self, head: str | None = None) -> int:
        """How many samples have no (or not the whole) target of a head."""
        values = self.targets[self.head(head).name]
        if isinstance(values, ObjectColumn):
            return 0
        if values.dtype.kind == "i":
            return int((values < 0).sum())
        return int(np.isnan(values).reshape(len(values), -1).any(axis=1).sum())
