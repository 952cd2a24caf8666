"""Videos and cameras as streams of pictures, and pictures as a video (extra `video`: PyAV).

Frames come in the order in which they are shown, turned as the file says, in constant memory.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from opsin.errors import ConfigError, DataError, MissingExtra

VIDEO_SUFFIXES = frozenset([".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"])
CAMERA = "camera:"
"""Inputs that begin so are cameras: `camera:0` is the first one, `camera:FORMAT:DEVICE` any device that FFmpeg opens."""
_DEVICES = {"linux": ("v4l2", "/dev/video{}"), "darwin": ("avfoundation", "{}"), "win32": ("dshow", "video={}")}
_CODECS = ("libx264", "mpeg4")  # the first one that is there


class Frame(NamedTuple):
    """One picture of a video."""

    number: int  # from 0
    seconds: float  # since the first frame
    image: Tensor  # (3, H, W) uint8


@dataclass(frozen=True)
class VideoFacts:
    """What a stream says of itself: (H, W) as shown, frames a second, and how many frames where it is known."""

    size: tuple[int, int]
    rate: Fraction
    frames: int | None


def is_video(path: str | Path) -> bool:
    """Whether an input is a camera or a file whose name ends like that of a video."""
    return str(path).startswith(CAMERA) or Path(path).suffix.lower() in VIDEO_SUFFIXES


class VideoReader:
    """A video file or a camera, opened; iterate for frames, and close it or use `with`.

    Args:
        source: a file, or `camera:0`.
        every: give every n-th frame only.

    Raises:
        MissingExtra: without PyAV.
        ConfigError: if there is no such file or camera.
        DataError: if it holds no video that can be decoded.
    """

    def __init__(self, source: str | Path, *, every: int = 1) -> None:
        av = _av()
        self.name, self.every = str(source), every
        address, kind = self.name, None
        if self.name.startswith(CAMERA):
            address, kind = _device(self.name.removeprefix(CAMERA))
        elif not Path(source).is_file():
            raise ConfigError(f"{source}: there is no such file.")
        try:
            self._container = av.open(address, format=kind)
            self._stream = self._container.streams.video[0]
        except (av.FFmpegError, OSError, IndexError, ValueError) as error:
            words = "no camera that can be opened" if kind else "no video that can be read"
            raise (ConfigError if kind else DataError)(f"{self.name}: {words} ({error}).") from error
        self._stream.thread_type = "AUTO"
        self._first: Frame | None = None
        self._frames = self._decode()
        self._first = next(self._frames, None)
        if self._first is None:
            raise DataError(f"{self.name}: the video has no frame.")

    @property
    def facts(self) -> VideoFacts:
        """Size, rate and length."""
        first = self._first
        size = (0, 0) if first is None else (first.image.shape[1], first.image.shape[2])
        rate = self._stream.average_rate or self._stream.guessed_rate or Fraction(25)
        return VideoFacts(size, Fraction(rate) / self.every, -(-self._stream.frames // self.every) or None)

    def __iter__(self) -> Iterator[Frame]:
        if self._first is not None:
            yield self._first
        yield from self._frames

    def _decode(self) -> Iterator[Frame]:
        av = _av()
        began: float | None = None  # a camera's clock, or that of a transport stream, does not begin at 0
        try:
            for number, frame in enumerate(self._container.decode(self._stream)):
                began = frame.time if began is None else began
                if number % self.every == 0:
                    pixels = _turned(frame.to_ndarray(format="rgb24"), getattr(frame, "rotation", 0))
                    seconds = float((frame.time or 0.0) - (began or 0.0))
                    yield Frame(number, seconds, torch.from_numpy(pixels).permute(2, 0, 1))
        except av.FFmpegError as error:
            raise DataError(f"{self.name}: the video is damaged ({error}).") from error

    def close(self) -> None:
        """Close the file or the camera."""
        self._container.close()

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class VideoWriter:
    """Writes pictures of one size as an .mp4; the file appears when it is closed without an error.

    Args:
        path: of the file.
        size: (H, W); an odd side loses its last row or column, because the codec takes even sides only.
        rate: frames a second.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction | int) -> None:
        av = _av()
        self.path, self._aside = path, path.with_name(f".{path.name}.partial.mp4")
        self._height, self._width = size[0] // 2 * 2, size[1] // 2 * 2
        self._container = av.open(str(self._aside), "w")
        codec = next(name for name in _CODECS if name in av.codecs_available)
        self._stream = self._container.add_stream(codec, rate=rate)
        self._stream.height, self._stream.width, self._stream.pix_fmt = self._height, self._width, "yuv420p"

    def add(self, pixels: NDArray[np.uint8]) -> None:
        """Append a picture (H, W, 3)."""
        frame = _av().VideoFrame.from_ndarray(
            np.ascontiguousarray(pixels[: self._height, : self._width]), format="rgb24"
        )
        self._container.mux(self._stream.encode(frame))

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._container.mux(self._stream.encode())
        self._container.close()
        if kind is None:
            self._aside.rename(self.path)
        else:
            self._aside.unlink(missing_ok=True)


def _turned(pixels: NDArray[np.uint8], degrees: int) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) as they are to be shown; FFmpeg counts degrees against the clock."""
    return np.ascontiguousarray(np.rot90(pixels, round(degrees / 90))) if degrees % 360 else pixels


def _device(words: str) -> tuple[str, str]:
    kind, colon, device = words.partition(":")
    if colon:
        return device, kind
    name, pattern = _DEVICES.get(sys.platform, _DEVICES["linux"])
    return pattern.format(words or "0"), name


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra("av", "video", "reading videos and cameras") from error
    return av
