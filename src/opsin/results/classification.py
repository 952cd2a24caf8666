"""The result of classifying one picture: the scores of one or several heads over named classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from opsin.errors import ShapeError


def decided(scores: NDArray[np.float32], thresholds: NDArray[np.float32] | None) -> NDArray[np.int64]:
    """Which of K exclusive classes is said: the best one, or with two classes the second at or above its threshold.

    Args:
        scores: (K,) of one picture or (n, K) of many.
        thresholds: (K,), or None for the best one.

    Returns:
        () or (n,).
    """
    if thresholds is not None and scores.shape[-1] == 2:
        return np.asarray(scores[..., 1] >= thresholds[1], np.int64)
    return np.asarray(scores.argmax(-1), np.int64)


@dataclass(frozen=True)
class Head:
    """Scores of one question about a picture.

    Args:
        name: of the head, e.g. "label" or "color".
        class_names: K names.
        scores: (K,) in [0, 1]; they sum to one when exactly one class applies (`multi` is False).
        multi: whether any number of classes may apply; then each score is a probability of its own.
        thresholds: (K,) scores from which on a class is said to apply (multi), or None for 0.5. With two exclusive
            classes and a value given, the second (positive) class is said at or above `thresholds[1]`.

    Raises:
        ShapeError: if scores, names and thresholds differ in length or scores lie outside [0, 1].
    """

    name: str
    class_names: tuple[str, ...]
    scores: NDArray[np.float32]
    multi: bool = False
    thresholds: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        k = len(self.class_names)
        if self.scores.shape != (k,):
            raise ShapeError(f"Head '{self.name}': scores have shape {self.scores.shape}, expected ({k},).")
        if self.thresholds is not None and self.thresholds.shape != (k,):
            raise ShapeError(f"Head '{self.name}': thresholds have shape {self.thresholds.shape}, expected ({k},).")
        if not bool(np.all((self.scores >= -1e-6) & (self.scores <= 1 + 1e-5))):
            raise ShapeError(
                f"Head '{self.name}': scores must lie in [0, 1], got {self.scores.min()}..{self.scores.max()}."
            )

    @property
    def index(self) -> int:
        """Position of the class that is said: the best one, or by the operating point with two exclusive classes."""
        return int(decided(self.scores, None if self.multi else self.thresholds))

    @property
    def label(self) -> str:
        """Name of the class that is said."""
        return self.class_names[self.index]

    @property
    def score(self) -> float:
        """Score of the class that is said, in [0, 1]."""
        return float(self.scores[self.index])

    @property
    def labels(self) -> tuple[str, ...]:
        """All classes that apply: one for exclusive classes, any number for `multi`."""
        if not self.multi:
            return (self.label,)
        limit = np.full(len(self.class_names), 0.5, np.float32) if self.thresholds is None else self.thresholds
        return tuple(name for name, score, t in zip(self.class_names, self.scores, limit) if score >= t)

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k best classes with their scores, best first; equal scores in class order."""
        order = np.argsort(-self.scores, kind="stable")[:k]
        return [(self.class_names[i], float(self.scores[i])) for i in order]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        top = [{"class": name, "score": round(score, 6)} for name, score in self.top()]
        return {"labels": list(self.labels), "score": round(self.score, 6), "top": top}


@dataclass(frozen=True)
class Classification:
    """The result for one picture; `label`, `score` and `top` speak of the first head."""

    id: str
    heads: tuple[Head, ...]

    @property
    def label(self) -> str:
        """Class that the first head says."""
        return self.heads[0].label

    @property
    def score(self) -> float:
        """Score of that class, in [0, 1]."""
        return self.heads[0].score

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes that the first head says: one, or with labels any number."""
        return self.heads[0].labels

    def top(self, k: int = 5) -> list[tuple[str, float]]:
        """The k best classes of the first head."""
        return self.heads[0].top(k)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: of the one head, or by head name when there are several."""
        if len(self.heads) == 1:
            head = self.heads[0]
            if head.multi:
                return {"id": self.id, **head.to_dict()}
            return {"id": self.id, "class": head.label, **{k: v for k, v in head.to_dict().items() if k != "labels"}}
        return {"id": self.id, "heads": {head.name: head.to_dict() for head in self.heads}}

    def columns(self) -> dict[str, Any]:
        """Cells of one line in predictions.csv."""
        cells: dict[str, Any] = {}
        for head in self.heads:
            prefix = "" if len(self.heads) == 1 else f"{head.name}."
            cells[f"{prefix}class"] = "|".join(head.labels)
            cells[f"{prefix}score"] = f"{head.score:.6f}"
            cells[f"{prefix}top5"] = " ".join(f"{name}:{score:.4f}" for name, score in head.top(5))
        return cells

    def draw(self, image: Image.Image) -> Image.Image:
        """Print the result on a copy of the picture, on a band below it so that nothing of the picture is covered."""
        image = image.convert("RGB")
        width = max(image.width, 240)
        lines = [
            f"{head.name + ': ' if len(self.heads) > 1 else ''}{', '.join(head.labels) or 'none'}  {head.score:.1%}"
            for head in self.heads
        ]
        size = max(14, width // 22)
        font = ImageFont.load_default(size=size)
        band = (size + 6) * len(lines) + 8
        canvas = Image.new("RGB", (width, image.height + band), "#111827")
        canvas.paste(image, ((width - image.width) // 2, 0))
        draw = ImageDraw.Draw(canvas)
        for i, line in enumerate(lines):
            draw.text((8, image.height + 4 + i * (size + 6)), line, fill="#f9fafb", font=font)
        return canvas
