"""The ledger of looks: how often the test part of some data was used, by whom and with what result.

It belongs to the data, not to a run: it lies beside the data in `.opsin/test-looks.jsonl`, or, where nothing can be
written there and for archives and single files, in the user's own folder for opsin (`OPSIN_HOME` names another). Lines
are only ever appended. Looks are kept under the fingerprint of the set of test ids, so another split of the same data
starts its own count.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from opsin.data.home import home
from opsin.errors import DataError

FILE = "test-looks.jsonl"


@dataclass(frozen=True)
class Look:
    """One use of a test part: when (UTC, ISO 8601), by which run and command, and the headline metric it gave."""

    date: str
    test: str
    run: str
    command: str
    metric: str | None = None
    value: float | None = None


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

    def record(self, test: str, run: str, command: str, metric: str | None = None, value: float | None = None) -> Look:
        """Append a look.

        Args:
            test: fingerprint of the test ids (`Split.test_fingerprint`).
            run: folder of the run.
            command: what was typed.
            metric: name of the headline metric.
            value: its value.

        Raises:
            DataError: if it can be written neither beside the data nor in the user's folder.
        """
        look = Look(datetime.now(UTC).isoformat(timespec="seconds"), test, run, command, metric, value)
        line = json.dumps({"version": 1, **asdict(look)}, ensure_ascii=False).encode() + b"\n"
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

    def looks(self, test: str) -> list[Look]:
        """All looks at the test part with this fingerprint, oldest first, from both places.

        Raises:
            DataError: if a ledger exists but a line of it is not readable; a broken count must not pass for a small
            one.
        """
        found = [
            look
            for path in (self.beside, self.at_home)
            if path is not None
            for look in _read(path)
            if look.test == test
        ]
        return sorted(found, key=lambda look: look.date)


def _append(path: Path, line: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file, _locked(file):
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> list[Look]:
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
            looks.append(Look(*(values[name] for name in ("date", "test", "run", "command", "metric", "value"))))
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
