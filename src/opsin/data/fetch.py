"""One file from the network or a folder onto the disk: resumed, checked, and there only when complete.

Servers drop connections, stall, ignore ranges and lie about lengths; each of these ends in a complete file or an error
that says which of them it was.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from opsin.errors import DataError

Progress = Callable[[str, int, int | None], None]
"""Called with the file's name, the bytes there so far, and all its bytes (None: not known)."""

_CHUNK = 1 << 18
_SLOWEST = 1024  # fewer bytes than this within the time limit is a stall
_OF_THE_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EFBIG),
    *(errno.ENOENT, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.EMFILE, errno.ENFILE),
}
"""Errors of files; any other one in the middle of a download is the network's."""


@dataclass(frozen=True)
class Patience:
    """When to give up.

    Args:
        stall: seconds without (or nearly without) data after which a connection is dropped.
        tries: attempts in a row that bring nothing new.
        wait: seconds before the second attempt; doubled for each further one, at most 30.
    """

    stall: float = 30.0
    tries: int = 5
    wait: float = 1.0


class _BrokenError(Exception):
    """This attempt failed; another may succeed."""


class _RefusedError(Exception):
    """This address will not give the file."""


def fetch(
    urls: Sequence[str],
    target: Path,
    *,
    md5: str | None = None,
    sha256: str | None = None,
    size: int | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
) -> Path:
    """Bring one file here, from the first address that gives it whole.

    A part that an earlier, interrupted call left (`target.part`) is continued. Where a server says the SHA-256 of what
    it keeps (Hugging Face does, in `X-Linked-Etag`), the file must have that one too.

    Args:
        urls: http, https or file addresses of the same file.
        target: where it will be; its folder is made.
        md5: checksum that it must have.
        sha256: checksum that it must have, or its beginning, in hexadecimal digits.
        size: bytes that it must have.
        progress: told how far it is.
        patience: when to give up.

    Returns:
        target.

    Raises:
        DataError: if no address gives the file; the message says what happened at each.
    """
    patience = patience or Patience()
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    said: list[str] = []
    for url in urls:
        try:
            _whole(url, part, size, progress, patience)
            fault = _wrong_checksum(part, md5, [sha256, _announced_sha256(part)])
            if not fault:
                part.replace(target)
                _meta(part).unlink(missing_ok=True)
                return target
            _forget(part)
            said.append(f"{url}: {fault}")
        except (_RefusedError, _BrokenError) as error:
            said.append(f"{url}: {error}")
        except FileNotFoundError as error:  # another process that fetches the same file was faster
            if target.is_file() and not _wrong_checksum(target, md5, [sha256]):
                return target
            raise DataError(f"{part} was taken away while it was written. Is it fetched twice? Try again.") from error
        except OSError as error:
            raise DataError(f"{part} cannot be written ({error.strerror or error}). Is the disk full?") from error
    listed = "".join(f"\n  - {line}" for line in said)
    raise DataError(f"{target.name} could not be fetched:{listed}")


def checksum(path: Path, kind: str = "md5") -> str:
    """MD5 (or another checksum that hashlib knows) of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest()


def _wrong_checksum(part: Path, md5: str | None, sha256: Sequence[str | None]) -> str:
    if md5 and (found := checksum(part)) != md5:
        return f"its MD5 is {found}, the published one {md5}"
    wanted = [one for one in sha256 if one]
    if not wanted:
        return ""
    found = checksum(part, "sha256")
    wrong = next((one for one in wanted if not found.startswith(one)), None)
    return f"its SHA-256 is {found[:16]}..., the published one {wrong[:16]}" if wrong else ""


def _announced_sha256(part: Path) -> str | None:
    """What the server said of the file that the part belongs to."""
    try:
        found = json.loads(_meta(part).read_text()).get("sha256")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, and keeps the checksum and size that the one who redirects says of the file."""

    def __init__(self) -> None:
        self.linked: dict[str, str] = {}

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.linked |= {name: headers[name] for name in ("X-Linked-Etag", "X-Linked-Size") if headers.get(name)}
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _linked(redirects: _Redirects, headers: Message) -> tuple[str | None, int | None]:
    """SHA-256 and size of the file, where a server says them."""
    tag = (redirects.linked.get("X-Linked-Etag") or headers.get("X-Linked-Etag") or "").strip('"').lower()
    size = redirects.linked.get("X-Linked-Size") or headers.get("X-Linked-Size") or ""
    return (tag if re.fullmatch("[0-9a-f]{64}", tag) else None), (int(size) if size.isdigit() else None)


