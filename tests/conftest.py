"""What all tests share: the real data beside the checkout, and no network."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

_LOOPBACK = ("127.", "::1", "localhost", "0.0.0.0", "::", "")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with the small real data sets: OPSIN_TEST_DATA, or ../shared/data beside the checkout."""
    named = os.environ.get("OPSIN_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            f"real data not found at {folder}; set OPSIN_TEST_DATA to the folder that holds mnist/, cats-dogs/, ..."
        )
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse connections to anything but this machine."""
    connect, connect_ex = socket.socket.connect, socket.socket.connect_ex

    def refused(address: Any) -> bool:
        return isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK[:-1]) and address[0] != ""

    def guarded(self: socket.socket, address: Any) -> None:
        if refused(address):
            raise OSError(f"Tests use no network; something tried to connect to {address}.")
        connect(self, address)

    def guarded_ex(self: socket.socket, address: Any) -> int:
        if refused(address):
            raise OSError(f"Tests use no network; something tried to connect to {address}.")
        return connect_ex(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket.socket, "connect_ex", guarded_ex)


@pytest.fixture(autouse=True)
def own_home(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep ledgers and caches of tests out of the user's folder."""
    home = tmp_path_factory.mktemp("opsin-home")
    monkeypatch.setenv("OPSIN_HOME", str(home))
    return home
