"""Deep learning for computer vision: from a folder of pictures to a model you can trust and ship.

    >>> import opsin
    >>> run = opsin.train("classify", data="pictures/", model="resnet18", epochs=5)  # doctest: +SKIP
    >>> opsin.load(run.path).predict("cat.jpg").draw()  # doctest: +SKIP

Public names are resolved when they are first used: `import opsin` loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.bundle import Bundle as Bundle
    from opsin.data.formats import load_data as load_data
    from opsin.run import Run as Run
    from opsin.run import load as load
    from opsin.run import train as train
    from opsin.run.comparing import compare as compare

__version__ = "0.1.0"

_HOMES = {
    "Bundle": "opsin.bundle",
    "Run": "opsin.run",
    "compare": "opsin.run.comparing",
    "load": "opsin.run",
    "load_data": "opsin.data.formats",
    "train": "opsin.run",
}

__all__ = ["Bundle", "Run", "__version__", "compare", "load", "load_data", "train"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'opsin' has no attribute {name!r}. Public names: {', '.join(__all__)}.")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
