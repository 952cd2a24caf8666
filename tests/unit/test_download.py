"""Downloads from a server on this machine that drops, stalls, lies and refuses; and from mirrors."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import json
import ssl
import tarfile
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opsin.data import download
from opsin.data.entries import Entry, Remote, Table
from opsin.data.fetch import Patience, checksum, fetch
from opsin.data.home import cache_home, home
from opsin.errors import DataError, UnknownName

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
FAST = Patience(stall=0.5, tries=3, wait=0.01)


class Server(ThreadingHTTPServer):
    """Serves `files`; `plan` holds what goes wrong with the next requests, in turn."""

    daemon_threads = True
    files: dict[str, bytes]
    plan: list[str]
    asked: list[tuple[str, str | None]]

    def url(self, name: str = "file.bin") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None: ...

    def do_GET(self) -> None:
        span = self.headers.get("Range")
        self.server.asked.append((self.path, span))
        trouble = self.server.plan.pop(0) if self.server.plan else ""
        body = self.server.files.get(self.path.lstrip("/"))
        if body is None or trouble == "gone":
            self.send_error(404)
            return
        if trouble == "busy":
            self.send_error(503)
            return
        if trouble == "redirect":
            self.send_response(302)
            self.send_header("Location", self.path)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        tag = '"other"' if trouble == "changed" else '"v1"'
        if span and trouble != "ignores range" and self.headers.get("If-Range") == tag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        if start:
            shown = start + 7 if trouble == "wrong range" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        if trouble == "changed":
            body = body[::-1]
        body = body[start:]
        length = {"claims more": len(body) + 5000, "claims less": len(body) - 5000}.get(trouble, len(body))
        if trouble != "no length":
            self.send_header("Content-Length", str(length))
        if trouble != "no tag":
            self.send_header("ETag", tag)
        if trouble in ("no length", "claims more", "drop", "no tag drop"):
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self._send(body, trouble)

    def _send(self, body: bytes, trouble: str) -> None:
        try:
            if trouble in ("drop", "no tag drop"):
                self.wfile.write(body[: len(body) // 2])
            elif trouble == "drip":
                self.wfile.write(body[: len(body) // 2])
                for i in range(60):
                    self.wfile.write(body[len(body) // 2 + i :][:1])
                    self.wfile.flush()
                    time.sleep(0.05)
                self.close_connection = True
            elif trouble == "stall":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(2)
                self.close_connection = True
            elif trouble == "damaged":
                self.wfile.write(body[:100] + bytes([body[100] ^ 1]) + body[101:])
            else:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server(("127.0.0.1", 0), Handler)
    running.files, running.plan, running.asked = {"file.bin": CONTENT}, [], []
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()
    thread.join()


def bring(server: Server, folder: Path, **options: Any) -> Path:
    return fetch([server.url()], folder / "file.bin", **{"md5": MD5, "size": len(CONTENT), "patience": FAST, **options})


@pytest.mark.parametrize(
    ("plan", "requests", "ranges"),
    [
        ([], 1, 0),
        (["drop", "drop", "drop", "drop"], 5, 4),
        (["stall"], 2, 1),
        (["drip"], 2, 1),
        (["drop", "ignores range"], 2, 1),
        (["drop", "wrong range"], 3, 2),
        (["busy", "busy"], 3, 0),
        (["redirect"], 2, 0),
        (["no length"], 1, 0),
        (["no tag", ""], 1, 0),
    ],
)
def test_trouble_that_is_overcome(server: Server, tmp_path: Path, plan: list[str], requests: int, ranges: int) -> None:
    server.plan = plan
    seen: list[tuple[str, int, int | None]] = []
    path = bring(server, tmp_path, progress=lambda *args: seen.append(args))
    assert path.read_bytes() == CONTENT
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]
    assert len(server.asked) == requests
    assert sum(span is not None for _, span in server.asked) == ranges
    assert seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["gone"], "404"),
        (["busy"] * 9, "503 .*tried 3 times"),
        (["damaged"], "MD5"),
        (["claims more"], "announces 305000 bytes, 300000 are published"),
        (["claims less"], "announces 295000 bytes, 300000 are published"),
    ],
)
def test_trouble_that_is_reported(server: Server, tmp_path: Path, plan: list[str], message: str) -> None:
    server.plan = plan
    with pytest.raises(DataError, match=rf"(?s)file\.bin could not be fetched.*127\.0\.0\.1.*{message}"):
        bring(server, tmp_path)
    assert not (tmp_path / "file.bin").exists()


def test_false_length_without_a_published_size(server: Server, tmp_path: Path) -> None:
    server.plan = ["claims more"] * 9
    with pytest.raises(DataError, match="tried 3 times"):
        bring(server, tmp_path, size=None)
    server.plan = ["claims less"]
    with pytest.raises(DataError, match="MD5"):
        bring(server, tmp_path / "less", size=None)
    assert bring(server, tmp_path / "less", size=None).read_bytes() == CONTENT


def test_interrupted_call_is_continued_by_the_next(server: Server, tmp_path: Path) -> None:
    server.plan = ["drop", "gone"]
    with pytest.raises(DataError):
        bring(server, tmp_path)
    half = (tmp_path / "file.bin.part").stat().st_size
    assert half == 150_000
    bring(server, tmp_path)
    assert server.asked[-1] == ("/file.bin", "bytes=150000-")


def test_file_that_changed_meanwhile_begins_again(server: Server, tmp_path: Path) -> None:
    server.plan = ["drop", "gone"]
    with pytest.raises(DataError):
        bring(server, tmp_path)
    server.plan = ["changed"]
    path = bring(server, tmp_path, md5=hashlib.md5(CONTENT[::-1]).hexdigest())
    assert path.read_bytes() == CONTENT[::-1]


def test_part_of_another_address_is_not_mixed_in(server: Server, tmp_path: Path) -> None:
    server.files["other/file.bin"] = CONTENT[::-1]
    server.plan = ["drop", "gone"]
    with pytest.raises(DataError):
        fetch([server.url("other/file.bin")], tmp_path / "file.bin", patience=FAST)
    assert bring(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == ("/file.bin", None)


def test_next_address_is_tried(server: Server, tmp_path: Path) -> None:
    urls = [server.url("missing.bin"), "http://127.0.0.1:9/file.bin", server.url()]
    assert fetch(urls, tmp_path / "file.bin", md5=MD5, patience=FAST).read_bytes() == CONTENT
    with pytest.raises(DataError) as caught:
        fetch(urls[:2], tmp_path / "else.bin", md5=MD5, patience=FAST)
    assert "404" in str(caught.value)
    assert "cannot be reached" in str(caught.value)


# Data sets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [OSError(errno.EHOSTUNREACH, "No route to host"), OSError(errno.ENETUNREACH, "x"), ssl.SSLError(1, "bad record")],
)
def test_a_network_that_goes_away_in_the_middle_is_tried_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: OSError
) -> None:
    through, failures = HTTPResponse.read1, [broken]

    def read1(response: HTTPResponse, n: int = -1) -> bytes:
        if failures:
            raise failures.pop()
        return through(response, n)

    monkeypatch.setattr(HTTPResponse, "read1", read1)
    assert bring(server, tmp_path).read_bytes() == CONTENT
    failures.append(OSError(errno.ENOSPC, "No space left on device"))
    with pytest.raises(DataError, match="Is the disk full"):
        bring(server, tmp_path / "full")


@pytest.mark.parametrize("whole", [True, False])
def test_another_process_was_faster(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    through, target = Path.replace, tmp_path / "file.bin"

    def replace(part: Path, to: Path) -> Path:
        through(part, to)
        if not whole:
            to.write_bytes(b"else")
        return through(part, to)

    monkeypatch.setattr(Path, "replace", replace)
    if whole:
        assert bring(server, tmp_path) == target
        assert target.read_bytes() == CONTENT
        return
    with pytest.raises(DataError, match="was taken away"):
        bring(server, tmp_path)


def idx(values: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def made_files() -> dict[str, bytes]:
    generator = np.random.default_rng(1)
    files = {}
    for part, count in (("train", 30), ("t10k", 10)):
        files[f"{part}-images-idx3-ubyte.gz"] = gzip.compress(
            idx(generator.integers(0, 256, (count, 28, 28), np.uint8))
        )
        files[f"{part}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.arange(count, dtype=np.uint8) % 10))
    return files


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, server: Server, tmp_path: Path) -> Entry:
    """A data set like MNIST, published on the server."""
    files = made_files()
    server.files |= files
    tables = tuple(
        Table(name, 16, 784, 30 if "train" in name else 10)
        if "images" in name
        else Table(name, 8, 1, 30 if "train" in name else 10, 0, (0, 1, 2))
        for name in files
    )
    base = download.entry("mnist")
    remotes = tuple(Remote(name, hashlib.md5(body).hexdigest(), len(body)) for name, body in files.items())
    made = replace(base, name="mnist", files=remotes, urls=(server.url(""),), tables=tables)
    monkeypatch.setattr(download, "entry", lambda name: made)
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("OPSIN_MIRROR", raising=False)
    return made


def test_data_set_is_fetched_once_and_read(small: Entry, server: Server, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="opsin data get mnist"):
        download.locate("mnist")
    said: list[str] = []
    folder = download.get("mnist", say=said.append, patience=FAST)
    assert folder == tmp_path / "home" / "data" / "mnist" == download.locate("mnist")
    assert "License: unknown" in said[0]
    assert not (folder.parent / "mnist.partial").exists()
    from opsin.data import load_data

    dataset = load_data(folder)
    assert len(dataset) == 40
    count = len(server.asked)
    assert download.get("mnist") == folder
    assert len(server.asked) == count
    receipt = json.loads((folder / ".opsin-source.json").read_text())
    assert receipt["repacked"] == []
    (folder / "train-labels-idx1-ubyte.gz").write_bytes(b"")
    download.get("mnist", patience=FAST)
    assert len(load_data(folder)) == 40


def test_license_comes_before_the_network(small: Entry, server: Server) -> None:
    said: list[str] = []
    for answer in (False, lambda entry: "License" not in said[0]):
        with pytest.raises(DataError, match="not accepted"):
            download.get("mnist", accept_license=answer, say=said.append)
    assert server.asked == []


def test_broken_download_leaves_nothing_that_looks_complete(small: Entry, server: Server, tmp_path: Path) -> None:
    server.plan = ["", "", "gone"]
    with pytest.raises(DataError, match=r"Without network.*opsin data get mnist --to DIR"):
        download.get("mnist", patience=FAST)
    with pytest.raises(DataError, match="not on this machine"):
        download.locate("mnist")
    before = len(server.asked)
    download.get("mnist", patience=FAST)
    assert len(server.asked) == before + 2  # the first two files were kept


def test_own_folder(small: Entry, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    assert download.get("mnist", mine, patience=FAST) == mine
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="holds other files"):
        download.get("mnist", other, patience=FAST)
    assert (other / "thesis.tex").exists()


def mirror_of(files: dict[str, bytes], folder: Path) -> Path:
    (folder / "mnist").mkdir(parents=True)
    for name, body in files.items():
        (folder / "mnist" / name).write_bytes(body)
    return folder


def test_mirrors(small: Entry, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = mirror_of(made_files(), tmp_path / "exact")
    said: list[str] = []
    monkeypatch.setenv("OPSIN_MIRROR", str(exact))
    download.get("mnist", tmp_path / "a", say=said.append)
    assert len(said) == 1
    again = {name: gzip.compress(gzip.decompress(body), 1) for name, body in made_files().items()}
    folder = download.get(
        "mnist", tmp_path / "b", mirror=mirror_of(again, tmp_path / "again").as_uri(), say=said.append
    )
    assert "packed differently than published" in said[-1]
    assert json.loads((folder / ".opsin-source.json").read_text())["repacked"]
    server.files |= {f"copy/mnist/{name}": body for name, body in made_files().items()}
    download.get("mnist", tmp_path / "c", mirror=server.url("copy/"), patience=FAST)
    assert server.asked[-1][0].startswith("/copy/mnist/")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: gzip.compress(gzip.decompress(b)[:-1]), "holds .* bytes unpacked"),
        (lambda b: b[:-9], "cannot be unpacked"),
        (lambda b: gzip.compress(gzip.decompress(b)[:8] + bytes(30)), "first labels"),
        (lambda b: gzip.compress(b"\0\0\x08\x01\0\0\0\x1f" + gzip.decompress(b)[8:]), "declares 31 records"),
    ],
)
def test_mirror_with_something_else(small: Entry, tmp_path: Path, change: Any, message: str) -> None:
    files = made_files()
    files["train-labels-idx1-ubyte.gz"] = change(files["train-labels-idx1-ubyte.gz"])
    with pytest.raises(DataError, match=rf"is not the published data set: .*{message}"):
        download.get("mnist", tmp_path / "a", mirror=str(mirror_of(files, tmp_path / "m")))
    assert not (tmp_path / "a").exists()


def test_mirror_that_lacks_it_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar10_subset.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError) as caught:
        download.get("cifar10", tmp_path / "to", mirror=str(tmp_path))
    for words in (
        "cifar10_subset.tar.gz, which is not the published",
        "Expected cifar10/cifar-10-binary.tar.gz",
        "opsin data get",
    ):
        assert words in str(caught.value)


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_give_only_what_is_asked_for(
    small: Entry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    body, file = bytes(range(100)), io.BytesIO()
    members = {"set/a.bin": body, "set/extra.bin": b"no", "../evil.bin": b"no"}
    if kind == "tar":
        with tarfile.open(fileobj=file, mode="w:gz") as tar:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    else:
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    name = "set.tar.gz" if kind == "tar" else "set.zip"
    (tmp_path / "m" / "mnist").mkdir(parents=True)
    (tmp_path / "m" / "mnist" / name).write_bytes(file.getvalue())
    md5 = hashlib.md5(file.getvalue()).hexdigest()
    made = replace(
        small, files=(Remote(name, md5),), tables=(Table("set/a.bin", 0, 10, 10, 3, (3, 13)),), unpack=("set/a.bin",)
    )
    monkeypatch.setattr(download, "entry", lambda _: made)
    folder = download.get("mnist", tmp_path / "deep" / "to", mirror=str(tmp_path / "m"))
    assert sorted(p.name for p in folder.rglob("*") if p.is_file()) == [".opsin-source.json", "a.bin"]
    assert not list(tmp_path.rglob("evil.bin"))
    (tmp_path / "m" / "mnist" / name).write_bytes(file.getvalue()[:-40])
    with pytest.raises(DataError, match="is not the published data set"):
        download.get("mnist", tmp_path / "deep" / "to2", mirror=str(tmp_path / "m"))


def test_home_and_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPSIN_HOME", str(tmp_path))
    assert home() == cache_home() == tmp_path
    monkeypatch.delenv("OPSIN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_home().name.lower() in ("opsin", "cache")
    assert cache_home() != home()
    with pytest.raises(UnknownName, match="fashion-mnist"):
        download.get("fashion_mnist")
    assert checksum(Path(__file__)) == hashlib.md5(Path(__file__).read_bytes()).hexdigest()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files_through_the_mirror(shared_data: Path, tmp_path: Path, name: str) -> None:
    from opsin.data import load_data

    said: list[str] = []
    folder = download.get(name, tmp_path / "to", mirror=str(shared_data), say=said.append)
    assert any("packed differently" in line for line in said) == (name == "mnist")
    dataset = load_data(folder)
    assert len(dataset) == 70_000
    assert [int((dataset.given_split == part).sum()) for part in (0, 1, 2)] == [60_000, 0, 10_000]
