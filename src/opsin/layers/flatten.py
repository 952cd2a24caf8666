"""Pictures to rows, for networks whose first dense layer fixes the picture size."""

from __future__ import annotations

from torch import Tensor, nn

from opsin.errors import ShapeError


class FlattenPixels(nn.Module):
    """Flattens (B, C, H, W) to (B, C*H*W), and says it clearly when C, H or W are not the ones it was built for.

    Args:
        in_channels: C.
        image_size: (H, W).
    """

    def __init__(self, in_channels: int, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.shape = (in_channels, image_size[0], image_size[1])
        self.num_values = in_channels * image_size[0] * image_size[1]

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            expected = ", ".join(str(size) for size in self.shape)
            raise ShapeError(f"This network is built for pictures (B, {expected}); got {tuple(images.shape)}.")
        return images.flatten(1)
