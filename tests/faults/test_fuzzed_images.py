"""500 broken or odd files: no crash, no hang, no silent change."""

from __future__ import annotations

import contextlib
import io
import time

import numpy as np
import pytest
import torch
from PIL import Image

from opsin.data.image import PICTURE_SUFFIXES, probe, read_image
from opsin.errors import DataError

COUNT = 500
KINDS = (
    "JPEG",
    "PNG",
    "WEBP",
    "TIFF",
    "BMP",
    "GIF",
    "PPM",
    "JPEG2000",
    "ICO",
    "TGA",
    "PCX",
    "AVIF",
    "JPEG-CMYK",
    "PNG-16",
    "TIFF-LZW",
)


def originals() -> dict[str, bytes]:
    y, x = np.mgrid[:50, :64]
    rgb = np.stack([(x * 3 + y) % 256, (y * 5) % 256, (x * y) % 256], -1).astype(np.uint8)
    files = {}
    for kind in KINDS:
        name, _, variant = kind.partition("-")
        image: Image.Image = Image.fromarray(rgb)
        options: dict[str, object] = {}
        if variant == "CMYK":
            image = image.convert("CMYK")
        elif variant == "16":
            image = Image.fromarray(rgb[..., 0].astype(np.uint16) * 257)
        elif variant == "LZW":
            options = {"compression": "tiff_lzw"}
        file = io.BytesIO()
        try:
            image.save(file, name, **options)
        except (KeyError, OSError):
            continue  # this Pillow was built without the encoder
        files[kind] = file.getvalue()
    return files


def broken(rng: np.random.Generator, data: bytes) -> tuple[str, bytes]:
    how = str(rng.choice(["bits", "cut", "zeros", "random", "noise", "header", "insert", "swap", "repeat"]))
    out = bytearray(data)
    if how == "bits":
        for at in rng.integers(0, len(out), int(rng.integers(1, 12))):
            out[at] ^= 1 << int(rng.integers(0, 8))
    elif how == "cut":
        out = out[: int(rng.integers(0, len(out)))]
    elif how == "zeros":
        at = int(rng.integers(0, len(out)))
        out[at : at + 200] = bytes(min(200, len(out) - at))
    elif how == "random":
        out = bytearray(rng.bytes(int(rng.integers(0, 3000))))
    elif how == "noise":
        out = out[:16] + bytearray(rng.bytes(len(out)))
    elif how == "header":
        for at in rng.integers(0, min(64, len(out)), 4):
            out[at] = int(rng.integers(0, 256))
    elif how == "insert":
        at = int(rng.integers(0, len(out)))
        out[at:at] = rng.bytes(30)
    elif how == "swap":
        half = len(out) // 2
        out = out[half:] + out[:half]
    else:
        out = out + out
    return how, bytes(out)


def test_broken_files_are_errors_or_pictures_never_crashes_or_hangs() -> None:
    files = originals()
    rng = np.random.default_rng(7)
    outcomes = {"error": 0, "picture": 0}
    slowest, unnamed = 0.0, 0
    for i in range(COUNT):
        kind = KINDS[i % len(KINDS)]
        if kind not in files:
            continue
        how, data = broken(rng, files[kind])
        start = time.perf_counter()
        try:
            image, spec = read_image(data, name=f"{i}-{kind}-{how}", max_pixels=4_000_000)
        except DataError as error:
            outcomes["error"] += 1
            unnamed += not str(error).startswith(f"{i}-{kind}-{how}: ")
        else:
            outcomes["picture"] += 1
            assert image.ndim == 3
            assert image.shape[0] == spec.channels
            assert str(image.dtype) == f"torch.{spec.dtype}"
            again, _ = read_image(data, max_pixels=4_000_000)
            assert torch.equal(image, again) or image.dtype == torch.float32
        with contextlib.suppress(DataError):
            probe(data)
        slowest = max(slowest, time.perf_counter() - start)
    assert outcomes["error"] > 150
    assert unnamed == 0
    assert slowest < 10


@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "TIFF-LZW", "JPEG-CMYK", "PNG-16"]
)
def test_no_cut_gives_another_picture_in_silence(kind: str) -> None:
    """Wherever a file is cut: an error, or exactly the whole picture."""
    data = originals()[kind]
    whole, _ = read_image(data)
    for length in np.unique(np.linspace(0, len(data) - 1, 60).astype(int)):
        try:
            image, _ = read_image(data[:length])
        except DataError:
            continue
        assert torch.equal(image, whole), f"{kind} cut at {length} of {len(data)}"


def test_no_flipped_bit_in_png_gives_other_pixels_in_silence() -> None:
    data = originals()["PNG"]
    whole, _ = read_image(data)
    rng = np.random.default_rng(3)
    for at in rng.integers(8, len(data), 100).tolist():
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(0, 8))
        try:
            image, _ = read_image(bytes(flipped))
        except DataError:
            continue
        assert torch.equal(image, whole), f"byte {at}"


@pytest.mark.parametrize("suffix", sorted(PICTURE_SUFFIXES))
def test_a_wrong_ending_does_not_matter(suffix: str, tmp_path: object) -> None:
    path = tmp_path / f"picture{suffix}"  # type: ignore[operator]
    path.write_bytes(originals()["PNG"])
    assert read_image(path)[0].shape == (3, 50, 64)


def test_files_that_are_something_else() -> None:
    for data in (
        b"<html>not found</html>",
        b"%PDF-1.7\n",
        b"PK\x03\x04" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n" + b"x" * 100,
        b"\x80\x04].",
    ):
        with pytest.raises(DataError):
            read_image(data)


@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "JPEG2000"])
def test_ramps_of_12_and_16_bits_are_exact(kind: str, bits: int) -> None:
    ramp = np.arange(2**bits, dtype=np.uint16).reshape(64, -1)
    file = io.BytesIO()
    Image.fromarray(ramp).save(file, kind, **({"irreversible": False} if kind == "JPEG2000" else {}))
    image, spec = read_image(file.getvalue())
    assert spec.dtype == "uint16"
    assert np.array_equal(image[0].numpy(), ramp)
