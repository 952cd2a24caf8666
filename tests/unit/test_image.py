"""Decoding: every mode, every depth, every orientation; errors that name the file."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from opsin.data.image import conversion_name, convert, probe, read_image, spec_of
from opsin.errors import DataError, ShapeError
from opsin.task import ImageSpec


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def smooth(height: int = 45, width: int = 67, channels: int = 3) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [128 + 100 * np.sin(x / (5 + k) + y / (7 + 2 * k)) for k in range(channels)]
    return np.stack(planes, -1).round().astype(np.uint8)


def png16(pixels: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W, C) uint16, written chunk by chunk."""
    height, width, channels = pixels.shape
    color = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


MODES = [
    "1",
    "L",
    "LA",
    "P",
    "RGB",
    "RGBA",
    "I;16",
    "CMYK",
    "YCbCr",
    "LAB",
    "I",
    "F",
    "La",
    "RGBa",
    "PA",
    "RGBX",
    "HSV",
]
FILES = {
    "1": "PNG",
    "L": "PNG",
    "LA": "PNG",
    "P": "PNG",
    "RGB": "PNG",
    "RGBA": "PNG",
    "I;16": "PNG",
    "CMYK": "TIFF",
    "YCbCr": "TIFF",
    "LAB": "TIFF",
    "I": "TIFF",
    "F": "TIFF",
    "RGBX": "TIFF",
}
CHANNELS = {
    "1": 1,
    "L": 1,
    "LA": 2,
    "P": 3,
    "RGB": 3,
    "RGBA": 4,
    "I;16": 1,
    "CMYK": 3,
    "YCbCr": 3,
    "LAB": 3,
    "I": 1,
    "F": 1,
    "RGBX": 3,
}


@pytest.mark.parametrize("mode", sorted(FILES))
def test_every_mode_keeps_its_natural_channels(mode: str) -> None:
    base = Image.fromarray(smooth())
    if mode in ("LAB",):
        image = Image.merge("LAB", base.split())
    elif mode == "I;16":
        image = Image.fromarray(smooth(channels=1)[..., 0].astype(np.uint16) * 200)
    else:
        image = base.convert(mode)
    data = encoded(image, FILES[mode])
    tensor, spec = read_image(data)
    assert tensor.shape == (CHANNELS[mode], 45, 67)
    assert spec.channels == CHANNELS[mode]
    assert str(tensor.dtype) == f"torch.{spec.dtype}"
    assert spec.dtype == {"I;16": "uint16", "I": "float32", "F": "float32"}.get(mode, "uint8")
    assert probe(data).spec[:2] == spec[:2]
    if mode in ("L", "LA", "RGB", "RGBA", "F", "I;16"):
        want = np.asarray(image)
        want = want[..., None] if want.ndim == 2 else want
        assert np.array_equal(tensor.permute(1, 2, 0).numpy(), want)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "RGBX", "I;16B", "I;16L"])
def test_modes_that_no_common_file_has(mode: str) -> None:
    from opsin.data.image import _pixels, _spec_of_mode

    source = {"La": "LA", "RGBa": "RGBA"}.get(mode)
    base = Image.fromarray(smooth())
    image = (
        base.convert(source).convert(mode)
        if source
        else Image.new(mode, (67, 45), 7 if mode.startswith("I") else None)
        if mode.startswith(("I", "PA"))
        else base.convert(mode)
    )
    pixels = _pixels(image)
    assert pixels.shape == (45, 67, _spec_of_mode(image).channels)
    if mode.startswith("I"):
        assert pixels.dtype == np.uint16
        assert (pixels == 7).all()


def test_palette_with_transparency_becomes_rgba() -> None:
    image = Image.fromarray(smooth()).quantize(16)
    data = encoded(image, "PNG", transparency=3)
    tensor, spec = read_image(data)
    assert spec.channels == 4
    assert set(tensor[3].unique().tolist()) == {0, 255}
    assert probe(data).spec == spec


def test_grey_with_a_transparent_value_becomes_grey_and_alpha() -> None:
    data = encoded(Image.fromarray(smooth(channels=1)[..., 0]), "PNG", transparency=128)
    assert read_image(data)[1].channels == 2


def test_one_bit_pictures_are_0_and_255() -> None:
    data = encoded(Image.fromarray(smooth(channels=1)[..., 0]).convert("1"), "PNG")
    assert set(read_image(data)[0].unique().tolist()) == {0, 255}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_with_16_bits_per_channel_is_exact(channels: int) -> None:
    pixels = np.arange(40 * 41 * channels, dtype=np.uint32).reshape(40, 41, channels) * 9 % 65536
    tensor, spec = read_image(png16(pixels.astype(np.uint16)))
    assert spec == ImageSpec(channels, "uint16", (0.0, 65535.0))
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), pixels)
    assert probe(png16(pixels.astype(np.uint16))).spec == spec


