"""What is kept of a video that turns out to be damaged, of a camera that is interrupted, and of each frame."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from opsin.data.video import Frame, VideoFacts
from opsin.errors import DataError, MissingExtra
from opsin.results.detection import Candidates, Detection
from opsin.run import predicting


class _Model:
    """Says the same of every frame: one sure and many unsure objects."""

    class task:
        reduce_to = None

    def predict_samples(self, samples: Any, runner: Any = None) -> list[Detection]:
        scores = np.r_[0.9, np.full(99, 0.01)].astype(np.float32)
        boxes = np.tile(np.array([[1, 1, 9, 9]], np.float32), (100, 1))
        every = Candidates(boxes, scores, np.zeros(100, np.int64), np.zeros((100, 0, 3), np.float32))
        return [Detection(s.id, (16, 16), ("a",), every, np.array([0.5], np.float32)) for s in samples]


class _Source:
    """Ten frames, then the error."""

    error: type[BaseException] = DataError

    def __init__(self, source: str, *, every: int = 1) -> None:
        self.facts = VideoFacts((16, 16), Fraction(10), None)

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Any:
        for number in range(10):
            yield Frame(number, number / 10, torch.zeros((3, 16, 16), dtype=torch.uint8))
        raise self.error("the video is damaged.")


@pytest.mark.parametrize(("name", "error"), [("clip.mp4", DataError), ("camera:0", KeyboardInterrupt)])
def test_what_was_seen_is_kept(
    name: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Source, "error", error)
    monkeypatch.setattr(predicting, "VideoReader", _Source)
    found = predicting.predict_files(_Model(), [name], table=tmp_path / "t.csv")  # type: ignore[arg-type]
    assert len(found.results) == 8  # whole batches of frames
    assert list(found.failed) == ([name] if error is DataError else [])
    assert (tmp_path / "t.csv").is_file()
    kept = found.results[0][1]
    assert len(kept.candidates) == 1, "an hour of video would fill the memory with unsure candidates"
    assert len(kept) == 1


def test_a_video_of_a_file_is_not_ended_by_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Source, "error", KeyboardInterrupt)
    monkeypatch.setattr(predicting, "VideoReader", _Source)
    with pytest.raises(KeyboardInterrupt):
        predicting.predict_files(_Model(), ["clip.mp4"], write_table=False)  # type: ignore[arg-type]


def test_videos_in_a_folder_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cars/clip.mp4", "clip.mp4", ".hidden.mp4", "words.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    monkeypatch.setattr(_Source, "error", DataError)
    monkeypatch.setattr(predicting, "VideoReader", _Source)
    found = predicting.predict_files(_Model(), [tmp_path / "in"], frames=2, table=tmp_path / "t.csv")  # type: ignore[arg-type]
    assert [name for name, _, _ in found.results] == ["cars/clip.mp4#0", "cars/clip.mp4#1", "clip.mp4#0", "clip.mp4#1"]
    assert not found.failed


def test_a_video_in_a_folder_needs_no_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").touch()

    def refused(*_: object, **__: object) -> None:
        raise MissingExtra("av", "video", "reading videos")

    monkeypatch.setattr(predicting, "VideoReader", refused)
    found = predicting.predict_files(_Model(), [tmp_path], table=tmp_path / "t.csv")  # type: ignore[arg-type]
    assert "opsin[video]" in found.failed[str(tmp_path / "clip.mp4")]
    with pytest.raises(MissingExtra):
        predicting.predict_files(_Model(), [tmp_path / "clip.mp4"], write_table=False)  # type: ignore[arg-type]
