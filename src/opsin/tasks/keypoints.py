"""Keypoints: where the points of an object are, top-down: one object is one sample, cut out of its picture.

Objects with labeled points become samples `PICTURE#k`. The box of an object is widened to the shape of the input and
expanded, cut out and resized; points go the same way, and results lead back to pixels of the original picture. A picture
without boxes is taken to show one object, which fills it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from opsin.data import point_transforms
from opsin.data.classes import pixel_statistics, to_spec
from opsin.data.objects import ObjectColumn, Objects
from opsin.data.per_object import PICTURE, per_object
from opsin.data.point_names import eyes
from opsin.data.point_settings import PointSettings
from opsin.data.point_transforms import PointAugment
from opsin.data.resize import Interpolation, chain, stack
from opsin.data.sources import Problem
from opsin.data.targets import HeadSpec
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.layers.normalize import Normalized
from opsin.metrics import keypoint_report
from opsin.results.keypoints import Keypoints as Result
from opsin.results.rows import Rows
from opsin.results.section import Note, Section
from opsin.seeding import Keys
from opsin.task import Aim, Batch, Geometry, ImageSpec, Loss, Monitor, Prepared, Sample, Task, TaskSettings

NAMES = ("keypoints",)
HELP = "find the points of objects: faces, bodies, hands"
_AFTER_INPUT = {"augment", "augment_preset", "flip", "points", "class_names", "normalize", "eyes"}
SPREAD = 0.05  # of the input's diagonal: how far a point may move before it counts as another one, for explanations
TALL = 1.15  # height / width from which a box counts as tall; the inverse for a wide one


class KeypointsSettings(TaskSettings):
    """Settings of the task keypoints."""

    head: str
    """Column of the objects; taken from the data."""
    class_names: tuple[str, ...]
    """Classes of the objects; taken from the data."""
    points: PointSettings
    """What the points are; taken from the data."""
    image_size: tuple[int, int]
    """(H, W) that the model gets; by default 256 x 192 for tall boxes, 192 x 256 for wide ones, else 128 x 128."""
    expand: float = Field(1.25, ge=1)
    """Sides of what is cut out, as a multiple of those of the object's box."""
    channels: Literal[1, 3, 4]
    """Channels that the model gets; taken from the data."""
    pixel_type: Literal["uint8", "uint16", "float32"] = "uint8"
    """Type of the pixels; taken from the data, never reduced in silence."""
    pixel_range: tuple[float, float] = (0.0, 255.0)
    """Lowest and highest value that pixels can have."""
    mean: tuple[float, ...]
    """Mean of the training pixels per channel, as a share of the range."""
    std: tuple[float, ...]
    """Standard deviation of the training pixels per channel, as a share of the range."""
    interpolation: Interpolation = "bilinear"
    """How pictures are resized."""
    augment_preset: Literal["plain", "standard", "strong"] = "standard"
    """Which random changes training objects get (`--augment`)."""
    augment: PointAugment = PointAugment()
    """The changes one by one; what is given here wins over the preset."""
    flip: bool
    """Mirror half of the training objects; by default only if it is known which points change places."""
    normalize: Literal["interocular", "box"]
    """What errors are divided by: the distance of the eyes (outer corners, where there are such), or the size of the
    object's box (the root of its area); by default the eyes' if the points' names are those of a face, or there are 68."""
    eyes: tuple[int, int] | None = None
    """The two points whose distance is the inter-ocular one; found by name."""


