"""How much memory this process may still take, the limits of its container included."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

GUESS = 4 * 10**9  # bytes, where a system says nothing


def available_memory() -> int | None:
    """Bytes that the machine has free, less if a control group of this process has a limit; None outside Linux."""
    if sys.platform != "linux":
        return None
    machine = Path("/proc/meminfo")
    match = re.search(r"MemAvailable:\s+(\d+) kB", machine.read_text(encoding="ascii")) if machine.exists() else None
    free = [int(match.group(1)) * 1024] if match else []
    for limit, used in _container_files():
        try:
            free.append(max(0, int(limit.read_text()) - int(used.read_text())))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(free, default=None)


def assumed_memory() -> int:
    """`available_memory`, or a careful guess where that is unknown: half of what the machine has."""
    found = available_memory()
    if found is not None:
        return found
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return GUESS


def _container_files() -> Iterator[tuple[Path, Path]]:
    """(limit, usage) files of every control group that this process is in: version 2, then version 1."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup") if not controllers else Path("/sys/fs/cgroup/memory")
        names = (
            ("memory.max", "memory.current") if not controllers else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
        inner = Path(name.lstrip("/"))
        for folder in (inner, *inner.parents):
            yield root / folder / names[0], root / folder / names[1]
