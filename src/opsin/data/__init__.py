"""From files to samples: decoding, formats, splits and the ledger of looks at the test part.

The names below are imported when first used, so that `import opsin.data` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opsin.data.build import from_arrays, from_files
    from opsin.data.dataset import Dataset, HeadSpec, Problem
    from opsin.data.formats import load_data
    from opsin.data.image import probe, read_image
    from opsin.data.ledger import Ledger
    from opsin.data.splits import Split, SplitFile, make_split

__all__ = [
    "Dataset",
    "HeadSpec",
    "Ledger",
    "Problem",
    "Split",
    "SplitFile",
    "from_arrays",
    "from_files",
    "load_data",
    "make_split",
    "probe",
    "read_image",
]

_HOMES = {
    "Dataset": "dataset",
    "HeadSpec": "dataset",
    "Ledger": "ledger",
    "Problem": "dataset",
    "Split": "splits",
    "SplitFile": "splits",
    "from_arrays": "build",
    "from_files": "build",
    "load_data": "formats",
    "make_split": "splits",
    "probe": "image",
    "read_image": "image",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'opsin.data' has no attribute '{name}'")
    return getattr(import_module(f"opsin.data.{_HOMES[name]}"), name)
