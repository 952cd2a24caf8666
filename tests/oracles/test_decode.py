"""Decoded pixels equal Pillow's on real photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from opsin.data.image import probe, read_image

SOURCES = {
    "kodak": "*.png",
    "cats-dogs": "train/*/*.jpg",
    "bccd": "JPEGImages/*.jpg",
    "membrane": "image/*.png",
    "style-images": "*.jpg",
    "face-landmarks": "*.jpg",
}


@pytest.mark.parametrize("source", sorted(SOURCES))
def test_same_pixels_as_pillow(shared_data: Path, source: str) -> None:
    files = sorted((shared_data / source).glob(SOURCES[source]))[:25]
    if not files:
        pytest.skip(f"{source} is not in {shared_data}")
    for path in files:
        image, spec = read_image(path)
        with Image.open(path) as opened:
            want = np.asarray(ImageOps.exif_transpose(opened))
        want = want[..., None] if want.ndim == 2 else want
        assert np.array_equal(image.permute(1, 2, 0).numpy(), want), path
        header = probe(path)
        assert header.size == want.shape[:2]
        assert header.spec == spec


def test_reduced_jpeg_equals_pillows_draft(shared_data: Path) -> None:
    for path in sorted((shared_data / "cats-dogs").glob("train/*/*.jpg"))[:20]:
        image, _ = read_image(path, reduce_to=100)
        with Image.open(path) as opened:
            short = min(opened.size)
            scale = next((s for s in (8, 4, 2) if -(-short // s) >= 100), 1)
            opened.draft(None, (opened.width // scale, opened.height // scale))
            want = np.asarray(opened)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), want), path
