"""Weight files of other frameworks, one format per file: read as layers, in order, without running anything from them.

A format module has a literal `NAMES`, `sniff(path) -> bool` (by content, never by suffix) and `read(path) -> Source`. How
the layers are laid onto a network of ours is the same for all formats and stands in opsin.models.importers.mapping.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from opsin.errors import CheckpointError, OpsinError
from opsin.registry import Registry

importers = Registry("weight format", "opsin.models.importers")

Array = NDArray[Any]


@dataclass(frozen=True)
class SourceLayer:
    """One layer with weights, as another framework stores it.

    Args:
        name: as in the file.
        kind: "conv", "depthwise", "dense", "batchnorm", or the file's own word for anything else.
        arrays: by role: kernel and bias; or gamma, beta, mean and variance.
        layout: axes of the kernel: "HWIO", "HWCM" (depthwise; M maps per channel), "IO", or as here, "OIHW" and "OI".
        epsilon: what batch norm adds to the variance; None if the file does not say it.
        after: name of the layer that this batch norm follows directly; "" if there is none; None if the file does not tell.
        stride: of a convolution; None if the file does not tell.
        padding: of a convolution: "same" or "valid" as TensorFlow means it, or pixels: "1" on all sides, else
            "0,0,1,1" (above, left, below, right); "" if the file does not tell.
    """

    name: str
    kind: str
    arrays: Mapping[str, Array]
    layout: str = ""
    epsilon: float | None = None
    after: str | None = None
    stride: int | None = None
    padding: str = ""


@dataclass(frozen=True)
class Source:
    """What a file holds.

    Args:
        format: e.g. "keras-h5".
        layers: in the order of execution as far as the file tells; those of one kind are in order among themselves.
        epsilon: of batch norms whose own is not in the file: the default of the framework.
        flattened: order of the pixels in front of the first dense layer: "HWC" or "CHW".
        notes: what a reader of the report should know.
        uncertain: why layers of one kind may be in another order after all.
    """

    format: str
    layers: tuple[SourceLayer, ...]
    epsilon: float = 1e-5
    flattened: str = "CHW"
    notes: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()


def format_of(path: Path) -> str | None:
    """Name of the format that a file is in; None if it is none of these."""
    return next((name for name in importers if importers.module(name).sniff(path)), None)


def read(path: Path, format: str) -> Source:
    """Read a file.

    Raises:
        CheckpointError: if it is damaged, or holds no weights.
        MissingExtra: if the package that reads it is not installed.
    """
    try:
        source: Source = importers.module(format).read(path)
    except OpsinError:
        raise
    except Exception as error:  # damaged files make the parsers raise anything
        why = str(error).partition("\n")[0]
        raise CheckpointError(
            f"{path}: the file looks like {format} but cannot be read: truncated or damaged ({why}). Copy it again."
        ) from error
    if not source.layers:
        raise CheckpointError(f"{path}: no layer with weights was found in this {format} file.")
    for layer in source.layers:
        for role, array in layer.arrays.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise CheckpointError(f"{path}: {role} of {layer.name} holds values that are not finite.")
    return source
