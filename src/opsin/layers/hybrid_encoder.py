"""The hybrid encoder of real-time DETRs: attention within the coarsest map, convolutions across maps.

Paper: DETRs Beat YOLOs on Real-time Object Detection (RT-DETR), 2023, https://arxiv.org/abs/2304.08069, section 4.2: AIFI
(attention-based intra-scale feature interaction) and CCFF (CNN-based cross-scale feature fusion).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.layers.wide import wide_type

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class ConvNorm(nn.Sequential):
    """Convolution, batch normalization, activation (or none); odd kernels keep the size."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1, activation: str = ""
    ) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        if activation:
            self.activation = ACTIVATIONS[activation]()


class RepVggBlock(nn.Module):
    """3x3 and 1x1 convolutions side by side (RepVGG, https://arxiv.org/abs/2101.03697, without the identity)."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, channels, 3)
        self.conv2 = ConvNorm(channels, channels, 1)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.activation(self.conv1(x) + self.conv2(x))
        return out


class CspRepLayer(nn.Module):
    """Two 1x1 branches, one of them through RepVGG blocks, added (the paper's fusion block, figure 5)."""

    def __init__(
        self, in_channels: int, channels: int, blocks: int = 3, expansion: float = 1.0, activation: str = "silu"
    ) -> None:
        super().__init__()
        hidden = int(channels * expansion)
        self.conv1 = ConvNorm(in_channels, hidden, 1, activation=activation)
        self.conv2 = ConvNorm(in_channels, hidden, 1, activation=activation)
        self.bottlenecks = nn.Sequential(*(RepVggBlock(hidden, activation) for _ in range(blocks)))
        same = hidden == channels
        self.conv3 = nn.Identity() if same else ConvNorm(hidden, channels, 1, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv3(self.bottlenecks(self.conv1(x)) + self.conv2(x))
        return out


class Mlp(nn.Module):
    """Linear layers with an activation between them."""

    def __init__(self, in_channels: int, hidden: int, channels: int, depth: int, activation: str = "relu") -> None:
        super().__init__()
        widths = [in_channels, *[hidden] * (depth - 1), channels]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        out: Tensor = self.layers[-1](x)
        return out


class SelfAttention(nn.Module):
    """Multi-head self-attention; positions are added to queries and keys, not to values."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, N, D) to (B, N, D); `mask` (N, N) is true where a row may attend."""
        placed = x + positions.to(x.dtype)
        parts = (self.q_proj(placed), self.k_proj(placed), self.v_proj(x))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v, mask)  # (B, heads, N, D / heads)
        out: Tensor = self.o_proj(seen.transpose(1, 2).flatten(2))
        return out


class EncoderLayer(nn.Module):
    """Self-attention and a two-layer network, each added to its input and normalized after it."""

    def __init__(self, dim: int, num_heads: int, hidden: int, activation: str = "gelu") -> None:
        super().__init__()
        self.self_attn = SelfAttention(dim, num_heads)
        self.self_attn_norm = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, hidden, dim, 2, activation)
        self.mlp_norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = self.self_attn_norm(x + self.self_attn(x, positions))
        out: Tensor = self.mlp_norm(x + self.mlp(x))
        return out


def sine_positions(height: int, width: int, dim: int, like: Tensor, temperature: float = 10_000.0) -> Tensor:
    """Sine and cosine of rows, then of columns, at `dim` / 4 frequencies: (1, height * width, dim)."""
    steps = torch.arange(dim // 4, device=like.device, dtype=wide_type(like)) / (dim // 4)
    frequencies = temperature**-steps
    rows = torch.arange(height, device=like.device, dtype=wide_type(like))[:, None] * frequencies
    columns = torch.arange(width, device=like.device, dtype=wide_type(like))[:, None] * frequencies
    by_row = torch.cat([rows.sin(), rows.cos()], -1)[:, None].expand(height, width, -1)
    by_column = torch.cat([columns.sin(), columns.cos()], -1)[None].expand(height, width, -1)
    return torch.cat([by_row, by_column], -1).flatten(0, 1).unsqueeze(0)


class HybridEncoder(nn.Module):
    """Maps of a backbone to maps of D channels that know of each other.

    Args:
        in_channels: of the maps, finest first; each has half the size of the one before.
        dim: D.
        num_heads: of the attention in the coarsest map.
        hidden: width of the two-layer network after it.
        fuse: makes a block of 2 D to D channels.
        shrink: makes a layer of D channels that halves a map.
        lateral_activation: after the 1x1 convolution of a coarser map ("" for none).
        layers: attention layers.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        dim: int,
        num_heads: int,
        hidden: int,
        fuse: Callable[[], nn.Module],
        shrink: Callable[[], nn.Module],
        lateral_activation: str = "silu",
        layers: int = 1,
    ) -> None:
        super().__init__()
        self.dim = dim
        steps = len(in_channels) - 1
        self.projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, dim, 1, bias=False), nn.BatchNorm2d(dim)) for channels in in_channels
        )
        self.attention = nn.ModuleList(EncoderLayer(dim, num_heads, hidden) for _ in range(layers))
        self.lateral = nn.ModuleList(ConvNorm(dim, dim, 1, activation=lateral_activation) for _ in range(steps))
        self.top_down = nn.ModuleList(fuse() for _ in range(steps))
        self.downsample = nn.ModuleList(shrink() for _ in range(steps))
        self.bottom_up = nn.ModuleList(fuse() for _ in range(steps))

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """(B, C, H, W) of every level to (B, D, H, W), finest first."""
        projected = [layer(one) for layer, one in zip(self.projections, maps, strict=True)]
        height, width = projected[-1].shape[-2:]
        tokens = projected[-1].flatten(2).transpose(1, 2)  # (B, H * W, D)
        positions = sine_positions(height, width, self.dim, tokens)
        for attend in self.attention:
            tokens = attend(tokens, positions)
        projected[-1] = tokens.transpose(1, 2).unflatten(2, (height, width))
        coarse = projected[-1]
        merged: list[Tensor] = []
        for lateral, fuse, fine in zip(self.lateral, self.top_down, projected[-2::-1], strict=True):
            coarse = lateral(coarse)
            merged.append(coarse)
            coarse = fuse(torch.cat([F.interpolate(coarse, scale_factor=2.0, mode="nearest"), fine], 1))
        out = [coarse]
        for shrink, fuse, one in zip(self.downsample, self.bottom_up, reversed(merged), strict=True):
            out.append(fuse(torch.cat([shrink(out[-1]), one], 1)))
        return out
