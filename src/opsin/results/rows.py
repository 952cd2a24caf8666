"""Rows: one table line per evaluated sample, from which every metric, interval, slice and comparison is computed.

Metrics are functions of rows and weights. An interval reweights rows, a paired test joins two tables by id, a slice
filters, shards of several processes concatenate. So rows are kept on disk (`predictions/`) and nothing else has to be.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.durable import write_durably
from opsin.errors import DataError, ShapeError

RAGGED = ("found_", "true_")
"""Columns whose names begin so hold a list per sample: what was found in a picture, and what is there."""
_LENGTHS, _ENTRIES = "#lengths", "#entries"  # what a ragged column is saved as


class Rows:
    """A table of named columns with one entry per sample; `id` (str) is always among them and is unique.

    Args:
        columns: name to array, each with first axis N; further axes are allowed (scores are (N, K)). A column whose
            entries differ in length (the boxes of a picture) is an array (N,) of objects, each an array (M, ...).

    Raises:
        ShapeError: if columns differ in length or `id` is missing.
    """

    def __init__(self, columns: Mapping[str, Any]) -> None:
        self.columns: dict[str, NDArray[Any]] = {name: np.asarray(values) for name, values in columns.items()}
        if "id" not in self.columns:
            raise ShapeError(f"Rows need a column 'id'; given: {sorted(self.columns)}.")
        lengths = {name: len(values) for name, values in self.columns.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"Rows need columns of equal length; given: {lengths}.")

    def __len__(self) -> int:
        return len(self.columns["id"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def __contains__(self, name: object) -> bool:
        return name in self.columns

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    @property
    def ids(self) -> NDArray[np.str_]:
        """Sample ids, shape (N,)."""
        return self.columns["id"]

    @classmethod
    def collect(cls, rows: Sequence[Mapping[str, Any]]) -> Rows:
        """Stack per-sample mappings with the same keys into one table."""
        if not rows:
            raise DataError("No sample was evaluated: the part of the data is empty.")
        return cls({name: _stacked([np.asarray(row[name]) for row in rows], name) for name in rows[0]})

    @classmethod
    def concatenate(cls, tables: Iterable[Rows]) -> Rows:
        """Put tables with the same columns one after the other."""
        parts = [table for table in tables if len(table)]
        if not parts:
            raise DataError("No sample was evaluated: the part of the data is empty.")
        return cls({name: _joined([part[name] for part in parts]) for name in parts[0]})

    def select(self, which: NDArray[Any]) -> Rows:
        """Keep the rows that an index array or a boolean mask (N,) names."""
        return Rows({name: values[which] for name, values in self.columns.items()})

    def row(self, i: int) -> dict[str, Any]:
        """One row by column."""
        return {name: values[i] for name, values in self.columns.items()}

    def sorted_by_id(self) -> Rows:
        """Order rows by id, so that tables made by any number of processes are equal."""
        return self.select(np.argsort(self.ids, kind="stable"))

    def join(self, other: Rows) -> tuple[Rows, Rows]:
        """Pair two tables by id, both in the order of this one.

        Raises:
            DataError: if the ids differ; the message counts and names some.
        """
        mine, theirs = set(self.ids.tolist()), set(other.ids.tolist())
        if mine != theirs:
            only = sorted(mine ^ theirs)
            raise DataError(
                f"The two sets of predictions are not over the same samples: {len(mine - theirs)} ids only in the "
                f"first, {len(theirs - mine)} only in the second (e.g. {only[0]}). A paired comparison needs the same "
                f"test ids; train both runs with the same split (--split-from RUN)."
            )
        place = {name: i for i, name in enumerate(other.ids.tolist())}
        return self, other.select(np.array([place[name] for name in self.ids.tolist()], dtype=np.int64))

    def save(self, path: Path) -> None:
        """Write the table as an .npz file that holds no pickle."""
        file, arrays = io.BytesIO(), {}
        for name, values in self.columns.items():
            if values.dtype == object:
                arrays[name + _LENGTHS] = np.array([len(one) for one in values], np.int64)
                arrays[name + _ENTRIES] = np.concatenate(list(values))
            else:
                arrays[name] = values
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        write_durably(Path(path), file.getvalue())

    @classmethod
    def load(cls, path: Path) -> Rows:
        """Read a table written by `save`.

        Raises:
            DataError: if the file is missing or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                columns = {name: archive[name] for name in archive.files if not name.endswith((_LENGTHS, _ENTRIES))}
                for name in archive.files:
                    if name.endswith(_LENGTHS):
                        own = name.removesuffix(_LENGTHS)
                        columns[own] = _cut(archive[own + _ENTRIES], archive[name])
                return cls(columns)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{path} cannot be read ({error}). Evaluate the run again to make it anew.") from error


def _ragged(entries: Sequence[NDArray[Any]]) -> NDArray[Any]:
    column = np.empty(len(entries), object)
    for i, entry in enumerate(entries):
        column[i] = entry
    return column


def _stacked(entries: Sequence[NDArray[Any]], name: str) -> NDArray[Any]:
    """A column of the samples' entries; a ragged one if its name says so, even where all happen to be of one length."""
    return _ragged(entries) if name.startswith(RAGGED) else np.stack(entries)


def _joined(columns: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return _ragged([e for c in columns for e in c]) if columns[0].dtype == object else np.concatenate(columns)


def _cut(entries: NDArray[Any], lengths: NDArray[np.int64]) -> NDArray[Any]:
    return _ragged(np.split(entries, np.cumsum(lengths)[:-1]) if len(lengths) else [])
