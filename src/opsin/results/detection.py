"""The result of detecting objects in one picture: boxes with classes and scores, maybe with points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from opsin.errors import ShapeError

# Okabe and Ito 2008: told apart by people who see no red or green.
COLORS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#FFFFFF")
READABLE = 240  # pixels of the longer side of a drawn picture at least
SHOWN_POINT = 0.3  # points with a lower score are not drawn


@dataclass(frozen=True)
class Candidates:
    """All that a detector said of a picture, the best first; what of it is shown, `Detection` decides.

    Args:
        boxes_xyxy: (D, 4) float32, pixels of the original picture.
        scores: (D,) float32 in [0, 1], falling.
        labels: (D,) int64, positions in the class names.
        points: (D, P, 3) float32: x, y and score; P = 0 without points.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    points: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True)
class FoundObject:
    """One object found: class, score, box in pixels of the original picture, points (P, 3) of x, y and score."""

    class_name: str
    score: float
    box_xyxy: tuple[float, float, float, float]
    points: NDArray[np.float32]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        values = {
            "class": self.class_name,
            "score": round(self.score, 6),
            "box_xyxy": [round(v, 2) for v in self.box_xyxy],
        }
        return (
            {**values, "points": [[round(float(v), 3) for v in p] for p in self.points]} if len(self.points) else values
        )


