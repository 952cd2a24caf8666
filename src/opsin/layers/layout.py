"""What to say of a shape whose channels stand last."""

from __future__ import annotations

from collections.abc import Sequence


def channels_last_hint(shape: Sequence[int], channels: int, give: str) -> str:
    """A sentence for an error if a shape (..., H, W, C) was given where (..., C, H, W) belongs; else nothing.

    Args:
        shape: as given, of one picture or of a batch.
        channels: that are expected.
        give: what to do about it.
    """
    if len(shape) < 3 or shape[-3] == channels or shape[-1] != channels:
        return ""
    return f" This looks like ({'B, ' * (len(shape) == 4)}H, W, C): give {give}."
