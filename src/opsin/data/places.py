"""Where files lie: a folder, a zip or a tar, read in place through the same few methods.

A place can be pickled and forked: open archives belong to one process and are opened again in the next. Nothing is ever
extracted. Members whose name is absolute or climbs out with `..` are refused.
"""

from __future__ import annotations

import abc
import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from opsin.errors import DataError

MEMORY_LIMIT = 512 * 2**20
"""A compressed tar is unpacked into memory up to this many bytes."""
MEMBER_LIMIT = 2**31
"""No single member larger than this is read."""

ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
"""Endings of archives that are read in place."""

_IGNORED = {"__macosx", "thumbs.db", "desktop.ini", "ehthumbs.db", "$recycle.bin", "system volume information"}


class Verdict(NamedTuple):
    """How sure a format is that a place is its own: `score` in [0, 1], and why in a few words."""

    score: float
    why: str = ""


NO = Verdict(0.0)


class Place(abc.ABC):
    """A tree of files, read by relative POSIX names.

    Args:
        root: the folder, or the archive file.
        focus: name of the one file inside that the person pointed at, if they did.
    """

    def __init__(self, root: Path, focus: str | None = None) -> None:
        self.root, self.focus = root, focus
        self._names: list[str] | None = None

    @property
    def title(self) -> str:
        """What the person gave, for messages."""
        return str(self.root / self.focus) if self.focus else str(self.root)

    @property
    def names(self) -> list[str]:
        """All files in sorted order, without hidden ones and those that operating systems leave behind."""
        if self._names is None:
            self._names = sorted(name for name in self._list() if not ignored(name))
        return self._names

    def forget(self) -> None:
        """Drop the list of names (it is made again when asked for)."""
        self._names = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_names": None}

    @abc.abstractmethod
    def _list(self) -> Iterator[str]: ...

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The whole content of a file.

        Raises:
            DataError: if it does not exist or cannot be read; the message names it.
        """

    @abc.abstractmethod
    def has(self, name: str) -> bool:
        """Whether a file of that name exists."""

    def head(self, name: str, size: int = 65536) -> bytes:
        """The first `size` bytes of a file."""
        return self.read(name)[:size]

    def edges(self, name: str) -> tuple[int, int]:
        """Size of a file and a CRC-32 of its first and last 64 KiB (of all of it where the archive knows that)."""
        data = self.read(name)
        return len(data), zlib.crc32(data[-65536:], zlib.crc32(data[:65536]))

    def where(self, name: str) -> str:
        """How messages name a member."""
        return str(self.root / name)


class FolderPlace(Place):
    """A folder; links are followed, loops of links are not."""

    def _list(self) -> Iterator[str]:
        seen: set[tuple[int, int]] = set()
        stack = [(str(self.root), "")]
        while stack:
            path, prefix = stack.pop()
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as entries:
                for entry in entries:
                    name = prefix + entry.name
                    if ignored(entry.name):
                        continue
                    if entry.is_dir():
                        stack.append((entry.path, name + "/"))
                    elif entry.is_file():
                        yield name

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read ({error.strerror or error}).") from error

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def head(self, name: str, size: int = 65536) -> bytes:
        try:
            with (self.root / name).open("rb") as file:
                return file.read(size)
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read ({error.strerror or error}).") from error

    def edges(self, name: str) -> tuple[int, int]:
        try:
            with (self.root / name).open("rb") as file:
                size = file.seek(0, io.SEEK_END)
                file.seek(0)
                crc = zlib.crc32(file.read(65536))
                file.seek(max(0, size - 65536))
                return size, zlib.crc32(file.read(65536), crc)
        except OSError as error:
            raise DataError(f"{self.where(name)}: cannot be read ({error.strerror or error}).") from error


class ZipPlace(Place):
    """A zip archive."""

    _open: tuple[int, zipfile.ZipFile] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_open": None}

    @property
    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():
            try:
                self._open = (os.getpid(), zipfile.ZipFile(self.root))
            except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
                raise DataError(
                    f"{self.root}: not a readable zip archive ({error}). Download or pack it again."
                ) from error
        return self._open[1]

    def _list(self) -> Iterator[str]:
        for info in self._archive.infolist():
            if not info.is_dir():
                yield _safe(info.filename, self.root)

    def read(self, name: str) -> bytes:
        try:
            info = self._info(name)
            if info.flag_bits & 1:
                raise DataError(f"{self.where(name)}: the archive is encrypted. Unpack it with its password first.")
            _limited(info.file_size, self.where(name))
            return self._archive.read(info)
        except KeyError as error:
            raise DataError(f"{self.where(name)}: the archive holds no such file.") from error
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            lzma.LZMAError,
            EOFError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise DataError(f"{self.where(name)}: cannot be unpacked ({error}). The archive is damaged.") from error

    def _info(self, name: str) -> zipfile.ZipInfo:
        known = self._archive.NameToInfo
        return known[name] if name in known else known["./" + name]

    def has(self, name: str) -> bool:
        return name in self._archive.NameToInfo or "./" + name in self._archive.NameToInfo

    def edges(self, name: str) -> tuple[int, int]:
        info = self._info(name)
        return info.file_size, info.CRC


class TarPlace(Place):
    """A tar archive: an uncompressed one is read where it lies, a compressed one is unpacked into memory when small."""

    _index: dict[str, tuple[int, int]] | None = None
    _data: bytes | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_data": None}

    def _unpacked(self) -> bytes | None:
        if self._data is None and (opener := _compression(self.root)) is not None:
            try:
                with opener(self.root) as file:
                    self._data = file.read(MEMORY_LIMIT + 1)
            except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
                raise DataError(
                    f"{self.root}: cannot be unpacked ({error}). The archive is damaged or cut off."
                ) from error
            if len(self._data) > MEMORY_LIMIT:
                self._data = None
                raise DataError(
                    f"{self.root}: unpacked it is larger than {MEMORY_LIMIT >> 20} MB, too much to read in place. "
                    f"Extract it (tar xf {self.root.name}) and give the folder, or pack it as .zip or uncompressed "
                    ".tar."
                )
        return self._data

    @property
    def index(self) -> dict[str, tuple[int, int]]:
        """Name to (offset, size) in the uncompressed tar."""
        if self._index is None:
            data = self._unpacked()
            try:
                with tarfile.open(
                    self.root if data is None else None, "r:", io.BytesIO(data) if data is not None else None
                ) as tar:
                    members = [m for m in tar if m.isreg() and not m.issparse()]
            except (OSError, tarfile.TarError, ValueError) as error:
                raise DataError(
                    f"{self.root}: not a readable tar archive ({error}). Download or pack it again."
                ) from error
            self._index = {_safe(m.name, self.root): (m.offset_data, m.size) for m in members}
        return self._index

    def _list(self) -> Iterator[str]:
        yield from self.index

    def read(self, name: str) -> bytes:
        if name not in self.index:
            raise DataError(f"{self.where(name)}: the archive holds no such file.")
        offset, size = self.index[name]
        _limited(size, self.where(name))
        data = self._unpacked()
        if data is None:
            with self.root.open("rb") as file:
                file.seek(offset)
                data, offset = file.read(size), 0
        content = data[offset : offset + size]
        if len(content) != size:
            raise DataError(
                f"{self.where(name)}: the archive ends in the middle of this file. Download or pack it again."
            )
        return content

    def has(self, name: str) -> bool:
        return name in self.index


def ignored(name: str) -> bool:
    """Whether a name is hidden or left behind by an operating system (`__MACOSX`, `Thumbs.db`, `.opsin`)."""
    return any(part.startswith(".") or part.lower() in _IGNORED for part in name.split("/"))


def open_place(path: str | os.PathLike[str]) -> Place:
    """The place a person means by a path: a folder, an archive, or a single file inside its folder.

    Raises:
        DataError: if nothing is there.
    """
    root = Path(path).expanduser()
    if root.is_dir():
        return FolderPlace(root)
    if not root.exists():
        near = [p.name for p in root.parent.iterdir()] if root.parent.is_dir() else []
        from opsin.errors import nearest

        hint = nearest(root.name, near)
        raise DataError(f"{root}: no such file or folder.{f' Did you mean {root.parent / hint[0]}?' if hint else ''}")
    if root.suffix.lower() == ".zip":
        return ZipPlace(root)
    if _tar_name(root):
        return TarPlace(root)
    return FolderPlace(root.parent, focus=root.name)


def _tar_name(path: Path) -> bool:
    return path.name.lower().endswith(ARCHIVES[1:])


def _compression(path: Path) -> Any:
    with path.open("rb") as file:
        magic = file.read(6)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open
    if magic == b"\xfd7zXZ\0":
        return lzma.open
    return bz2.open if magic[:3] == b"BZh" else None


def _safe(name: str, archive: Path) -> str:
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":"):
        raise DataError(
            f"{archive}: the member '{name}' points outside the archive. Such archives are refused; "
            f"pack the files again with relative names."
        )
    return name.removeprefix("./")


def _limited(size: int, where: str) -> None:
    if size > MEMBER_LIMIT:
        raise DataError(
            f"{where}: {size >> 20} MB in one file; files larger than {MEMBER_LIMIT >> 20} MB are not read from "
            "archives."
        )