@dataclass(frozen=True)
class Detection:
    """The result for one picture; iterating gives the objects found, the surest first. None found is an answer.

    Args:
        id: of the picture.
        size: (H, W) of the original picture.
        class_names: K names.
        candidates: everything the detector said, also what is too unsure to be shown; metrics need it.
        thresholds: (K,) score from which on an object of a class is shown.
        skeleton: pairs of points that are joined when drawn.

    Raises:
        ShapeError: if shapes do not fit, scores lie outside [0, 1], or numbers are not finite.
    """

    id: str
    size: tuple[int, int]
    class_names: tuple[str, ...]
    candidates: Candidates
    thresholds: NDArray[np.float32]
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        every, d = self.candidates, len(self.candidates)
        if every.boxes_xyxy.shape != (d, 4) or every.labels.shape != (d,) or every.points.shape[:1] != (d,):
            raise ShapeError(
                f"{self.id}: {d} scores, but boxes {every.boxes_xyxy.shape} and labels {every.labels.shape}."
            )
        if self.thresholds.shape != (len(self.class_names),):
            raise ShapeError(f"{self.id}: {len(self.class_names)} classes, but thresholds {self.thresholds.shape}.")
        if not (np.isfinite(every.boxes_xyxy).all() and np.all((every.scores >= 0) & (every.scores <= 1 + 1e-5))):
            raise ShapeError(f"{self.id}: boxes must be finite and scores lie in [0, 1].")

    @property
    def shown(self) -> NDArray[np.int64]:
        """Positions of the candidates that count as found, the surest first."""
        return np.flatnonzero(self.candidates.scores >= self.thresholds[self.candidates.labels])

    @property
    def boxes_xyxy(self) -> NDArray[np.float32]:
        """Boxes of the objects found, (M, 4), pixels of the original picture."""
        return self.candidates.boxes_xyxy[self.shown]

    @property
    def scores(self) -> NDArray[np.float32]:
        """Scores of the objects found, (M,)."""
        return self.candidates.scores[self.shown]

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes of the objects found, (M,), as positions in the class names."""
        return self.candidates.labels[self.shown]

    @property
    def score(self) -> float:
        """Score of the surest object; of none found, how sure that is (1 - the best candidate's score)."""
        best = float(self.candidates.scores.max(initial=0.0))
        return best if len(self) else 1.0 - best

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that were found, each once, the surest first."""
        return tuple(dict.fromkeys(self.class_names[k] for k in self.labels))

    def __len__(self) -> int:
        return len(self.shown)

    def __iter__(self) -> Iterator[FoundObject]:
        every = self.candidates
        for i in self.shown:
            left, top, right, bottom = every.boxes_xyxy[i].tolist()
            yield FoundObject(
                self.class_names[every.labels[i]], float(every.scores[i]), (left, top, right, bottom), every.points[i]
            )

    def at(self, score: float) -> Detection:
        """The same with another threshold, for all classes."""
        return Detection(
            self.id, self.size, self.class_names, self.candidates, np.full_like(self.thresholds, score), self.skeleton
        )

    def without_unsure(self) -> Detection:
        """The same without the candidates that are not shown (but the best one, which `score` needs), in little memory."""
        kept = np.union1d(self.shown, np.arange(min(1, len(self.candidates))))
        every = self.candidates
        few = Candidates(every.boxes_xyxy[kept], every.scores[kept], every.labels[kept], every.points[kept])
        return Detection(self.id, self.size, self.class_names, few, self.thresholds, self.skeleton)

    def counts(self) -> dict[str, int]:
        """Objects found per class; classes without any are left out."""
        found = np.bincount(self.labels, minlength=len(self.class_names))
        return {name: int(n) for name, n in zip(self.class_names, found) if n}

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.id,
            "size": list(self.size),
            "counts": self.counts(),
            "objects": [one.to_dict() for one in self],
        }

    def columns(self) -> dict[str, Any]:
        """Cells of one line in predictions.csv."""
        counts = " ".join(f"{name}:{n}" for name, n in self.counts().items())
        objects = " ".join(
            f"{one.class_name}:{one.score:.4f}:{','.join(f'{v:.1f}' for v in one.box_xyxy)}" for one in self
        )
        return {"objects": len(self), "classes": counts, "score": f"{self.score:.6f}", "boxes": objects}

    def crops(self, image: Image.Image, margin: float = 0.0) -> list[tuple[str, Image.Image]]:
        """Class and picture of every object found.

        Args:
            image: the original picture.
            margin: pixels around the box, as a share of its longer side.
        """
        found = []
        for one in self:
            left, top, right, bottom = one.box_xyxy
            more = margin * max(right - left, bottom - top)
            box = (
                max(math.floor(left - more), 0), max(math.floor(top - more), 0),
                min(math.ceil(right + more), image.width), min(math.ceil(bottom + more), image.height),
            )  # fmt: skip
            if box[2] > box[0] and box[3] > box[1]:
                found.append((one.class_name, image.crop(box)))
        return found

    def coco(self, image_id: int | str, category_ids: Mapping[str, int] | None = None) -> list[dict[str, Any]]:
        """All candidates as COCO results: `bbox` is (x, y, width, height).

        Args:
            image_id: of the picture.
            category_ids: class name to id; otherwise classes count from 1 in their order.
        """
        known = category_ids or {name: k + 1 for k, name in enumerate(self.class_names)}
        every, found = self.candidates, []
        for box, score, label, points in zip(every.boxes_xyxy.tolist(), every.scores, every.labels, every.points):
            left, top, right, bottom = box
            one: dict[str, Any] = {
                "image_id": image_id,
                "category_id": known[self.class_names[int(label)]],
                "bbox": [round(v, 3) for v in (left, top, right - left, bottom - top)],
                "score": round(float(score), 6),
            }
            if len(points):
                one["keypoints"] = [round(float(v), 3) for point in points for v in point]
            found.append(one)
        return found

    def draw(self, image: Image.Image) -> Image.Image:
        """The picture with its boxes, classes and scores; each class has its color.

        A picture whose longer side is below 240 pixels is enlarged by a whole factor, so that words can be read and hide little.
        """
        factor = max(1, -(-READABLE // max(image.size)))
        canvas = image.convert("RGB").resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
        draw = ImageDraw.Draw(canvas)
        line, size = max(1, round(max(canvas.size) / 320)), max(11, round(max(canvas.size) / 45))
        font = ImageFont.load_default(size=size)
        for one in reversed(list(self)):
            color = COLORS[self.class_names.index(one.class_name) % len(COLORS)]
            left, top, right, bottom = (factor * v for v in one.box_xyxy)
            draw.rectangle([left, top, max(left, right), max(top, bottom)], outline=color, width=line)
            self._draw_points(draw, one, color, line, factor)
            words = f"{one.class_name} {one.score:.2f}"
            width, height = draw.textlength(words, font=font) + 4, size + 2
            x = min(max(left, 0), max(canvas.width - width, 0))
            y = top - height if top >= height else min(top, canvas.height - height)
            draw.rectangle([x, y, x + width, y + height], fill=color)
            dark = color in ("#0072B2", "#009E73", "#D55E00")
            draw.text((x + 2, y), words, fill="#FFFFFF" if dark else "#000000", font=font)
        return canvas

    def _draw_points(self, draw: ImageDraw.ImageDraw, one: FoundObject, color: str, line: int, factor: int) -> None:
        if not len(one.points):
            return
        sure, places = one.points[:, 2] >= SHOWN_POINT, factor * one.points[:, :2]
        for a, b in self.skeleton:
            if sure[a] and sure[b]:
                draw.line([*places[a].tolist(), *places[b].tolist()], fill=color, width=line)
        for x, y in places[sure].tolist():
            draw.ellipse([x - 2 * line, y - 2 * line, x + 2 * line, y + 2 * line], fill=color, outline="#000000")
