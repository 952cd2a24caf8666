"""Vision transformer: a picture is a sentence of patches, read by self-attention and nothing else.

Paper: An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale, 2020,
    https://arxiv.org/abs/2010.11929.
Implements: equations 1 to 4, table 1 (Base, Large, Huge; patches of 16, 32 and 14 pixels), position embeddings brought
    to another picture size as in section 3.2; pictures need not be square.
Differs from the paper: one dense layer as head also before pre-training; the head starts small instead of at zero, so
    that every parameter learns from the first step.
Checked against: torchvision 0.29: same state-dict keys, outputs, gradients, parameter count 86,567,656 of ViT-B/16 and
    those of the others; resized position embeddings against timm (tests/oracles/test_models_mobile_inception_vit.py).
Reproduced: not yet run.
Weights: none shipped; torchvision's published files load unchanged: BSD-3-Clause, those trained with SWAG (the only
    ones of vit_h_14) CC-BY-NC 4.0.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.errors import ConfigError, ShapeError
from opsin.models import Classified, Feature

NAMES = ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14")

POSITIONS = "encoder.pos_embedding"


class SelfAttention(nn.Module):
    """Every token asks all tokens (equations 5 to 8 of the paper's appendix A).

    Args:
        dim: D.
        num_heads: parts of D that ask on their own.
        dropout: rate on the attention weights.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        b, n, dim = x.shape
        x = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, N, 3D)
        x = x.view(b, n, 3, self.num_heads, dim // self.num_heads)
        query, key, value = x.permute(2, 0, 3, 1, 4)  # each (B, heads, N, D/heads)
        x = F.scaled_dot_product_attention(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        x = x.transpose(1, 2).reshape(b, n, dim)  # (B, N, D)
        out: Tensor = self.out_proj(x)
        return out


class Block(nn.Module):
    """Attention and a two-layer perceptron, each behind a layer norm and beside a shortcut (equations 2 and 3)."""

    def __init__(self, dim: int, num_heads: int, mlp_dim: int, dropout: float, attention_dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim, eps=1e-6)
        self.self_attention = SelfAttention(dim, num_heads, attention_dropout)
        self.dropout = nn.Dropout(dropout)
        self.ln_2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(dim, mlp_dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(mlp_dim, dim), nn.Dropout(dropout)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.self_attention(self.ln_1(x)))  # (B, N, D)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Encoder(nn.Module):
    """Adds the position embedding, then blocks, then a last layer norm (equations 1 to 4).

    Args:
        num_tokens: N, patches and the class token.
        dim, depth, num_heads, mlp_dim, dropout, attention_dropout: as VisionTransformer.
    """

    def __init__(
        self,
        num_tokens: int,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_dim: int,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__()
        self.pos_embedding = nn.Parameter(torch.empty(1, num_tokens, dim).normal_(std=0.02))
        self.dropout = nn.Dropout(dropout)
        blocks = [
            (f"encoder_layer_{i}", Block(dim, num_heads, mlp_dim, dropout, attention_dropout)) for i in range(depth)
        ]
        self.layers = nn.Sequential(OrderedDict(blocks))
        self.ln = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.ln(self.layers(self.dropout(tokens + self.pos_embedding)))  # (B, N, D)
        return out


class VisionTransformer(nn.Module):
    """Patches, class token, encoder, logits of the class token; see the module's text.

    Args:
        patch_size: pixels on each side of a patch.
        num_classes: K.
        in_channels: C of the pictures.
        image_size: (H, W), multiples of patch_size; other pictures are refused.
        dim: D, width of a token.
        depth: blocks.
        num_heads: heads of the attention; divides dim.
        mlp_dim: width inside the perceptrons.
        dropout: rate after the position embedding, the attention and the dense layers of the blocks.
        attention_dropout: rate on the attention weights.

    Raises:
        ConfigError: if num_heads does not divide dim.
        ShapeError: if the patches do not fill the picture.
    """

    head_names = ("heads.head",)

    def __init__(
        self,
        patch_size: int,
        num_classes: int = 1000,
        in_channels: int = 3,
        image_size: tuple[int, int] = (224, 224),
        dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"num_heads = {num_heads} does not divide dim = {dim}.")
        height, width = image_size
        if height % patch_size or width % patch_size or min(height, width) < patch_size:
            near = [max(patch_size, round(pixels / patch_size) * patch_size) for pixels in image_size]
            raise ShapeError(
                f"Pictures of {height}x{width} cannot be cut into patches of {patch_size}x{patch_size}. Sides are "
                f"multiples of {patch_size}, at least {patch_size}; the nearest size is {near[0]}x{near[1]} "
                f"(task.image_size=[{near[0]},{near[1]}])."
            )
        self.image_size = (height, width)
        self.grid = (height // patch_size, width // patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.conv_proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.encoder = Encoder(
            self.grid[0] * self.grid[1] + 1, dim, depth, num_heads, mlp_dim, dropout, attention_dropout
        )
        head = nn.Linear(dim, num_classes)
        self.heads = nn.Sequential(OrderedDict([("head", head)]))
        self.feature_info = [Feature(dim, patch_size)]
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def adapt_state(self, state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str | None]:
        """Fit published weights: older names of the perceptrons, and position embeddings of another picture size.

        Positions of a square picture are interpolated bicubically, with antialiasing where there will be fewer.

        Args:
            state: names to tensors, as in a file.

        Returns:
            The state that fits, and a sentence about the positions if they were interpolated.
        """
        renamed = {
            name.replace(".mlp.linear_1.", ".mlp.0.").replace(".mlp.linear_2.", ".mlp.3."): tensor
            for name, tensor in state.items()
        }
        found, own = renamed.get(POSITIONS), self.encoder.pos_embedding
        if found is None or found.ndim != 3 or found.shape == own.shape or found.shape[2] != own.shape[2]:
            return renamed, None
        side = math.isqrt(found.shape[1] - 1)
        if side < 1 or side**2 != found.shape[1] - 1:
            return renamed, None
        grid = found[:, 1:].transpose(1, 2).reshape(1, -1, side, side)  # (1, D, side, side)
        resized = F.interpolate(grid.float(), self.grid, mode="bicubic", antialias=True)  # (1, D, H/patch, W/patch)
        patches = resized.flatten(2).transpose(1, 2).to(found.dtype)  # (1, N - 1, D)
        renamed[POSITIONS] = torch.cat([found[:, :1], patches], 1)
        note = f"{POSITIONS} interpolated from {side}x{side} to {self.grid[0]}x{self.grid[1]} patches"
        return renamed, note

    def _tokens(self, images: Tensor) -> Tensor:
        """Encoded class token and patches, (B, 1 + N, D)."""
        if tuple(images.shape[2:]) != self.image_size:
            raise ShapeError(
                f"This network is built for pictures of {self.image_size[0]}x{self.image_size[1]}; got "
                f"{images.shape[2]}x{images.shape[3]}. Build it with that image_size."
            )
        patches = self.conv_proj(images).flatten(2).transpose(1, 2)  # (B, N, D)
        first = self.class_token.expand(images.shape[0], -1, -1)  # (B, 1, D)
        tokens: Tensor = self.encoder(torch.cat([first, patches], 1))
        return tokens

    def forward_pyramid(self, images: Tensor) -> list[Tensor]:
        """One level: the encoded patches as a map, (B, D, H / patch, W / patch)."""
        patches = self._tokens(images)[:, 1:]  # (B, N, D)
        return [patches.transpose(1, 2).reshape(patches.shape[0], -1, *self.grid)]

    def forward(self, images: Tensor) -> Classified:
        return Classified(self.heads(self._tokens(images)[:, 0]))  # (B, K)


vit_b_16 = partial(VisionTransformer, 16)
vit_b_32 = partial(VisionTransformer, 32)
vit_l_16 = partial(VisionTransformer, 16, dim=1024, depth=24, num_heads=16, mlp_dim=4096)
vit_l_32 = partial(VisionTransformer, 32, dim=1024, depth=24, num_heads=16, mlp_dim=4096)
vit_h_14 = partial(VisionTransformer, 14, dim=1280, depth=32, num_heads=16, mlp_dim=5120)