class Keypoints(Task[KeypointsSettings]):
    """Points of objects; see the module's text."""

    settings_type = KeypointsSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "data": {"split": {"group": PICTURE}},
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-2},
        "run": {"epochs": 100, "batch_size": 32},
    }

    def __init__(self, settings: KeypointsSettings) -> None:
        super().__init__(settings)
        self.spec: ImageSpec = ImageSpec(settings.channels, settings.pixel_type, settings.pixel_range)

    # From data to settings, from settings to a model -----------------------------------------------------------------

    @classmethod
    def view(cls, data: Any) -> Any:
        """One sample per object that has a labeled point; the others are counted in the data set's problems."""
        head = _head(data)
        column: ObjectColumn = data.targets[head.name]
        every = column.objects
        labeled = (every.points[:, :, 2] > 0).any(1)
        chosen = labeled & ~every.crowd
        if not chosen.any():
            raise DataError(f"{data.root}: none of the {len(every)} objects of '{head.name}' has a labeled point.")
        view = per_object(data, head.name, chosen)
        if left := int((~chosen).sum()):
            text = f"{left} of {len(chosen)} objects are left out: they have no labeled point, or are crowds."
            view.problems.append(Problem(data.root, text, "info"))
        return view

    @classmethod
    def infer(cls, data: Any, indices: NDArray[np.int64], given: Mapping[str, Any]) -> KeypointsSettings:
        """Points, input size, channels, mean and deviation from the training samples."""
        values = dict(given)
        head = _head(data)
        values.setdefault("head", head.name)
        values.setdefault("class_names", tuple(head.class_names))
        assert head.points is not None  # noqa: S101  # _head has looked
        named = values["points"] = PointSettings.of(head.points, values.get("points"))
        _check_points(data, named)
        if "image_size" not in values:
            values["image_size"] = _size_for(data.targets[head.name][indices].objects)
        values.setdefault("flip", bool(named.swaps))
        values.setdefault("eyes", eyes(named.names))
        values.setdefault("normalize", "box" if values["eyes"] is None else "interocular")
        if values["normalize"] == "interocular" and values["eyes"] is None:
            raise ConfigError(
                "task.normalize = 'interocular', but the names of the points do not tell which are the eyes. Say it: "
                "task.eyes=[LEFT, RIGHT] with positions from 0."
            )
        if values["flip"] and not named.swaps:
            raise ConfigError(
                "task.flip = true, but it is not known which points change places. Say it: task.points.swaps=[...], the "
                "position that each point has in the mirrored picture."
            )
        spec = data.spec
        values.setdefault("channels", {2: 4}.get(spec.channels, spec.channels))
        values.setdefault("pixel_type", spec.dtype)
        values.setdefault("pixel_range", tuple(spec.range))
        base = point_transforms.preset(values.get("augment_preset", "standard"))
        values["augment"] = PointAugment.over(base, values.get("augment"))
        if "mean" not in values or "std" not in values:
            want = ImageSpec(values["channels"], values["pixel_type"], values["pixel_range"])
            mean, std = pixel_statistics(data, indices, want)
            values.setdefault("mean", mean)
            values.setdefault("std", std)
        return KeypointsSettings.model_validate(values)

    @property
    def model_facts(self) -> dict[str, Any]:
        count = len(self.settings.points.names)
        return {
            "in_channels": self.settings.channels,
            "num_outputs": count,
            "image_size": self.settings.image_size,
            "answer": "located",
            "num_points": count,
        }

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {self.settings.head: self.settings.class_names}

    @property
    def point_names(self) -> tuple[str, ...]:
        return self.settings.points.names

    def assemble(self, network: nn.Module) -> nn.Module:
        """Pixels are normalized inside the model, so that no export can forget it."""
        return Normalized(network, self.spec, self.settings.mean, self.settings.std)

    @property
    def static_prepare(self) -> bool:
        return not (self.settings.augment.scale or self.settings.augment.shift)

    def input_settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude=_AFTER_INPUT)

    # From a sample to a batch ----------------------------------------------------------------------------------------

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        image, settings = to_spec(sample.image, self.spec), self.settings
        here = (image.shape[1], image.shape[2])
        full = sample.original_size or here
        shrunk = Geometry(full, here, (full[1] / here[1], full[0] / here[0]))
        original = _original(sample, full, settings.head)
        left, top, right, bottom = original["box"].tolist() if original else (0.0, 0.0, float(full[1]), float(full[0]))
        box = point_transforms.window((left, top, right, bottom), settings.image_size, settings.expand)
        if train:
            box = point_transforms.jittered(box, key, settings.augment)
        x, y = shrunk.scale
        here_box = (box[0] / x, box[1] / y, box[2] / x, box[3] / y)
        cut, geometry = point_transforms.cut_out(image, here_box, settings.image_size, settings.interpolation)
        geometry = chain(shrunk, geometry)
        target = {"points": point_transforms.to_input(original["points"], geometry)} if original else {}
        return Prepared(sample.id, cut, target, geometry, original)

    def collate(self, samples: Sequence[Prepared], keys: Keys) -> Batch:
        targets: dict[str, Tensor] = {}
        if samples[0].target:
            points = np.stack([sample.target["points"] for sample in samples])
            targets["points"] = torch.from_numpy(points.astype(np.float32))
        inputs = stack([sample.inputs for sample in samples])
        geometry, originals = [sample.geometry for sample in samples], [sample.original for sample in samples]
        return Batch(inputs, targets, geometry, originals, [sample.id for sample in samples], keys)

    def augment(self, batch: Batch) -> Batch:
        """Mirror, turn and recolor; what is cut out was moved and zoomed in `prepare`."""
        settings = self.settings
        images, points = point_transforms.augment(
            batch.inputs,
            batch.targets["points"],
            batch.keys,
            settings.augment,
            flip=settings.flip and settings.augment_preset != "plain",
            swaps=settings.points.swaps,
            value_range=settings.pixel_range,
        )
        return replace(batch, inputs=images, targets={**batch.targets, "points": points})

    # Training --------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        found: Loss = dict(model(batch.inputs, targets=batch.targets).losses)
        return found

    # Prediction and judgement ----------------------------------------------------------------------------------------

    def predict_step(
        self, outputs: Mapping[str, NDArray[Any]], ids: Sequence[str], geometry: Sequence[Geometry]
    ) -> list[Result]:
        points, scores = outputs["points"].astype(np.float64), outputs["scores"].astype(np.float32)
        if not (np.isfinite(points).all() and np.isfinite(scores).all()):
            bad = ~(np.isfinite(points).all((1, 2)) & np.isfinite(scores).all(1))
            raise DataError(f"The model's points for {ids[int(np.flatnonzero(bad)[0])]} are not finite.")
        own = self.settings.points
        return [
            Result(
                name,
                where.original_size,
                own.names,
                (points[i] * where.scale + where.offset).astype(np.float32),
                scores[i],
                own.skeleton,
                self.settings.class_names[0] if len(self.settings.class_names) == 1 else "object",
            )
            for i, (name, where) in enumerate(zip(ids, geometry))
        ]

    def aim(
        self, outputs: Mapping[str, NDArray[Any]], *, class_name: str | None = None, head: str | None = None
    ) -> Aim:
        """Of one point (by default the one with the best score): `point`, how sure the model is of it there, which is its
        score x exp(-distance^2 / 2 s^2), s being 5 % of the input's diagonal; or its coordinate `x` or `y` as a share of the
        side.
        """
        names, known = self.settings.points.names, ("point", "x", "y")
        if head is not None and head not in known:
            raise UnknownName("number of a point", head, known)
        if class_name is not None and class_name not in names:
            raise UnknownName("point", class_name, names)
        index = int(outputs["scores"][0].argmax()) if class_name is None else names.index(class_name)
        height, width = self.settings.image_size
        wanted = torch.from_numpy(outputs["points"][0, index].astype(np.float32))
        spread = SPREAD**2 * (height**2 + width**2)

        def pick(answer: Any) -> Tensor:
            place: Tensor = answer.points[:, index].float()  # (B, 2)
            if head in ("x", "y"):
                return place[:, 0] / width if head == "x" else place[:, 1] / height
            squares = (place - wanted.to(place.device)).square().sum(1)
            value: Tensor = answer.scores[:, index] * torch.exp(-squares / (2 * spread))
            return value

        return Aim(head or "point", names[index], pick, lambda answer: pick(answer).clamp(0, 1))

    def score(self, result: Result, target: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "id": result.id,
            "picture": target["picture"],
            "size": np.array(result.size, np.int64),
            "box": target["box"],
            "area": target["area"],
            "found_points": np.concatenate([result.points_xy, result.scores[:, None]], axis=1),
            "true_points": target["points"],
        }

    def summarize(self, rows: Rows, weights: NDArray[Any] | None = None) -> dict[str, Any]:
        return keypoint_report.metrics(self._judged(rows), self.settings.points.sigmas, weights)

    def _judged(self, rows: Rows) -> keypoint_report.Judged:
        return keypoint_report.judged(rows, self.settings.eyes, self.settings.normalize)

    @property
    def monitor(self) -> Monitor:
        if self.settings.normalize == "box" and self.settings.points.sigmas:
            return Monitor("oks_map")
        return Monitor("nme", higher_is_better=False)

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        dtype = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}[self.settings.pixel_type]
        shape = (batch_size, self.settings.channels, *self.settings.image_size)
        low, high = self.settings.pixel_range
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * (high - low) + low
        return values.to(dtype)

    # What a report shows ---------------------------------------------------------------------------------------------

    def sections(self, rows: Rows) -> list[Section]:
        return keypoint_report.sections(self._judged(rows), self.settings.points.names, self.settings.normalize)

    def warnings(
        self,
        rows: Rows,
        train_metrics: Mapping[str, float] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        split: str = "test",
    ) -> list[Note]:
        return keypoint_report.warnings(self._judged(rows), train_metrics or {}, metrics or {}, split)

    def check_batch(self, model: nn.Module, batch: Batch) -> Iterator[Note]:
        """Labeled points that the input shows; whether mirroring is off for want of knowledge."""
        points = batch.targets["points"]
        height, width = self.settings.image_size
        x, y, seen = points.unbind(-1)
        labeled = seen > 0
        outside = labeled & ((x < 0) | (x > width) | (y < 0) | (y > height))
        if not bool(labeled.any()):
            yield Note("no-points", "No point of the first batch is labeled; nothing can be learned from it.", "error")
        elif (share := float(outside.sum() / labeled.sum())) > 0.2:
            text = f"{share:.0%} of the labeled points of the first batch lie outside of what is cut out around their boxes."
            yield Note("points-outside", f"{text} Check the boxes, or raise task.expand.", "warning")
        if not self.settings.points.swaps:
            text = "The names of the points do not tell which change places in a mirrored picture, so none is mirrored."
            yield Note("no-flip", text, "info")


