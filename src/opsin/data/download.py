"""Named public data sets onto this machine: `opsin data get NAME`.

The license is shown first. Files come from the published addresses, or from a mirror (`OPSIN_MIRROR`: a folder or
base address that holds `<data set>/<file>`), are checked, unpacked, and appear in their folder only when everything is
right.
A mirror may hold re-packed files: then the content is checked instead of the published checksum, and that is said.
"""

from __future__ import annotations

import gzip
import json
import logging
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from opsin.data.entries import Entry, Table, catalog
from opsin.data.fetch import Patience, Progress, checksum, fetch
from opsin.data.home import cache_home
from opsin.errors import DataError

_RECEIPT = ".opsin-source.json"
_log = logging.getLogger("opsin")

Say = Callable[[str], None]


def entry(name: str) -> Entry:
    """The catalog's entry of a data set.

    Raises:
        UnknownName: if there is none; the message offers the nearest names.
    """
    found: Entry = catalog.get(name)()
    return found


def locate(name: str) -> Path:
    """The folder of a data set that was fetched before.

    Raises:
        UnknownName: if the catalog has no such data set.
        DataError: if it is not on this machine; the message names the command that brings it.
    """
    folder = cache_home() / "data" / entry(name).name
    if not _complete(folder):
        raise DataError(
            f"The data set '{name}' is not on this machine (looked in {folder}). Get it once, with network: "
            f"opsin data get {name}. For a machine without: opsin data get {name} --to DIR elsewhere, and copy DIR."
        )
    return folder


def get(
    name: str,
    to: str | os.PathLike[str] | None = None,
    *,
    accept_license: bool | Callable[[Entry], bool] = True,
    mirror: str | None = None,
    progress: Progress | None = None,
    say: Say = _log.info,
    patience: Patience | None = None,
) -> Path:
    """Fetch a data set once; later calls find it.

    Args:
        name: of the catalog.
        to: folder that will hold it; by default `<home>/data/<name>`.
        accept_license: False refuses; a function is asked, after the license was shown.
        mirror: folder or base address with `<name>/<file>`; by default the environment's `OPSIN_MIRROR`.
        progress: told how far each file is.
        say: gets the license and everything else that a person should know.
        patience: when to give up on a connection.

    Returns:
        The folder, which `load_data` reads.

    Raises:
        UnknownName: if the catalog has no such data set.
        DataError: if the license was not accepted, nothing could be reached, or a file is not what was published.
    """
    wanted = entry(name)
    folder = Path(to).expanduser() if to is not None else cache_home() / "data" / wanted.name
    if _complete(folder):
        return folder
    say(_license(wanted))
    if not (accept_license(wanted) if callable(accept_license) else accept_license):
        raise DataError(f"The license of '{name}' was not accepted; nothing was fetched.")
    if folder.is_dir() and any(p.name not in _left_over(wanted) for p in folder.iterdir()):
        raise DataError(f"{folder} holds other files. Give an empty or new folder, or empty this one.")
    mirror = mirror or os.environ.get("OPSIN_MIRROR") or None
    work = folder.with_name(folder.name + ".partial")
    work.mkdir(parents=True, exist_ok=True)
    repacked = _fetch_all(wanted, work, mirror, progress, patience)
    _unpack_all(wanted, work, mirror)
    if fault := _fault(wanted, work):
        shutil.rmtree(work)
        raise DataError(_wrong(wanted, mirror, fault))
    if repacked:
        say(
            f"{', '.join(repacked)}: packed differently than published (other MD5); "
            f"sizes, counts and first labels of the content are right."
        )
    _write_receipt(wanted, work, mirror, repacked)
    shutil.rmtree(folder, ignore_errors=True)
    work.replace(folder)
    return folder


def _complete(folder: Path) -> bool:
    """Whether the folder holds what its receipt says."""
    try:
        sizes = json.loads((folder / _RECEIPT).read_text(encoding="utf-8"))["sizes"]
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, KeyError):
        return False


def _license(wanted: Entry) -> str:
    use = "" if wanted.commercial else " Treated as not for commercial use."
    return f"{wanted.title}\nLicense: {wanted.license}. {wanted.license_text}{use}\nCite: {wanted.citation}"


def _left_over(wanted: Entry) -> set[str]:
    """Names that an earlier download may have left in the folder."""
    return {
        _RECEIPT,
        *(Path(table.path).parts[0] for table in wanted.tables),
        *(Path(m).parts[0] for m in wanted.unpack),
    }


def _address(mirror: str, name: str, file: str) -> str:
    if urlsplit(mirror).scheme in ("http", "https", "file"):
        return f"{mirror.rstrip('/')}/{name}/{file}"
    return (Path(mirror).expanduser().resolve() / name / file).as_uri()


