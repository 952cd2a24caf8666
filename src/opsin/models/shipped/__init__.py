"""Models that come with the package: bundles in half precision, each with its license and a few pictures to try it on.

A name such as `blood-cells` stands for the folder `blood_cells` here, with `bundle.json`, `weights.safetensors`, `README.md`
and `pictures/`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from opsin.errors import ConfigError

_HERE = Path(__file__).parent


def shipped() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name.replace("_", "-") for path in _HERE.glob("*/bundle.json"))


def folder_of(name: str) -> Path | None:
    """The bundle's folder of a name, None if no such model comes with the package."""
    return _HERE / name.replace("-", "_") if name in shipped() else None


def copy_to(name: str, to: Path) -> Path:
    """Copy a model with its pictures into a new folder.

    Raises:
        ConfigError: if the folder exists, or no such model comes with the package.
    """
    folder = folder_of(name)
    if folder is None:
        raise ConfigError(f"No model '{name}' comes with the package. It has: {', '.join(shipped())}.")
    if to.exists():
        raise ConfigError(f"{to} exists already. Give a new folder.")
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    return to