def test_12_bit_pgm_is_not_rescaled() -> None:
    ramp = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    data = b"P5\n# made by a camera\n64 64\n4095\n" + ramp.astype(">u2").tobytes()
    tensor, spec = read_image(data)
    assert spec == ImageSpec(1, "uint16", (0.0, 4095.0))
    assert np.array_equal(tensor[0].numpy(), ramp)
    with pytest.raises(DataError, match="truncated"):
        read_image(data[:-1])
    plain = b"P2 64 64 4095\n" + b" ".join(str(v).encode() for v in ramp.ravel())
    assert np.array_equal(read_image(plain)[0][0].numpy(), ramp)


@pytest.mark.parametrize("order", ["<", ">"])
def test_16_bit_tiff_in_both_byte_orders(order: str) -> None:
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    data = tiff(ramp, order, bits=16)
    tensor, spec = read_image(data)
    assert spec.dtype == "uint16"
    assert np.array_equal(tensor[0].numpy(), ramp)


def tiff(pixels: np.ndarray, order: str, bits: int) -> bytes:
    """An uncompressed grey TIFF, or RGB when pixels are (H, W, 3)."""
    height, width = pixels.shape[:2]
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    body = pixels.astype(np.dtype(f"{order}u2")).tobytes()
    entries = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if channels == 1 else 2),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(body)),
    ]
    extra = struct.pack(order + "3H", bits, bits, bits) if channels == 3 else b""
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    entries += [(258, 3, channels, bits if channels == 1 else start), (273, 4, 1, start + len(extra))]
    out = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in sorted(entries):
        out += struct.pack(order + "HHI", tag, kind, count)
        out += struct.pack(order + "HH", value, 0) if kind == 3 and count == 1 else struct.pack(order + "I", value)
    return out + struct.pack(order + "I", 0) + extra + body


def test_depth_that_would_be_lost_is_an_error_that_says_what_to_do() -> None:
    pixels = np.arange(30 * 20 * 3, dtype=np.uint16).reshape(20, 30, 3) * 30
    with pytest.raises(DataError, match=r"scan.tif: TIFF with 3 channels of 16 bits .* PNG"):
        read_image(tiff(pixels, "<", 16), name="scan.tif")


