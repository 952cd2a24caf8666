"""Picture operations on whole batches, each sample with its own strength, on any device.

Every function takes images (B, C, H, W) as uint8 in [0, 255] or float in [0, 1] and gives the same type back.
Arithmetic, rounding included, follows `torchvision.transforms.v2.functional` on single pictures
(tests/oracles/test_transforms.py); torchvision itself takes one strength for a whole batch, so it would need a Python
loop over samples.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

Interpolation = Literal["nearest", "bilinear"]


def bound(images: Tensor) -> float:
    """The largest value that the type of the images holds: 255 for uint8, 1 for floats."""
    return 1.0 if images.is_floating_point() else 255.0


def to_device(values: NDArray[np.generic], device: torch.device) -> Tensor:
    """Bring small host-made parameters to the device of the images; no synchronization."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor if device.type == "cpu" else tensor.to(device, non_blocking=True)


def _per_sample(values: NDArray[np.floating], images: Tensor) -> Tensor:
    return to_device(values.astype(np.float32), images.device).view(-1, 1, 1, 1)  # (B, 1, 1, 1)


def grayscale(images: Tensor) -> Tensor:
    """Luma (B, 1, H, W) as float; floored for uint8 pictures; the mean of the channels when there are not 3."""
    if images.shape[1] == 3:
        red, green, blue = images.unbind(1)
        gray = red.mul(0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]  # (B, 1, H, W)
        return gray if images.is_floating_point() else gray.floor_()
    return images.float().mean(1, keepdim=True) if images.shape[1] != 1 else images.float()


def blend(images: Tensor, others: Tensor | float, factors: NDArray[np.floating]) -> Tensor:
    """`factor * image + (1 - factor) * other`, clamped; others broadcast to (B, C, H, W), factors (B,)."""
    weight = _per_sample(factors, images)
    mixed = images.mul(weight)
    if isinstance(others, Tensor):
        mixed = mixed.addcmul_(1.0 - weight, others)
    return mixed.clamp_(0, bound(images)).to(images.dtype)


def brightness(images: Tensor, factors: NDArray[np.floating]) -> Tensor:
    """Scale values: factor 0 is black, 1 the picture; factors (B,)."""
    return blend(images, 0.0, factors)


def saturation(images: Tensor, factors: NDArray[np.floating]) -> Tensor:
    """Blend with the gray picture: factor 0 is gray; pictures that have not 3 channels stay as they are."""
    return blend(images, grayscale(images), factors) if images.shape[1] == 3 else images


def contrast(images: Tensor, factors: NDArray[np.floating]) -> Tensor:
    """Blend with the mean of the gray picture: factor 0 is one flat gray."""
    return blend(images, grayscale(images).mean((1, 2, 3), keepdim=True), factors)


def sharpness(images: Tensor, factors: NDArray[np.floating]) -> Tensor:
    """Blend with a 3x3 smoothed picture, the outermost pixels kept: 0 is smooth, above 1 sharpens."""
    channels, height, width = images.shape[1:]
    if height <= 2 or width <= 2:
        return images
    kernel = torch.full((3, 3), 1.0 / 13.0, device=images.device)
    kernel[1, 1] = 5.0 / 13.0
    output = images.to(torch.float32, copy=True)
    smooth = F.conv2d(output, kernel.expand(channels, 1, 3, 3), groups=channels)  # (B, C, H - 2, W - 2)
    if not images.is_floating_point():
        smooth = smooth.round_()
    inner = output[..., 1:-1, 1:-1]
    inner.addcmul_(smooth.sub_(inner), 1.0 - _per_sample(factors, images))
    return output.clamp_(0, bound(images)).to(images.dtype)


def posterize(images: Tensor, bits: NDArray[np.integer]) -> Tensor:
    """Keep the highest `bits` (B,), 0 to 8, of every value."""
    if images.is_floating_point():
        levels = _per_sample(2.0 ** bits.astype(np.float64), images)
        return torch.minimum(images.mul(levels).floor_().clamp_(min=0), levels - 1) / levels
    masks = (0xFF << (8 - bits.astype(np.int64))) & 0xFF
    return images & to_device(masks.astype(np.uint8), images.device).view(-1, 1, 1, 1)


def solarize(images: Tensor, thresholds: NDArray[np.floating]) -> Tensor:
    """Invert values at or above the threshold (B,), given in the range of the images."""
    return torch.where(images >= _per_sample(thresholds, images), (bound(images) - images).to(images.dtype), images)


