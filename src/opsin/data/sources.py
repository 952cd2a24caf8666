"""Where the pictures of a data set are, and what they are by looking at some of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from opsin.data.columns import StringColumn
from opsin.data.image import Probe, probe, read_image
from opsin.data.places import Place
from opsin.data.spec import common_spec, conversion_name
from opsin.errors import DataError
from opsin.task import ImageSpec

SAMPLED = 512
"""So many pictures, evenly spread, are looked at to learn the ImageSpec of a data set."""
_DECODED = 16  # of them, so many are decoded where the header does not say enough (alpha, floats)


@dataclass(frozen=True)
class Problem:
    """Something found while reading: `where` is the file, line or member.

    Errors should be mended before training; what is `info` may well be as it should, such as a README among pictures.
    """

    where: str
    message: str
    sample_id: str | None = None
    level: Literal["error", "warning", "info"] = "warning"

    def __str__(self) -> str:
        return self.message if self.where in self.message else f"{self.where}: {self.message}"


@dataclass
class FileSource:
    """Pictures as one file each: `names` (N) inside `place`."""

    place: Place
    names: StringColumn

    def probe(self, row: int) -> Probe:
        """Header of the picture at `row`, read from the first 64 KiB where that is enough.

        Raises:
            DataError: if it is no picture.
        """
        name = self.names[row]
        head = self.place.head(name)
        if head[:3] == b"\xff\xd8\xff" or head[:4] == b"\x89PNG":
            try:
                return probe(head, name=self.place.where(name))
            except DataError:  # the header is longer than the head
                pass
        return probe(self.place.read(name), name=self.place.where(name))


class ArraySource:
    """Pictures as one array (N, C, H, W), given, or loaded when needed by `load(*args)` (again in every new
    process)."""

    def __init__(
        self,
        array: NDArray[Any] | None = None,
        load: Callable[..., NDArray[Any]] | None = None,
        args: tuple[Any, ...] = (),
    ) -> None:
        self._array, self._load, self._args = array, load, args

    @property
    def array(self) -> NDArray[Any]:
        """The pictures, (N, C, H, W)."""
        if self._array is None and self._load is not None:
            self._array = self._load(*self._args)
        if self._array is None:
            raise DataError("This data set of arrays has neither an array nor a way to load it.")
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None if self._load is not None else self._array}


def learn_spec(
    source: FileSource | ArraySource, rows: NDArray[np.int64] | None, ids: StringColumn, root: str
) -> tuple[ImageSpec, dict[str, int], list[Problem]]:
    """What a data set is read as: the least spec that every picture looked at can be turned into without loss.

    Color if any picture has color; alpha only if every picture has it and some pixel is not opaque; the deepest type.

    Args:
        rows: positions in the source of the samples (N,), None for all in order.
        ids: N sample ids.
        root: of the data set, for messages.

    Returns:
        The spec, the named conversions that reading applies with how many pictures need each, and what was found.

    Raises:
        DataError: if no picture that was looked at can be read.
    """
    if isinstance(source, ArraySource):
        array = source.array
        whole = {"uint8": (0.0, 255.0), "uint16": (0.0, 65535.0)}.get(str(array.dtype))
        return ImageSpec(array.shape[1], str(array.dtype), whole or _nice_range(array)), {}, []
    if not len(ids):
        return ImageSpec(), {}, []
    specs: list[ImageSpec] = []
    problems: list[Problem] = []
    transparent, decode = False, _DECODED
    sampled = np.unique(np.linspace(0, len(ids) - 1, min(SAMPLED, len(ids))).astype(np.int64))
    for i in sampled.tolist():
        row = i if rows is None else int(rows[i])
        try:
            spec = source.probe(row).spec
            if decode and (spec.channels in (2, 4) or spec.dtype == "float32"):
                decode -= 1
                spec, see_through = _decoded_spec(source, row)
                transparent = transparent or see_through
        except DataError as error:
            problems.append(Problem(source.place.where(source.names[row]), str(error), ids[i], "error"))
            continue
        specs.append(spec)
    if not specs:
        raise DataError(f"{root}: none of the {len(sampled)} pictures looked at can be read: {problems[0].message}")
    want = common_spec(specs, transparent)
    conversions: dict[str, int] = {}
    for spec in specs:
        both_float = spec.dtype == want.dtype == "float32"
        words = conversion_name(spec._replace(range=want.range) if both_float else spec, want)
        if words is not None:
            conversions[words] = conversions.get(words, 0) + 1
    for words, count in conversions.items():
        message = f"{count} of {len(specs)} pictures looked at are converted when read: {words}."
        problems.append(Problem(root, message))
    return want, conversions, problems


def _decoded_spec(source: FileSource, row: int) -> tuple[ImageSpec, bool]:
    """Spec of a picture after decoding, and whether some of it can be seen through."""
    name = source.names[row]
    image, spec = read_image(source.place.read(name), name=source.place.where(name))
    see_through = spec.channels in (2, 4) and bool((image[-1].to(torch.float32) < spec.range[1]).any())
    if spec.dtype == "float32":
        spec = spec._replace(range=_nice_range(image.numpy()))
    return spec, see_through


def _nice_range(values: NDArray[Any]) -> tuple[float, float]:
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:
        return (0.0, 1.0)
    if low >= 0 and high <= 255:
        return (0.0, 255.0)
    return (low, high)