def _meta(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _meta(part).unlink(missing_ok=True)


def _whole(url: str, part: Path, size: int | None, progress: Progress | None, patience: Patience) -> None:
    """Fill `part` from one address, over as many attempts as bring something."""
    if urlsplit(url).scheme == "file":
        source = Path(url2pathname(urlsplit(url).path))
        if not source.is_file():
            raise _RefusedError("no such file")
        _forget(part)
        shutil.copyfile(source, part)
        if progress:
            progress(part.name.removesuffix(".part"), part.stat().st_size, part.stat().st_size)
        return
    if not _same_origin(url, part):
        _forget(part)
    failures, wait = 0, patience.wait
    furthest = part.stat().st_size if part.exists() else 0
    while True:
        try:
            _attempt(url, part, size, progress, patience.stall)
            return
        except _BrokenError as error:
            now = part.stat().st_size if part.exists() else 0
            if now > furthest:
                failures, wait, furthest = 0, patience.wait, now  # slow, but it moves
            failures += 1
            if failures >= patience.tries:
                raise _BrokenError(f"{error} (tried {failures} times in a row without getting further)") from error
        time.sleep(wait)
        wait = min(2 * wait, 30.0)


def _same_origin(url: str, part: Path) -> bool:
    try:
        return bool(json.loads(_meta(part).read_text())["url"] == url)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _attempt(url: str, part: Path, size: int | None, progress: Progress | None, stall: float) -> None:
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "opsin", "Accept-Encoding": "identity"}
    validator = json.loads(_meta(part).read_text()).get("validator") if have else None
    if have and validator:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    try:
        redirects = _Redirects()
        opener = urllib.request.build_opener(redirects)
        with opener.open(urllib.request.Request(url, headers=headers), timeout=stall) as response:
            sha256, linked_size = _linked(redirects, response.headers)
            size = linked_size if size is None else size
            start = _start(response.status, response.headers, have)
            announced = response.headers.get("Content-Length")
            total = start + int(announced) if announced and announced.isdigit() else None
            if size is not None and total is not None and total != size:
                raise _RefusedError(f"the server announces {total} bytes, {size} are published; that is another file")
            strong = response.headers.get("ETag") or response.headers.get("Last-Modified")
            usable = strong if strong and not strong.startswith("W/") else None
            _meta(part).write_text(json.dumps({"url": url, "validator": usable, "sha256": sha256}))
            _receive(response, part, start, total or size, progress, stall)
    except urllib.error.HTTPError as error:
        _http_error(error, part, have)
    except ssl.SSLCertVerificationError as error:
        raise _RefusedError(f"its certificate is not valid ({error.verify_message})") from error
    except TimeoutError as error:
        raise _BrokenError(f"no data for {stall:g} seconds") from error
    except http.client.HTTPException as error:
        raise _BrokenError(f"the connection broke ({type(error).__name__})") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, ssl.SSLCertVerificationError):
            raise _RefusedError(f"its certificate is not valid ({error.reason.verify_message})") from error
        if isinstance(error.reason, TimeoutError):
            raise _BrokenError(f"no answer for {stall:g} seconds") from error
        raise _BrokenError(f"cannot be reached ({error.reason})") from error
    except OSError as error:
        if not isinstance(error, ssl.SSLError) and error.errno in _OF_THE_DISK:
            raise
        raise _BrokenError(f"the connection broke ({error.strerror or error})") from error
    have = part.stat().st_size
    wanted = size if size is not None else total
    if wanted is not None and have < wanted:
        raise _BrokenError(f"the connection ended after {have} of {wanted} bytes")
    if wanted is not None and have > wanted:
        _forget(part)
        raise _RefusedError(f"it sent {have} bytes instead of {wanted}")


def _start(status: int, headers: Message, have: int) -> int:
    """Where the bytes of an answer belong: servers may ignore the range that was asked for."""
    if status != 206:
        return 0
    span = (headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0].strip()
    if not span.isdigit() or int(span) != have:
        raise _BrokenError(
            f"the server gave the range {headers.get('Content-Range')!r} instead of one from byte {have}"
        )
    return have


def _http_error(error: urllib.error.HTTPError, part: Path, have: int) -> None:
    if error.code == 416 and have:
        _forget(part)  # the part is longer than the file: begin again
        raise _BrokenError("the part that was there does not belong to this file") from error
    if error.code in (408, 425, 429) or error.code >= 500:
        raise _BrokenError(f"the server answers {error.code} {error.reason}") from error
    raise _RefusedError(f"the server answers {error.code} {error.reason}") from error


def _receive(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    progress: Progress | None,
    stall: float,
) -> None:
    name, have = part.name.removesuffix(".part"), start
    since, mark = time.monotonic(), start
    with part.open("r+b" if start else "wb") as file:
        file.seek(start)
        file.truncate()
        while chunk := response.read1(_CHUNK):
            file.write(chunk)
            have += len(chunk)
            if progress:
                progress(name, have, total)
            if have - mark >= _SLOWEST:
                since, mark = time.monotonic(), have
            elif time.monotonic() - since > stall:
                raise TimeoutError
        file.flush()
        os.fsync(file.fileno())
