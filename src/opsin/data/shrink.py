"""Training pictures brought to a smaller size once, when they are read.

Random crops of large photographs spend most of their time on pixels that the crop shrinks away. With pictures that are
shrunk before they are cached, an epoch from the cache costs less and more pictures fit; small crops lose detail.
"""

from __future__ import annotations

from typing import Any

from opsin.data.resize import resize_shortest
from opsin.errors import ConfigError
from opsin.task import Sample


class Shrunk:
    """A data set whose larger pictures are resized to a shorter side of `side` pixels (antialiased).

    Args:
        dataset: what is read; has `read(i, reduce_to=None)`, `id(i)` and a length.
        side: pixels.
    """

    def __init__(self, dataset: Any, side: int) -> None:
        self.dataset, self.side = dataset, side

    def __len__(self) -> int:
        return len(self.dataset)

    def id(self, i: int) -> str:
        """Id of sample i."""
        found: str = self.dataset.id(i)
        return found

    def read(self, i: int, reduce_to: int | None = None) -> Sample:
        """Sample i; `reduce_to` never asks for fewer pixels than `side`."""
        sample: Sample = self.dataset.read(i, None if reduce_to is None else max(reduce_to, self.side))
        if min(sample.image.shape[1:]) <= self.side:
            return sample
        size = sample.original_size or (sample.image.shape[1], sample.image.shape[2])
        return Sample(sample.id, resize_shortest(sample.image, self.side)[0], sample.target, size)


def shrunk(dataset: Any, side: int | None, least: int | None) -> Any:
    """The data set, with `data.shrink` applied if it is set.

    Args:
        dataset: what is read.
        side: the setting.
        least: pixels on the shorter side that the task works with, None if it does not take larger pictures.

    Raises:
        ConfigError: if the task could not keep its promise with pictures of that size.
    """
    if side is None:
        return dataset
    if least is None:
        raise ConfigError(
            "data.shrink is for photographs that are cropped at random; this task takes small pictures as they are. "
            "Leave data.shrink out."
        )
    if side < least:
        raise ConfigError(
            f"data.shrink={side} leaves fewer pixels than the task works with. Give at least {least}, or set a smaller "
            "task.image_size."
        )
    return Shrunk(dataset, side)