def autocontrast(images: Tensor) -> Tensor:
    """Stretch every channel of every picture to the full range; flat channels stay as they are."""
    values = images.float()
    low, high = values.amin((2, 3), keepdim=True), values.amax((2, 3), keepdim=True)  # (B, C, 1, 1)
    flat = high == low
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / bound(images)))
    return values.sub(torch.where(flat, 0.0, low)).div_(scale).clamp_(0, bound(images)).to(images.dtype)


def equalize(images: Tensor) -> Tensor:
    """Make the histogram of every channel of every picture flat, as Pillow does; floats go through 256 bins."""
    if images.is_floating_point():
        return equalize(images.mul(255.999).to(torch.uint8)).to(images.dtype) / 255.0
    size, channels, height, width = images.shape
    flat = images.reshape(size * channels, height * width).long()  # (B*C, H*W)
    histogram = flat.new_zeros((size * channels, 256)).scatter_add_(1, flat, torch.ones_like(flat))
    total = histogram.cumsum(1)
    last = histogram.gather(1, total.argmax(1, keepdim=True))  # (B*C, 1) count of the highest value in use
    step = (height * width - last).div(255, rounding_mode="floor")
    safe = step.clamp(min=1)
    table = (total + safe.div(2, rounding_mode="floor")).div(safe, rounding_mode="floor").clamp_(max=255)
    table = F.pad(table, (1, -1)).to(torch.uint8)  # value v looks up the count below v
    equal = table.gather(1, flat)
    return torch.where(step != 0, equal, images.reshape(size * channels, -1)).view(size, channels, height, width)


def affine_matrices(
    angles: NDArray[np.floating],
    translate: NDArray[np.floating],
    scale: NDArray[np.floating],
    shear: NDArray[np.floating],
    center: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Inverse matrices (B, 2, 3) in pixels about the image centre, as torchvision's `affine` makes them.

    Args:
        angles: clockwise degrees (B,).
        translate: pixels (B, 2), x and y.
        scale: (B,).
        shear: degrees (B, 2), x and y.
        center: fixed point (B, 2) in pixels, (0, 0) being the image centre.
    """
    angle, (shear_x, shear_y) = np.radians(angles), np.radians(shear).T
    a = np.cos(angle - shear_y) / np.cos(shear_y)
    b = -(a * np.tan(shear_x) + np.sin(angle))
    c = np.sin(angle - shear_y) / np.cos(shear_y)
    d = np.cos(angle) - c * np.tan(shear_x)
    linear = np.stack([d, -b, -c, a], 1).reshape(-1, 2, 2) / scale[:, None, None]
    moved = center - np.einsum("bij,bj->bi", linear, center + translate)
    return np.concatenate([linear, moved[:, :, None]], 2)


def affine(
    images: Tensor, matrices: NDArray[np.floating], interpolation: Interpolation = "bilinear", fill: float = 0.0
) -> Tensor:
    """Resample every picture by its own inverse matrix (B, 2, 3) from `affine_matrices`.

    Args:
        images: (B, C, H, W), uint8 or float.
        matrices: from output to input pixels, both counted from the image centre.
        interpolation: `bilinear` or `nearest`.
        fill: value outside the picture, as a share of the range.
    """
    height, width = images.shape[2:]
    theta = to_device(matrices.astype(np.float32), images.device)  # (B, 2, 3)
    x = torch.linspace((1.0 - width) * 0.5, (width - 1.0) * 0.5, width, device=images.device)
    y = torch.linspace((1.0 - height) * 0.5, (height - 1.0) * 0.5, height, device=images.device)
    base = torch.stack(
        [x.expand(height, width), y[:, None].expand(height, width), torch.ones_like(x).expand(height, width)], -1
    )
    half = torch.tensor([0.5 * width, 0.5 * height], device=images.device)
    grid = base.view(1, -1, 3) @ (theta.transpose(1, 2) / half)  # (B, H*W, 2) in [-1, 1]
    values = images.to(torch.float32)
    if fill:
        values = values - fill * bound(images)
    moved = F.grid_sample(values, grid.view(-1, height, width, 2), interpolation, "zeros", align_corners=False)
    if fill:
        moved = moved + fill * bound(images)
    return moved if images.is_floating_point() else moved.round_().to(images.dtype)
