"""Receptive fields found by gradient: which pixels a cell of a layer can depend on, and on which it does.

Theoretical: in a copy of the network every weight is made positive, so that nothing cancels, activations let everything
pass, largest values become means, and normalization does nothing; then every pixel that the cell is wired to has a gradient
above 0. Effective (Luo et al. 2016, https://arxiv.org/abs/1701.04128): the size of the gradient of the network as it is.
Statistics that normalization takes over the picture are not counted.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.models.builder import evaluating
from opsin.transfer.features import find_layer, tapped

REACH = (
    1 - 0.9545
)  # share of the largest gradient above which a pixel counts as effective (two deviations of a Gaussian)
BRIGHT = 255.0  # of all pixels: above any mean that is taken away, so that nothing becomes negative
_PASS = (
    nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.LocalResponseNorm, nn.ReLU, nn.ReLU6, nn.GELU,
    nn.SiLU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.PReLU, nn.Tanh, nn.modules.dropout._DropoutNd,
)  # fmt: skip


class Window(NamedTuple):
    """Pixels of the model's input: left, top, right, bottom; right and bottom are the first outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.bottom - self.top, self.right - self.left


class Wiring:
    """Finds which pixels cells of a layer are wired to.

    Args:
        model: a network that takes pictures; a copy is kept, it is left as it was.
        layer: its name.
        size: (C, H, W) of a picture.

    Raises:
        UnknownName: if there is no such layer.
        ConfigError: if the layer gives no map.
    """

    def __init__(self, model: nn.Module, layer: str, size: tuple[int, int, int]) -> None:
        self.layer, self.size = layer, size
        find_layer(model, layer)
        self._copy = _positive(copy.deepcopy(model).cpu())
        self._found: dict[tuple[int, int], Window] = {}
        with torch.no_grad():
            self.cells = (self._output(torch.full((1, *size), BRIGHT, dtype=torch.float64)).shape[2:])[:2]  # (h, w)

    def window(self, row: int, column: int) -> Window:
        """The smallest window that holds every pixel that a cell is wired to; at the border it ends there."""
        if (row, column) not in self._found:
            with torch.enable_grad():
                pixels = torch.full((1, *self.size), BRIGHT, dtype=torch.float64, requires_grad=True)
                (gradient,) = torch.autograd.grad(self._output(pixels)[0, :, row, column].sum(), pixels)
            self._found[row, column] = _window(gradient[0].abs().sum(0) > 0)
        return self._found[row, column]

    def _output(self, pixels: Tensor) -> Tensor:
        with tapped(self._copy, self.layer) as seen, evaluating(self._copy):
            self._copy(pixels)
        return as_map(seen, self.layer)


def effective(model: nn.Module, layer: str, pictures: Tensor) -> Tensor:
    """Mean size of the gradient of a layer's middle cell, over pictures: (H, W), the largest 1.

    Args:
        model: in any mode; left as it was.
        layer: its name.
        pictures: (B, C, H, W) as the model takes them.
    """
    device = next(model.parameters()).device
    with torch.enable_grad(), tapped(model, layer) as seen, evaluating(model):
        pixels = pictures.detach().to(device, torch.float32).requires_grad_()
        model(pixels)
        output = as_map(seen, layer)  # (B, D, h, w)
        middle = output[:, :, output.shape[2] // 2, output.shape[3] // 2]
        (gradient,) = torch.autograd.grad(middle.sum(), pixels)
    found = gradient.abs().sum(1).mean(0).cpu()  # (H, W)
    return found / found.max().clamp_min(1e-30)


def effective_window(weights: Tensor) -> Window:
    """The smallest window with every pixel whose weight counts, of what `effective` gives."""
    return _window(weights > REACH)


def as_map(seen: list[Tensor], layer: str) -> Tensor:
    """What a tapped layer gave as a map (B, D, h, w).

    Raises:
        ConfigError: if it gave none.
    """
    if not seen or seen[-1].ndim != 4:
        shape = tuple(seen[-1].shape[1:]) if seen else "nothing"
        raise ConfigError(f"Layer '{layer}' gives {shape}; expected a map (channels, rows, columns). Choose another.")
    return seen[-1]


def _window(mask: Tensor) -> Window:
    rows, columns = torch.nonzero(mask.any(1)).flatten(), torch.nonzero(mask.any(0)).flatten()
    if len(rows) == 0:
        return Window(0, 0, 0, 0)
    return Window(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)


def _positive(model: nn.Module) -> nn.Module:
    """The network with positive weights, means in place of largest values, and nothing that stops or mixes what passes."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _PASS):
                setattr(module, name, nn.Identity())
            elif isinstance(child, nn.MaxPool2d):
                setattr(module, name, _MeanPool(child))
    with torch.no_grad():
        for parameter in model.parameters():
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            parameter.fill_(1 / fan_in if parameter.ndim > 1 else 0.5)  # values stay near 1, also behind many layers
    return model.double()


class _MeanPool(nn.Module):
    """The mean over the windows of a max pooling, dilation included."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, images: Tensor) -> Tensor:
        """Every cell of a window has a share of what comes out."""
        channels = images.shape[1]
        pool = self.pool
        rows, columns = _pair(pool.kernel_size)
        kernel = images.new_full((channels, 1, rows, columns), 1 / (rows * columns))
        wanted = pool(images).shape[2:]
        stride, padding, dilation = _pair(pool.stride), _pair(pool.padding), _pair(pool.dilation)
        spare = [
            max(
                0,
                (wanted[i] - 1) * stride[i]
                + dilation[i] * ((rows, columns)[i] - 1)
                + 1
                - images.shape[2 + i]
                - 2 * padding[i],
            )
            for i in (0, 1)
        ]  # of windows that reach over the end (ceil_mode)
        padded = nn.functional.pad(images, (padding[1], padding[1] + spare[1], padding[0], padding[0] + spare[0]))
        return nn.functional.conv2d(padded, kernel, stride=stride, dilation=dilation, groups=channels)


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
