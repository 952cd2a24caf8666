"""Files of torchvision's detectors: names of its first layouts, and rows of classifiers that are for no class.

Its classifiers have 91 rows for COCO's 80 classes: a background, and numbers that COCO gave to no class.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from torch import Tensor

_FIRST_LAYOUT = (  # what its modules rename when they load a file: a convolution became a block, or a list a list of blocks
    (r"((?:.*\.)?fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", r"\1.0.\2"),
    (r"(rpn\.head\.conv)\.(weight|bias)", r"\1.0.0.\2"),
    *((rf"(head\.\w+\.conv)\.{2 * i}\.(weight|bias)", rf"\1.{i}.0.\2") for i in range(4)),
)


@lru_cache(maxsize=1)
def named_classes() -> tuple[int, tuple[int, ...]]:
    """How many rows torchvision's files for COCO have, and which of them are for classes with a name."""
    from torchvision.models import get_model_weights

    names = get_model_weights("fasterrcnn_resnet50_fpn").DEFAULT.meta["categories"]
    return len(names), tuple(i for i, name in enumerate(names) if name not in ("__background__", "N/A"))


def rows_for(rows: int, num_classes: int, background: bool) -> tuple[int, ...] | None:
    """Which rows of a file a classifier takes; None for all, also where file and classifier do not fit.

    Args:
        rows: of the file, for one anchor.
        num_classes: K, without background.
        background: whether the classifier has a row for background before the classes; torchvision's have one also
            where nothing ever is of that class.
    """
    total, named = named_classes()
    first = (0,) if background else ()
    if rows == total and num_classes == len(named):
        return (*first, *named)
    if rows == total == num_classes + 1 and not background:
        return tuple(range(1, rows))
    return None


def adapted(
    state: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    classifiers: Mapping[str, tuple[int, int]],
    num_classes: int,
    background: bool,
) -> tuple[dict[str, Tensor], str | None]:
    """A file's tensors under the names here, with only those rows of the classifiers that are for classes here.

    Args:
        state: tensors by name.
        own: the model's.
        classifiers: names of their layers, with the number of anchors and of values per class and anchor.
        num_classes: K, without background.
        background: whether the classifier has a row for background.

    Returns:
        The tensors, and what was done in words, or None.
    """
    found = {name if name in own else _renamed(name): tensor for name, tensor in state.items()}
    note = None
    for layer, (anchors, values) in classifiers.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            tensor = found.get(name)
            if tensor is None or len(tensor) % (anchors * values):
                continue
            rows = len(tensor) // (anchors * values)
            chosen = rows_for(rows, num_classes, background)
            if chosen is None:
                continue
            shape = tensor.shape[1:]
            found[name] = tensor.reshape(anchors, rows, values, *shape)[:, list(chosen)].reshape(-1, *shape)
            note = f"{len(chosen)} of {rows} rows of the classifiers taken: the others are for no class"
    return found, note


def _renamed(name: str) -> str:
    for pattern, becomes in _FIRST_LAYOUT:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, becomes, name)
    return name