def _head(data: Any) -> HeadSpec:
    """The head with points.

    Raises:
        DataError: if there is none.
    """
    found = [head for head in data.heads if head.kind == "objects" and head.points is not None and head.points.names]
    if not found:
        had = ", ".join(f"'{head.name}' ({head.kind})" for head in data.heads) or "no labels"
        raise DataError(
            f"{data.root} has no objects with points; it has {had}. Keypoints need COCO keypoints, or a table with columns "
            "for x and y of every point."
        )
    head: HeadSpec = found[0]
    return head


def _check_points(data: Any, points: PointSettings) -> None:
    count = len(points.names)
    if points.swaps and sorted(points.swaps) != list(range(count)):
        raise ConfigError(f"task.points.swaps = {points.swaps}; expected each position from 0 to {count - 1} once.")
    if points.sigmas and (len(points.sigmas) != count or min(points.sigmas) <= 0):
        raise ConfigError(f"task.points.sigmas = {points.sigmas}; expected {count} positive numbers.")
    if len(_head(data).points.names) != count:  # type: ignore[union-attr]
        raise ConfigError(f"task.points has {count} names, and {data.root} has {len(_head(data).points.names)} points.")  # type: ignore[union-attr]


def _size_for(objects: Objects) -> tuple[int, int]:
    """(H, W) for the usual shape of the boxes."""
    sides = np.stack(
        [objects.boxes_xyxy[:, 3] - objects.boxes_xyxy[:, 1], objects.boxes_xyxy[:, 2] - objects.boxes_xyxy[:, 0]]
    )
    shape = float(np.median(sides[0] / np.maximum(sides[1], 1e-9)))
    return (256, 192) if shape >= TALL else (192, 256) if shape <= 1 / TALL else (128, 128)


def _original(sample: Sample, size: tuple[int, int], head: str) -> dict[str, Any]:
    """The one object of a sample in pixels of the original picture; {} without one.

    A box without width or height is replaced by the hull of the labeled points.
    """
    if head not in sample.target:
        return {}
    one: Objects = sample.target[head]
    if len(one) != 1:
        raise DataError(
            f"{sample.id} has {len(one)} objects; the task keypoints takes one per sample (see `Keypoints.view`)."
        )
    box, points = one.boxes_xyxy[0], one.points[0]
    if not (box[2] > box[0] and box[3] > box[1]):
        seen = points[points[:, 2] > 0, :2]
        box = np.concatenate([seen.min(0), seen.max(0)])
    area = float(one.area[0])
    return {
        "points": points.astype(np.float64),
        "box": box.astype(np.float64),
        "area": np.float64(area if np.isfinite(area) and area > 0 else (box[2] - box[0]) * (box[3] - box[1])),
        "picture": sample.id.rpartition("#")[0],
        "size": np.array(size, np.int64),
    }


build = Keypoints
