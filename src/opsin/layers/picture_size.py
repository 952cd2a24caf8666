"""The smallest picture that a network can take, said before a map of it vanishes."""

from __future__ import annotations

from torch import Tensor

from opsin.errors import ShapeError


def require_picture_size(images: Tensor, smallest: int, network: str) -> None:
    """Refuse pictures whose maps would have no pixel left.

    Args:
        images: (B, C, H, W).
        smallest: least H and W, in pixels.
        network: what the message calls the network.

    Raises:
        ShapeError: if H or W is smaller; the message says the smallest size that works.
    """
    height, width = images.shape[-2:]
    if min(height, width) < smallest:
        raise ShapeError(
            f"{network} needs pictures of {smallest} x {smallest} pixels or more; got {height} x {width} (H x W). "
            f"Resize the pictures, or take a network that shrinks them less."
        )
