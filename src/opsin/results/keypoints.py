"""The result of finding the points of one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from opsin.errors import ShapeError
from opsin.results.detection import COLORS, SHOWN_POINT


@dataclass(frozen=True)
class Keypoints:
    """The points of the one object in a picture.

    Args:
        id: of the picture.
        size: (H, W) of the original picture.
        names: of the K points.
        points_xy: (K, 2) float32, pixels of the original picture; a point may lie outside of it.
        scores: (K,) float32 in [0, 1].
        skeleton: pairs of points that are joined when drawn.
        class_name: of the object.

    Raises:
        ShapeError: if shapes do not fit, scores lie outside [0, 1], or numbers are not finite.
    """

    id: str
    size: tuple[int, int]
    names: tuple[str, ...]
    points_xy: NDArray[np.float32]
    scores: NDArray[np.float32]
    skeleton: tuple[tuple[int, int], ...] = ()
    class_name: str = "object"

    def __post_init__(self) -> None:
        k = len(self.names)
        if self.points_xy.shape != (k, 2) or self.scores.shape != (k,):
            raise ShapeError(f"{self.id}: {k} names, but points {self.points_xy.shape} and scores {self.scores.shape}.")
        if not (np.isfinite(self.points_xy).all() and np.all((self.scores >= 0) & (self.scores <= 1 + 1e-5))):
            raise ShapeError(f"{self.id}: points must be finite and scores lie in [0, 1].")

    @property
    def score(self) -> float:
        """Mean score of the points."""
        return float(self.scores.mean())

    @property
    def classes(self) -> tuple[str, ...]:
        """What the points are of."""
        return (self.class_name,)

    def __len__(self) -> int:
        return len(self.names)

    def point(self, name: str) -> tuple[float, float]:
        """x and y of a point by name.

        Raises:
            ValueError: if there is no such point.
        """
        x, y = self.points_xy[self.names.index(name)].tolist()
        return x, y

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        points = {
            name: [round(float(x), 3), round(float(y), 3), round(float(score), 4)]
            for name, (x, y), score in zip(self.names, self.points_xy, self.scores)
        }
        return {"id": self.id, "size": list(self.size), "score": round(self.score, 6), "points": points}

    def columns(self) -> dict[str, Any]:
        """Cells of one line in predictions.csv: x and y of every point."""
        cells: dict[str, Any] = {"score": f"{self.score:.6f}"}
        for name, (x, y) in zip(self.names, self.points_xy.tolist()):
            cells |= {f"{name}_x": f"{x:.2f}", f"{name}_y": f"{y:.2f}"}
        return cells

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture with its points and lines; those of a low score are left out."""
        canvas = image.convert("RGB").copy()
        draw = ImageDraw.Draw(canvas)
        dot = max(1.0, max(canvas.size) / 160)
        sure = self.scores >= SHOWN_POINT
        for a, b in self.skeleton:
            if sure[a] and sure[b]:
                ends = [*self.points_xy[a].tolist(), *self.points_xy[b].tolist()]
                draw.line(ends, fill=COLORS[1], width=max(1, round(dot)))
        for x, y in self.points_xy[sure].tolist():
            draw.ellipse([x - dot, y - dot, x + dot, y + dot], fill=COLORS[0], outline="#000000")
        return canvas
