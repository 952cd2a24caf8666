"""What the data doctor notes of every picture: one decode, a few hundred bytes kept.

Facts are columns (one array per fact), so that a hundred thousand pictures are a hundred megabytes and no objects.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from opsin.analyze.check.hashing import SIDE, Hashes, dct_hash
from opsin.data.image import Probe, probe, read_image
from opsin.data.resize import resize
from opsin.data.spec import convert, spec_of
from opsin.errors import DataError
from opsin.task import ImageSpec

_ON_DISK = 200_000
"""From so many pictures on, thumbnails lie in a temporary file."""
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass
class Facts:
    """Columns of N facts.

    `readable` (N,) bool; `errors` position to message; `formats` (N,) names such as "JPEG" ("" unknown); `sizes` (N,
    2) height and width as shown; `modes` (N,) Pillow's names of how pixels are written; `file_bytes` (N,); `digests`
    (N, 2) uint64 of the file's bytes; `thumbnails` (N, 32, 32) grey; `tints` (N, 8, 8, 3) or None for grey sets;
    `means`, `stds` (N,) of grey values in [0, 255]; `flat` (N,) whether each channel is one value (of 256, give or
    take 2); `nonfinite` (N,) counts of NaN and infinity; `taken` position to EXIF time.
    """

    count: int
    colored: bool
    readable: NDArray[np.bool_] = field(init=False)
    sizes: NDArray[np.int32] = field(init=False)
    thumbnails: NDArray[np.uint8] = field(init=False)
    tints: NDArray[np.uint8] | None = field(init=False)
    hashes: Hashes = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    taken: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.count
        self.readable = np.zeros(n, np.bool_)
        self.flat = np.zeros(n, np.bool_)
        self.sizes = np.zeros((n, 2), np.int32)
        self.formats = np.zeros(n, "U8")
        self.modes = np.zeros(n, "U8")
        self.file_bytes = np.zeros(n, np.int64)
        self.digests = np.zeros((n, 2), np.uint64)
        self.means, self.stds = np.zeros(n, np.float32), np.zeros(n, np.float32)
        self.nonfinite = np.zeros(n, np.int64)
        self.thumbnails = _block(n, (SIDE, SIDE))
        self.tints = _block(n, (8, 8, 3)) if self.colored else None
        self.hashes = np.zeros(n, np.uint64)

    def finish(self) -> None:
        """Hash all thumbnails; call once when every picture has been seen."""
        self.hashes = dct_hash(self.thumbnails)


def _block(count: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    if count < _ON_DISK:
        return np.zeros((count, *shape), np.uint8)
    with tempfile.TemporaryFile() as file:  # the mapping keeps the unlinked file alive
        return np.memmap(file, np.uint8, "w+", shape=(count, *shape))


def digest(data: bytes | memoryview) -> NDArray[np.uint64]:
    """128 bits of BLAKE2b, as two integers."""
    return np.frombuffer(blake2b(data, digest_size=16).digest(), np.uint64)


def measure_file(facts: Facts, i: int, data: bytes, name: str) -> None:
    """Note the facts of sample i from the bytes of its file; never raises for a bad picture."""
    facts.file_bytes[i] = len(data)
    facts.digests[i] = digest(data)
    try:
        head = probe(data, name=name)
        _note_header(facts, i, head)
        image, spec = read_image(data, reduce_to=SIDE, name=name)
    except DataError as error:
        facts.errors[i] = str(error)
        return
    facts.readable[i] = True
    measure_image(facts, i, image, spec)


def _note_header(facts: Facts, i: int, head: Probe) -> None:
    facts.formats[i], facts.modes[i], facts.sizes[i] = head.format, head.mode, head.size
    if head.taken:
        facts.taken[i] = head.taken


def measure_image(facts: Facts, i: int, image: Tensor, spec: ImageSpec) -> None:
    """Note the facts of sample i from its pixels (C, H, W)."""
    if image.dtype == torch.float32:
        facts.nonfinite[i] = int((~torch.isfinite(image)).sum())
    values = image.reshape(image.shape[0], -1).numpy()  # (C, H * W)
    spread = values.max(1).astype(np.float64) - values.min(1)
    facts.flat[i] = bool((spread <= (2 if spec.dtype == "uint8" else 0)).all())
    small = resize(in_eight_bits(image, spec), (SIDE, SIDE))[0].contiguous().numpy()  # (1 or 3, 32, 32)
    _note_pixels(facts, slice(i, i + 1), small[None])


def in_eight_bits(image: Tensor, spec: ImageSpec) -> Tensor:
    """A picture (C, H, W) to look at, (1 or 3, H, W) uint8: alpha on white, deep values stretched to full range."""
    if spec.dtype != "uint8":
        values = torch.nan_to_num(image.to(torch.float64), 0.0, spec.range[1], spec.range[0])
        low, high = values.amin(), values.amax()
        image = ((values - low) / (high - low).clamp_min(1e-12) * 255).round().to(torch.uint8)
    have = spec_of(image)
    if have.channels in (2, 4):
        return convert(image, have, ImageSpec(have.channels - 1))
    return image if have.channels in (1, 3) else image.float().mean(0, keepdim=True).to(torch.uint8)


def measure_arrays(facts: Facts, start: int, images: NDArray[Any]) -> None:
    """Note the facts of many equal-size pictures (n, C, H, W) that begin at sample `start`."""
    where = slice(start, start + len(images))
    facts.readable[where] = True
    facts.sizes[where] = images.shape[2:]
    facts.modes[where] = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}.get(images.shape[1], f"{images.shape[1]}ch")
    rows = np.ascontiguousarray(images)
    facts.file_bytes[where] = rows[0].nbytes if len(rows) else 0
    for k, row in enumerate(rows):
        facts.digests[start + k] = digest(row.data)
    if images.dtype != np.uint8:
        spec = spec_of(torch.from_numpy(rows[0]))
        for k, row in enumerate(rows):
            measure_image(facts, start + k, torch.from_numpy(row), spec)
        return
    values = rows.reshape(*rows.shape[:2], -1)  # (n, C, H * W)
    facts.flat[where] = (values.max(2).astype(np.int16) - values.min(2) <= 2).all(1)
    tensor = torch.from_numpy(rows)
    if rows.shape[1] not in (1, 3):
        tensor = torch.stack([in_eight_bits(image, spec_of(image)) for image in tensor])
    small = interpolate(tensor, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    _note_pixels(facts, where, small.contiguous().numpy())


def _note_pixels(facts: Facts, where: slice, small: NDArray[np.uint8]) -> None:
    """Thumbnails, tints and statistics from pictures (n, 1 or 3, 32, 32)."""
    if small.shape[1] == 1:
        grey = small[:, 0]
    else:
        grey = (np.moveaxis(small, 1, -1).astype(np.float32) @ _GREY + 0.5).astype(np.uint8)
    facts.thumbnails[where] = grey
    if facts.tints is not None:
        tint = small.reshape(*small.shape[:2], 8, 4, 8, 4).mean((3, 5), dtype=np.float32)  # (n, 1 or 3, 8, 8)
        facts.tints[where] = np.moveaxis(tint + 0.5, 1, -1).astype(np.uint8)
    values = grey.reshape(len(grey), -1)
    facts.means[where] = values.mean(1)
    facts.stds[where] = values.std(1)
