"""The ledger of looks: how often the test part of some data was used, by whom and with what result.

It belongs to the data, not to a run: it lies beside the data in `.opsin/test-looks.jsonl`, or, where nothing can be
written there and for archives and single files, in the user's own folder for opsin (`OPSIN_HOME` names another). Lines
are only ever appended. A look is kept with the fingerprint of the set of test ids and with the 64 lowest hashes of the
ids, so that a test part that shares pictures with an earlier one (some were added, another seed) goes on with its count.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from opsin.data.home import home
from opsin.errors import DataError

FILE = "test-looks.jsonl"
SKETCH = 64  # hashes that are kept of a set of test ids


@dataclass(frozen=True)
class Look:
    """One use of a test part: when (UTC, ISO 8601), by which run and command, and the headline metric it gave."""

    date: str
    test: str
    run: str
    command: str
    metric: str | None = None
    value: float | None = None


@dataclass(frozen=True)
class _Line:
    look: Look
    data: str | None
    sketch: frozenset[str]


class Ledger:
    """The looks at the test parts of one place of data.

    Args:
        data: the folder, file or archive of the data; None for data that lie nowhere (arrays in memory).
    """

    def __init__(self, data: str | os.PathLike[str] | None) -> None:
        self.data = None if data is None else Path(data)

    @property
    def beside(self) -> Path | None:
        """The file beside the data, None for data that are no folder."""
        return self.data / ".opsin" / FILE if self.data is not None and self.data.is_dir() else None

    @property
    def at_home(self) -> Path:
        """The file in the user's folder."""
        return home() / FILE

    def record(
        self,
        test: str,
        run: str,
        command: str,
        metric: str | None = None,
        value: float | None = None,
        ids: Iterable[str] = (),
    ) -> Look:
        """Append a look.

        Args:
            test: fingerprint of the test ids (`Split.test_fingerprint`).
            run: folder of the run.
            command: what was typed.
            metric: name of the headline metric.
            value: its value.
            ids: the test ids.

        Raises:
            DataError: if it can be written neither beside the data nor in the user's folder.
        """
        look = Look(datetime.now(UTC).isoformat(timespec="seconds"), test, run, command, metric, value)
        values = {"version": 1, **asdict(look), "data": self._place, "sketch": sorted(_sketch(ids))}
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        failures = []
        for path in (self.beside, self.at_home):
            if path is None:
                continue
            try:
                _append(path, line)
                return look
            except OSError as error:
                failures.append(f"{path} ({error.strerror or error})")
        raise DataError(
            f"The look at the test part cannot be written down: {'; '.join(failures)}. Set OPSIN_HOME to a folder "
            "that can be written."
        )

    def looks(self, test: str, ids: Iterable[str] = ()) -> list[Look]:
        """All looks at this test part, or at one that shares ids with it, oldest first, from both places.

        In the user's folder, where looks at many data sets lie together, only those at the same place of data are
        recognized by their ids.

        Args:
            test: fingerprint of the test ids.
            ids: the test ids.

        Raises:
            DataError: if a ledger exists but a line of it is not readable; a broken count must not pass for a small
            one.
        """
        sketch = _sketch(ids)
        found = []
        for path in (self.beside, self.at_home):
            for line in [] if path is None else _read(path):
                ours = path == self.beside or (line.data is not None and line.data == self._place)
                if line.look.test == test or (ours and line.sketch & sketch):
                    found.append(line.look)
        return sorted(found, key=lambda look: look.date)

    @property
    def _place(self) -> str | None:
        return None if self.data is None else str(self.data.resolve())


def _sketch(ids: Iterable[str]) -> frozenset[str]:
    """The lowest hashes of the ids: sets that share a fair part of their ids share some of these."""
    hashes = {hashlib.blake2b(i.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest() for i in ids}
    return frozenset(sorted(hashes)[:SKETCH])


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, _locked(file):
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[_Line]:
    try:
        with path.open("rb") as file:
            lines = file.read().decode("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the ledger of looks cannot be read ({error}).") from error
    looks = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values: Mapping[str, Any] = json.loads(line)
            look = Look(*(values[name] for name in ("date", "test", "run", "command", "metric", "value")))
            looks.append(_Line(look, values.get("data"), frozenset(values.get("sketch", ()))))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path}, line {number}: not a look at the test part ({error}). Restore the line; do not delete looks."
            ) from error
    return looks


@contextlib.contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Keep other writers out while a line is written."""
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
