"""Videos read, written, turned; what is no video is refused."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from opsin.data.video import VideoReader, VideoWriter, is_video
from opsin.errors import ConfigError, DataError

av = pytest.importorskip("av", reason="needs the extra video")


def _write(path: Path, count: int = 12, size: tuple[int, int] = (48, 64)) -> None:
    with VideoWriter(path, size, 10) as writer:
        for i in range(count):
            pixels = np.zeros((*size, 3), np.uint8)
            pixels[:, : 4 * (i + 1)] = 255
            writer.add(pixels)


def test_frames_come_back_in_order(tmp_path: Path) -> None:
    _write(tmp_path / "clip.mp4")
    with VideoReader(tmp_path / "clip.mp4") as reader:
        assert reader.facts.size == (48, 64)
        assert reader.facts.rate == 10
        frames = list(reader)
    assert [frame.number for frame in frames] == list(range(12))
    assert [round(frame.seconds, 3) for frame in frames] == [round(i / 10, 3) for i in range(12)]
    bright = [int((frame.image[0, 24] > 128).sum()) for frame in frames]
    assert all(abs(found - 4 * (i + 1)) <= 2 for i, found in enumerate(bright))


def test_every_third_frame(tmp_path: Path) -> None:
    _write(tmp_path / "clip.mp4")
    with VideoReader(tmp_path / "clip.mp4", every=3) as reader:
        assert [frame.number for frame in reader] == [0, 3, 6, 9]


def test_a_real_clip(shared_data: Path) -> None:
    with VideoReader(shared_data / "video-clips" / "bikes.mp4", every=50) as reader:
        assert reader.facts.size == (272, 640)
        assert reader.facts.frames == 5
        assert [frame.number for frame in reader] == [0, 50, 100, 150, 200]


def test_a_camera_is_a_device_of_ffmpeg() -> None:
    if "lavfi" not in {one.name for one in map(av.format.ContainerFormat, av.formats_available) if one}:
        pytest.skip("this FFmpeg has no virtual device")
    with VideoReader("camera:lavfi:testsrc=size=64x48:rate=5:duration=1") as reader:
        assert len(list(reader)) == 5


def test_odd_sides_lose_a_row(tmp_path: Path) -> None:
    with VideoWriter(tmp_path / "odd.mp4", (33, 47), 5) as writer:
        writer.add(np.full((33, 47, 3), 99, np.uint8))
    with VideoReader(tmp_path / "odd.mp4") as reader:
        assert reader.facts.size == (32, 46)


def test_nothing_is_left_of_a_video_that_was_not_finished(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ndim"), VideoWriter(tmp_path / "half.mp4", (32, 32), 5) as writer:
        writer.add(np.zeros((32, 32), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_video_is_refused(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"no video at all")
    with pytest.raises(DataError, match=r"clip\.mp4"):
        VideoReader(tmp_path / "clip.mp4")
    with pytest.raises(ConfigError, match="no such file"):
        VideoReader(tmp_path / "other.mp4")
    with pytest.raises(ConfigError, match="camera"):
        VideoReader("camera:99")
    assert is_video("camera:0")
    assert not is_video("a.jpg")


def test_seconds_count_from_the_first_frame(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "late.mkv"), "w") as file:
        stream = file.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(3):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
            frame.pts, frame.time_base = 50 + i, Fraction(1, 10)  # a clock that stands at 5 s
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with VideoReader(tmp_path / "late.mkv") as reader:
        assert [round(frame.seconds, 2) for frame in reader] == [0.0, 0.1, 0.2]
