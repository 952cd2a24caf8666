"""Groups that must not be torn apart by a split, and times to order samples by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from opsin.data.columns import StringColumn
from opsin.data.sources import ArraySource, FileSource
from opsin.errors import ConfigError, DataError, UnknownName

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_FORMATS = ("%Y:%m:%d %H:%M:%S", "%Y-%m-%d %H:%M:%S", "%d.%m.%Y %H:%M", "%d.%m.%Y", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d")


class Columns(Protocol):
    """What is asked of a data set here."""

    root: str
    ids: StringColumn
    rows: NDArray[np.int64] | None
    source: FileSource | ArraySource
    attributes: dict[str, StringColumn]
    targets: dict[str, NDArray[Any]]
    roles: dict[str, str]


def group_codes(dataset: Columns, spec: str) -> NDArray[np.int64]:
    """Give every sample the number of its group.

    Args:
        dataset: N samples.
        spec: `parent` (the folder a file lies in), `regex:PATTERN` (the part of the id that the first bracket matches,
            or the whole match), `time:5min` (a new group where more than that passes between two photographs), or the
            name of a column, attribute or head; `group` is the column that was given this role.

    Returns:
        (N,) int64 codes from 0; samples with an empty cell are groups of their own.

    Raises:
        UnknownName: if no column has this name.
        ConfigError: if the pattern or the duration cannot be read.
        DataError: if the pattern fits no id of some sample, or times are missing.
    """
    if spec.startswith("time:"):
        return _by_time(dataset, _seconds(spec))
    if spec == "parent" and "parent" not in dataset.attributes:
        return _codes([name.rpartition("/")[0] for name in dataset.ids])
    if spec.startswith("regex:"):
        return _by_pattern(dataset, spec.removeprefix("regex:"))
    column = dataset.roles.get("group", spec) if spec == "group" else spec
    if column in dataset.attributes:
        cells = list(dataset.attributes[column])
        return _codes([cell or f"\0{i}" for i, cell in enumerate(cells)])
    if column in dataset.targets and dataset.targets[column].ndim == 1:
        return _codes([str(v) if v >= 0 else f"\0{i}" for i, v in enumerate(dataset.targets[column].tolist())])
    choices = [*dataset.attributes, *dataset.targets, "parent"]
    raise UnknownName("group column", spec, choices, "A group is a column, 'parent', 'regex:PATTERN' or 'time:5min'.")


def sample_times(dataset: Columns) -> NDArray[np.float64]:
    """Seconds since 1970 (N,), from the time column if the table has one, else from EXIF; nan where unknown.

    Times without a zone are taken as UTC: only their order and distance matter here.
    """
    column = dataset.roles.get("time")
    if column is not None:
        cells = list(dataset.attributes[column])
        return np.array([_parse(cell) for cell in cells], np.float64)
    times = np.full(len(dataset.ids), np.nan)
    if isinstance(dataset.source, FileSource):
        rows = range(len(dataset.ids)) if dataset.rows is None else dataset.rows.tolist()
        for i, row in enumerate(rows):
            try:
                taken = dataset.source.probe(row).taken
            except DataError:
                continue
            times[i] = _parse(taken) if taken else np.nan
    return times


def _codes(labels: Sequence[str]) -> NDArray[np.int64]:
    place = {label: code for code, label in enumerate(sorted(set(labels)))}
    return np.fromiter((place[label] for label in labels), np.int64, len(labels))


def _by_pattern(dataset: Columns, pattern: str) -> NDArray[np.int64]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"The group pattern '{pattern}' is not a regular expression: {error}.") from error
    labels, without = [], []
    for name in dataset.ids:
        found = compiled.search(name)
        if found is None:
            without.append(name)
            continue
        labels.append(found[1] if compiled.groups and found[1] is not None else found[0])
    if without:
        raise DataError(
            f"The group pattern '{pattern}' fits {len(labels)} of {len(dataset.ids)} ids; it does not fit "
            f"'{without[0]}'. "
            f"Every sample needs a group; widen the pattern."
        )
    return _codes(labels)


def _by_time(dataset: Columns, gap: float) -> NDArray[np.int64]:
    times = sample_times(dataset)
    if missing := int(np.isnan(times).sum()):
        first = dataset.ids[int(np.flatnonzero(np.isnan(times))[0])]
        raise DataError(
            f"{dataset.root}: {missing} of {len(dataset.ids)} samples have no time (e.g. {first}). Grouping or "
            "ordering by time "
            f"needs EXIF dates in the pictures or a table with a time column (--columns time=COLUMN)."
        )
    order = np.argsort(times, kind="stable")
    breaks = np.diff(times[order], prepend=times[order][:1]) > gap
    codes = np.empty(len(times), np.int64)
    codes[order] = np.cumsum(breaks)
    return codes


def _seconds(spec: str) -> float:
    found = re.fullmatch(r"time:\s*([0-9.]+)\s*([a-z]+)", spec.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise ConfigError(
            f"The group '{spec}' is not a duration. Expected for example time:30s, time:5min, time:2h, time:1d."
        )
    return float(found[1]) * _UNITS[found[2]]


def _parse(cell: str) -> float:
    text = cell.strip()
    try:
        return float(text)
    except ValueError:
        pass
    try:
        return _stamp(datetime.fromisoformat(text))
    except ValueError:
        pass
    for layout in _FORMATS:
        try:
            return _stamp(datetime.strptime(text, layout))
        except ValueError:
            continue
    return float("nan")


def _stamp(moment: datetime) -> float:
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
