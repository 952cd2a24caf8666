"""Run Python in a process of its own, with the opsin that the tests import."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import opsin

SLACK = float(os.environ.get("OPSIN_TEST_SLACK", "3" if os.environ.get("CI") else "1"))
"""Factor on every time limit: shared machines are slower and less even."""


def python(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `python ARGUMENTS...` and capture what it prints."""
    source = str(Path(opsin.__file__).parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", ""))))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONUTF8": "1"}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    if check and done.returncode:
        raise AssertionError(f"python {' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done


def cheapest(*arguments: str, repeats: int = 5) -> float:
    """Seconds that `python ARGUMENTS...` costs from start to end: the best of some runs.

    It is the processor's time where the system tells it, so that other work on the machine does not count.
    """
    costs = []
    for _ in range(repeats):
        start = _spent()
        python(*arguments)
        costs.append(_spent() - start)
    return min(costs)


def _spent() -> float:
    if sys.platform == "win32":
        return time.perf_counter()
    import resource

    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
