"""The folder of a run: its name, its files, and where it was made."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from opsin import __version__
from opsin.durable import write_json
from opsin.errors import ConfigError, DataError, UnknownName

RUNS = Path("runs")


class RunFolder:
    """Paths and small files of one run.

    Args:
        path: the folder; not made here.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def recipe(self) -> Path:
        """The settings, and who set them."""
        return self.path / "recipe.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """Weights of the best model so far."""
        return self.path / "checkpoints" / "best.safetensors"

    @property
    def bundle(self) -> Path:
        """The best model, ready to use."""
        return self.path / "bundle"

    def predictions(self, part: str) -> Path:
        """Rows of a part of the data."""
        return self.path / "predictions" / f"{part}.npz"

    def read(self, name: str) -> dict[str, Any]:
        """A JSON file of the run.

        Raises:
            DataError: if it is missing or damaged.
        """
        path = self.path / name
        try:
            found: Any = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise DataError(f"{path} is missing; is {self.path} a run, and has it got that far?") from error
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Restore it from a copy, or train a new run.") from error
        if not isinstance(found, dict):
            raise DataError(f"{path} is damaged (it holds no object). Restore it from a copy, or train a new run.")
        return found

    def write(self, name: str, value: Any) -> None:
        """Replace a JSON file of the run as one act."""
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        write_json(self.path / name, value)

    def update(self, name: str, **values: Any) -> None:
        """Change some keys of a JSON file of the run."""
        self.write(name, {**(self.read(name) if (self.path / name).exists() else {}), **values})


def new_folder(out: Path | str | None, task: str, data: str) -> RunFolder:
    """Make the folder of a new run: the one asked for, or the next free `runs/TASK-DATA-N`.

    Raises:
        ConfigError: if the folder asked for is there already.
    """
    if out is not None:
        path = Path(out)
        if path.exists() and any(path.iterdir() if path.is_dir() else [path]):
            raise ConfigError(
                f"--out {path} exists already, and two runs never share a folder. To go on with it: opsin train --resume {path}"
            )
        path.mkdir(parents=True, exist_ok=True)
        return RunFolder(path)
    name = re.sub(r"[^\w.-]+", "-", data).strip("-.").lower() or "data"
    RUNS.mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (RUNS / f"{task}-{name}-{number}").mkdir()
            return RunFolder(RUNS / f"{task}-{name}-{number}")
        except FileExistsError:
            number += 1


def all_runs(root: Path = RUNS) -> Iterator[RunFolder]:
    """Runs below a folder, oldest first."""
    found = [p.parent for p in root.glob("**/recipe.json")] if root.is_dir() else []
    yield from (RunFolder(p) for p in sorted(found, key=lambda p: (p / "recipe.json").stat().st_mtime))


def find_run(reference: Path | str) -> RunFolder:
    """A run by path, by name below `runs/`, or `last`.

    Raises:
        UnknownName: if there is none; the message lists the runs there are.
    """
    if str(reference) == "last":
        runs = list(all_runs())
        if not runs:
            raise ConfigError("There is no run below ./runs yet. Train one: opsin train classify --data FOLDER")
        return runs[-1]
    path = _path_of(reference)
    if path is not None:
        return RunFolder(path)
    known = [str(run.path) for run in all_runs()]
    raise UnknownName("run", str(reference), known, "A run is a folder with recipe.json, or `last`.")


def is_run(reference: Path | str) -> bool:
    """Whether a run has this path, or this name below `runs/`; such a run comes before published weights of that name."""
    return _path_of(reference) is not None


def _path_of(reference: Path | str) -> Path | None:
    return next((path for path in (Path(reference), RUNS / reference) if (path / "recipe.json").is_file()), None)


def environment() -> dict[str, Any]:
    """Versions, processor, threads and code version: what a number depends on."""
    import torch

    packages: dict[str, str | None] = {}
    for name in ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "simplejpeg"):
        try:
            packages[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "opsin": __version__,
        "commit": code_version(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "packages": packages,
        "command": " ".join(["opsin", *sys.argv[1:]]) if Path(sys.argv[0]).name in ("opsin", "__main__.py") else None,
    }


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def code_version() -> str | None:
    """Commit of the checkout that opsin runs from, `+` when it has changes; None when installed."""
    here = Path(__file__).resolve().parent
    try:
        ask = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        found = subprocess.run(ask, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None


ENVIRONMENT_FOR_BITS = ("threads", "instructions", "processor", "packages", "accelerator")


def differences(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has changed since the run began that can change the last bits of its results."""
    return [
        f"{key}: {then.get(key)} -> {now.get(key)}" for key in ENVIRONMENT_FOR_BITS if then.get(key) != now.get(key)
    ]
