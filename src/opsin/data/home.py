"""Where opsin keeps things for a user: what must last (the ledger) and what can be fetched again (downloads)."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def home() -> Path:
    """What must last: `OPSIN_HOME`, or the platform's place for application data."""
    return _given() or Path(platformdirs.user_data_dir("opsin", appauthor=False))


def cache_home() -> Path:
    """What can be fetched again: `OPSIN_HOME`, or the platform's place for caches."""
    return _given() or Path(platformdirs.user_cache_dir("opsin", appauthor=False))


def _given() -> Path | None:
    named = os.environ.get("OPSIN_HOME")
    return Path(named).expanduser() if named else None