def test_integers_that_float_cannot_hold_are_refused() -> None:
    image = Image.fromarray(np.array([[2**24 + 1, 5]], np.int32))
    with pytest.raises(DataError, match="too large to be kept exactly"):
        read_image(encoded(image, "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow_applies_it(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif.get_ifd(0x8769)[0x9003] = "2024:05:01 12:30:00"
    options = {"lossless": True} if kind == "WEBP" else {"quality": 90} if kind == "JPEG" else {}
    data = encoded(Image.fromarray(smooth()), kind, exif=exif, **options)
    want = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    tensor, _ = read_image(data)
    assert np.array_equal(tensor.permute(1, 2, 0).numpy(), want)
    header = probe(data)
    assert header.size == want.shape[:2]
    assert header.orientation == orientation
    if kind != "TIFF":  # Pillow writes no EXIF block into TIFF
        assert header.taken == "2024:05:01 12:30:00"


def test_the_first_frame_of_an_animation_is_read() -> None:
    frames = [Image.fromarray(np.full((8, 9), value, np.uint8)) for value in (10, 200)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    tensor, _ = read_image(file.getvalue())
    assert tensor.shape[1:] == (8, 9)
    assert tensor.unique().tolist() == [10]


def test_cmyk_jpeg_falls_back_to_pillow() -> None:
    image = Image.fromarray(smooth()).convert("CMYK")
    data = encoded(image, "JPEG")
    want = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.array_equal(read_image(data)[0].permute(1, 2, 0).numpy(), want)
    assert probe(data).mode == "CMYK"


@pytest.mark.parametrize(
    ("reduce_to", "size"),
    [
        (None, (301, 403)),
        (301, (301, 403)),
        (151, (151, 202)),
        (150, (151, 202)),
        (76, (76, 101)),
        (30, (38, 51)),
        (1, (38, 51)),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg_is_reduced_by_powers_of_two_while_it_stays_large_enough(
    reduce_to: int | None, size: tuple[int, int], mode: str
) -> None:
    data = encoded(Image.fromarray(smooth(301, 403)).convert(mode), "JPEG")
    first, _ = read_image(data, reduce_to=reduce_to)
    assert tuple(first.shape[1:]) == size
    assert torch.equal(first, read_image(data, reduce_to=reduce_to)[0])


def test_other_formats_are_not_reduced() -> None:
    assert read_image(encoded(Image.fromarray(smooth()), "PNG"), reduce_to=8)[0].shape == (3, 45, 67)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF"])
def test_a_file_that_is_cut_off_is_an_error_that_names_it(kind: str, share: float, tmp_path: Path) -> None:
    data = encoded(Image.fromarray(smooth(200, 300)), kind)
    path = tmp_path / "cat 1.jpg"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(DataError, match=r"cat 1.jpg"):
        read_image(path)


def test_a_jpeg_that_lost_its_end_is_an_error_even_when_another_library_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from PIL import ImageFile

    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for mode in ("RGB", "CMYK"):
        data = encoded(Image.fromarray(smooth(200, 300)).convert(mode), "JPEG")
        with pytest.raises(DataError):
            read_image(data[: len(data) // 2])
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_a_flipped_bit_in_png_pixels_is_found() -> None:
    data = bytearray(encoded(Image.fromarray(smooth(), "RGB"), "PNG"))
    data[len(data) // 2] ^= 1
    with pytest.raises(DataError, match="checksum of its IDAT"):
        read_image(bytes(data))


def test_bytes_before_the_end_marker_are_harmless() -> None:
    data = encoded(Image.fromarray(smooth()), "JPEG")
    padded = data[:-2] + b"\x11" * 60 + data[-2:]
    assert torch.equal(read_image(padded)[0], read_image(data)[0])


def test_huge_pictures_are_refused_before_decoding() -> None:
    header = b"\x89PNG\r\n\x1a\n" + encoded(Image.new("L", (1, 1)), "PNG")[8:]
    for data, limit in (
        (encoded(Image.new("L", (300, 300)), "PNG"), 10_000),
        (encoded(Image.new("L", (300, 300)), "JPEG"), 10_000),
    ):
        with pytest.raises(DataError, match="limit of 0 megapixels"):
            read_image(data, max_pixels=limit)
    assert read_image(header)[0].shape == (1, 1, 1)
    bomb = struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + b"IHDR" + bomb + struct.pack(">I", zlib.crc32(b"IHDR" + bomb))
    with pytest.raises(DataError, match="3600 megapixels, more than the limit of 200"):
        read_image(b"\x89PNG\r\n\x1a\n" + chunk + header[33:])


def test_pillows_own_limit_is_left_as_it_was() -> None:
    before = Image.MAX_IMAGE_PIXELS
    read_image(encoded(Image.new("L", (3, 3)), "PNG"))
    assert before == Image.MAX_IMAGE_PIXELS


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing.jpg: cannot be read \(No such file"):
        read_image(tmp_path / "nothing.jpg")
    with pytest.raises(DataError, match=r"0 bytes"):
        read_image(b"", name="a")
    with pytest.raises(DataError, match="zero bytes and no picture"):
        read_image(bytes(500))


class TestConvert:
    def test_names(self) -> None:
        assert conversion_name(ImageSpec(3), ImageSpec(3)) is None
        assert conversion_name(ImageSpec(1), ImageSpec(3)) == "grey to RGB (repeated)"
        assert conversion_name(ImageSpec(3), ImageSpec(1)) == "RGB to grey (Rec. 601)"
        assert conversion_name(ImageSpec(4), ImageSpec(3)) == "RGBA to RGB (alpha composited on white)"
        deep = ImageSpec(1, "uint16", (0.0, 65535.0))
        assert conversion_name(deep, ImageSpec(1)) == "uint16 in [0, 65535] to uint8 in [0, 255]"

    def test_grey_and_rgb_as_pillow(self) -> None:
        image = Image.fromarray(smooth())
        rgb = torch.from_numpy(smooth()).permute(2, 0, 1)
        grey = convert(rgb, ImageSpec(3), ImageSpec(1))
        assert np.array_equal(grey[0].numpy(), np.asarray(image.convert("L")))
        assert torch.equal(convert(grey, ImageSpec(1), ImageSpec(3)), grey.expand(3, -1, -1))

    def test_alpha_on_white(self) -> None:
        rgba = torch.tensor([[[0, 10]], [[0, 20]], [[0, 30]], [[0, 255]]], dtype=torch.uint8)
        assert convert(rgba, ImageSpec(4), ImageSpec(3)).flatten().tolist() == [255, 10, 255, 20, 255, 30]

    def test_depth(self) -> None:
        deep = ImageSpec(1, "uint16", (0.0, 65535.0))
        values = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
        wide = convert(values, ImageSpec(1), deep)
        assert torch.equal(wide.to(torch.int64), values.to(torch.int64) * 257)
        assert torch.equal(convert(wide, deep, ImageSpec(1)), values)
        unit = convert(wide, deep, ImageSpec(1, "float32", (0.0, 1.0)))
        assert unit.dtype == torch.float32
        assert float(unit.max()) == 1.0

    def test_shape_that_is_not_what_the_spec_says(self) -> None:
        with pytest.raises(ShapeError, match="its spec says 3 channels"):
            convert(torch.zeros(1, 2, 2, dtype=torch.uint8), ImageSpec(3), ImageSpec(1))

    def test_spec_of(self) -> None:
        assert spec_of(torch.zeros(3, 2, 2, dtype=torch.uint8)) == ImageSpec()
        assert spec_of(torch.zeros(1, 2, 2, dtype=torch.uint16)).range == (0.0, 65535.0)