def _fetch_all(
    wanted: Entry, work: Path, mirror: str | None, progress: Progress | None, patience: Patience | None
) -> list[str]:
    """Bring every file; returns those whose checksum is not the published one (from a mirror only)."""
    repacked = []
    for file in wanted.files:
        target = work / file.name
        if mirror is not None:
            if not (target.is_file() and checksum(target) == file.md5):
                try:
                    fetch([_address(mirror, wanted.name, file.name)], target, progress=progress, patience=patience)
                except DataError as error:
                    raise DataError(_missing(wanted, mirror, error)) from error
            if checksum(target) != file.md5:
                repacked.append(file.name)
        elif not (target.is_file() and checksum(target) == file.md5):
            urls = [url + file.name for url in wanted.urls]
            try:
                fetch(urls, target, md5=file.md5, size=file.size, progress=progress, patience=patience)
            except DataError as error:
                raise DataError(
                    f"{error}\nWithout network: run `opsin data get {wanted.name} --to DIR` on a machine that has it "
                    f"and copy DIR, or set OPSIN_MIRROR to a folder or address that holds {wanted.name}/{file.name}."
                ) from error
    return repacked


def _missing(wanted: Entry, mirror: str, error: DataError) -> str:
    text = f"The mirror {mirror} (OPSIN_MIRROR) does not give the data set '{wanted.name}'. {error}"
    folder = Path(mirror).expanduser() / wanted.name
    if urlsplit(mirror).scheme not in ("http", "https", "file") and folder.is_dir():
        there = sorted(p.name for p in folder.iterdir())
        listed = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        text += f"\n{folder} holds {listed}, which is not the published data set."
    expected = ", ".join(f"{wanted.name}/{file.name}" for file in wanted.files)
    return f"{text}\nExpected {expected}. Unset OPSIN_MIRROR to fetch from the publisher: opsin data get {wanted.name}."


def _wrong(wanted: Entry, mirror: str | None, fault: str) -> str:
    where = f"What the mirror {mirror} gave" if mirror else "What the publisher gave"
    return f"{where} for '{wanted.name}' is not the published data set: {fault}. It was removed."


def _unpack_all(wanted: Entry, work: Path, mirror: str | None) -> None:
    """Take the wanted members out of archives, and remove these."""
    if not wanted.unpack:
        return
    for file in wanted.files:
        archive = work / file.name
        try:
            _unpack(archive, work, set(wanted.unpack))
        except (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile) as error:
            archive.unlink(missing_ok=True)
            raise DataError(_wrong(wanted, mirror, f"{file.name} cannot be unpacked ({error})")) from error
        archive.unlink()


def _unpack(archive: Path, work: Path, members: set[str]) -> None:
    """Members are asked for by exact name, so nothing is ever written outside the folder."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as unzipped:
            for name in members & set(unzipped.namelist()):
                with unzipped.open(name) as stream:
                    _write(stream, work / name)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            source = tar.extractfile(member) if member.isfile() and member.name in members else None
            if source is not None:
                _write(source, work / member.name)


def _write(source: Any, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file)


def _fault(wanted: Entry, folder: Path) -> str | None:
    """What is wrong with the content of a folder, or None."""
    return next((fault for table in wanted.tables if (fault := _table_fault(table, folder / table.path))), None)


def _table_fault(table: Table, path: Path) -> str | None:
    if not path.is_file():
        return f"{table.path} is missing"
    size, start = 0, b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(table.header + table.record * max(1, len(table.first)))
            size = len(start)
            while chunk := file.read(1 << 20):
                size += len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        return f"{table.path} cannot be unpacked ({error})"
    expected = table.header + table.record * table.count
    if size != expected:
        return f"{table.path} holds {size} bytes unpacked, expected {expected} ({table.count} records)"
    if table.header >= 8 and int.from_bytes(start[4:8], "big") != table.count:
        return f"{table.path} declares {int.from_bytes(start[4:8], 'big')} records, expected {table.count}"
    found = tuple(start[table.header + table.label :: table.record][: len(table.first)])
    return None if found == table.first else f"the first labels in {table.path} are {found}, expected {table.first}"


def _write_receipt(wanted: Entry, work: Path, mirror: str | None, repacked: list[str]) -> None:
    receipt = {
        "name": wanted.name,
        "from": mirror or list(wanted.urls),
        "md5": {file.name: file.md5 for file in wanted.files if file.name not in repacked},
        "repacked": repacked,
        "sizes": {p.relative_to(work).as_posix(): p.stat().st_size for p in sorted(work.rglob("*")) if p.is_file()},
        "license": wanted.license,
        "citation": wanted.citation,
        "fetched": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    (work / _RECEIPT).write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
