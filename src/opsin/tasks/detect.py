"""Detect: which objects are in a picture and where, as boxes with classes and scores, maybe with points.

Pictures are fitted into one size and objects move along. A detector (`opsin.models.detectors`) gives candidates in pixels of
its input; boxes of one object are merged here, on arrays, so that every runtime merges alike, and go back to pixels of the
original picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, field_validator
from torch import Tensor, nn
from torchvision.ops import box_iou

from opsin.data import box_transforms
from opsin.data.box_transforms import DetectAugment
from opsin.data.classes import may_mirror, picture_sizes, pixel_statistics, to_spec
from opsin.data.objects import Objects
from opsin.data.point_settings import PointSettings
from opsin.data.resize import stack
from opsin.data.sampling import repeat_factors
from opsin.data.target_sheet import target_sheet
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.layers.normalize import Normalized
from opsin.metrics import detection_report
from opsin.metrics.detection import operating_scores
from opsin.metrics.merging import Method, merge
from opsin.results.detection import SHOWN_POINT, Candidates, Detection
from opsin.results.rows import Rows
from opsin.results.section import Mark, Note, Section
from opsin.seeding import Keys
from opsin.task import (
    Aim,
    Batch,
    Geometry,
    ImageSpec,
    Loss,
    Monitor,
    Prepared,
    Sample,
    Task,
    TaskSettings,
)

NAMES = ("detect",)
HELP = "find objects: boxes with classes, and points where the data have them"
LONG_SIDE = 640  # pixels of the longer side of the input, unless the pictures are smaller
MULTIPLE = 32  # that sides of the input are multiples of
ALIKE = 0.05  # pictures whose aspects differ by less are of one shape
_AFTER_INPUT = {
    "augment",
    "balance",
    "augment_preset",
    "flip",
    "thresholds",
    "default_threshold",
    "overlap",
    "merging",
    "agnostic",
}


class DetectSettings(TaskSettings):
    """Settings of the task detect."""

    head: str = "objects"
    """Name of the column with the objects; taken from the data."""
    class_names: tuple[str, ...]
    """Classes; taken from the data."""
    points: PointSettings | None = None
    """Points of an object; taken from the data."""
    image_size: tuple[int, int]
    """(H, W) that the model gets, multiples of 32; by default as `long_side` and the shape of the pictures say."""
    long_side: int | None = Field(None, ge=MULTIPLE)
    """Pixels of the input's longer side; by default that of the pictures, 640 at most. Pictures of one shape get an input of
    that shape, others a square."""
    fit: Literal["letterbox", "stretch"] = "letterbox"
    """Pictures keep their proportions and are padded on the right and below, or are stretched to the size."""
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
    augment_preset: Literal["plain", "standard", "strong"] = "standard"
    """Which random changes training pictures get (`--augment`)."""
    augment: DetectAugment = DetectAugment()
    """The changes one by one; what is given here wins over the preset."""
    flip: bool
    """Mirrored objects keep their class; by default no for digits, letters, left and right."""
    balance: Literal["none", "repeat"] = "none"
    """`repeat`: pictures with rare classes come more often (repeat factors, Gupta et al. 2019)."""
    max_detections: int = Field(100, ge=1)
    """Most boxes kept per picture; COCO counts 100."""
    floor: float = Field(0.001, ge=0, lt=1)
    """Candidates with a lower score are dropped, for metrics too."""
    merging: Method = "nms"
    """How boxes of one object become one."""
    overlap: float | None = Field(None, ge=0, le=1)
    """IoU above which of two boxes the weaker one goes; by default the network's own."""
    agnostic: bool = False
    """Boxes of different classes are merged too."""
    thresholds: tuple[float, ...] | None = None
    """Score per class from which on an object is shown; chosen on the validation part for the best F1."""
    default_threshold: float = Field(0.25, ge=0, le=1)
    """That score where none was chosen."""

    @field_validator("image_size")
    @classmethod
    def _multiples(cls, value: tuple[int, int]) -> tuple[int, int]:
        if any(side < MULTIPLE or side % MULTIPLE for side in value):
            raise ValueError(f"{value}: both sides must be multiples of {MULTIPLE}")
        return value


class Detect(Task[DetectSettings]):
    """Object detection; see the module's text."""

    settings_type = DetectSettings
    explained_by = "occlusion"  # gradients of deep layers, averaged over places, do not tell one object from another
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "ema": 0.999, "clip_norm": 10.0},
        "schedule": {"name": "cosine", "warmup_epochs": 1.0, "final": 0.02},
        "run": {"epochs": 50, "batch_size": 16, "validate_every": 2},
    }

    def __init__(self, settings: DetectSettings) -> None:
        super().__init__(settings)
        if settings.thresholds is not None and len(settings.thresholds) != len(settings.class_names):
            raise ConfigError(
                f"task.thresholds has {len(settings.thresholds)} scores for {len(settings.class_names)} classes; give one for each."
            )
        if settings.flip and settings.points is not None and not settings.points.swaps:
            raise ConfigError(
                "task.flip = true mirrors pictures, but it is not known which points change places then. Say so with "
                "task.points.swaps (each point's twin, its own place where it has none), or leave task.flip out."
            )
        self.spec: ImageSpec = ImageSpec(settings.channels, settings.pixel_type, settings.pixel_range)
        low, high = settings.pixel_range
        self.fill = low + (high - low) * float(np.mean(settings.mean))
        self.num_points = 0 if settings.points is None else len(settings.points.names)

    # From data to settings, from settings to a model -----------------------------------------------------------------

    @classmethod
    def infer(cls, data: Any, indices: NDArray[np.int64], given: Mapping[str, Any]) -> DetectSettings:
        """Class names, points, picture size, channels, mean and deviation from the training samples."""
        values = dict(given)
        head = _objects_head(data, values.get("head"))
        values["head"] = head.name
        values.setdefault("class_names", tuple(head.class_names))
        if head.points is not None:
            values["points"] = PointSettings.of(head.points, values.get("points"))
        if len(data.targets[head.name][indices].objects) == 0:
            raise DataError(f"{data.name}: no picture of the training part has an object in it.")
        if "image_size" not in values:
            values["image_size"] = _input_size(values.get("long_side"), picture_sizes(data, indices))
        spec = data.spec
        values.setdefault("channels", {2: 4}.get(spec.channels, spec.channels))
        values.setdefault("pixel_type", spec.dtype)
        values.setdefault("pixel_range", tuple(spec.range))
        points = values.get("points")
        swaps = () if points is None else PointSettings.model_validate(points).swaps
        values.setdefault("flip", may_mirror(values["class_names"]) and (points is None or bool(swaps)))
        base = box_transforms.preset(values.get("augment_preset", "standard"), flip=values["flip"])
        values["augment"] = DetectAugment.over(base, values.get("augment"))
        if "mean" not in values or "std" not in values:
            want = ImageSpec(values["channels"], values["pixel_type"], values["pixel_range"])
            mean, std = pixel_statistics(data, indices, want)
            values.setdefault("mean", mean)
            values.setdefault("std", std)
        return DetectSettings.model_validate(values)

    @property
    def model_facts(self) -> dict[str, Any]:
        return {
            "in_channels": self.settings.channels,
            "num_outputs": len(self.settings.class_names),
            "image_size": self.settings.image_size,
            "answer": "detected",
            "num_points": self.num_points,
        }

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {self.settings.head: self.settings.class_names}

    @property
    def point_names(self) -> tuple[str, ...]:
        return () if self.settings.points is None else self.settings.points.names

    def assemble(self, network: nn.Module) -> nn.Module:
        """Pixels are normalized inside the model, so that no export can forget it."""
        return Normalized(network, self.spec, self.settings.mean, self.settings.std)

    @property
    def reduce_to(self) -> int | None:
        """Twice the input, so that training can zoom in."""
        return 2 * max(self.settings.image_size)

    def input_settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude=_AFTER_INPUT)

    # From a sample to a batch ----------------------------------------------------------------------------------------

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        image = to_spec(sample.image, self.spec)
        here: tuple[int, int] = (image.shape[1], image.shape[2])
        whole = sample.original_size or here
        shrink = (here[1] / whole[1], here[0] / whole[0])  # x, y
        objects: Objects | None = sample.target.get(self.settings.head)
        counted = Objects.of(num_points=self.num_points) if objects is None else objects.take(~objects.crowd)
        counted = box_transforms.move(counted, shrink, (0.0, 0.0))
        size, how, settings = self.settings.image_size, self.settings.fit, self.settings.augment
        if train:
            view = box_transforms.training_view(image, counted, key, size, settings, how, self.fill)
            image, geometry, counted = view.image, view.geometry, view.objects
        else:
            image, geometry = box_transforms.fit(image, size, how, self.fill)
            counted = box_transforms.to_input(counted, geometry)
            counted, _ = box_transforms.clip(counted, (0.0, 0.0, size[1], size[0]), 0.0, 1.0)
        geometry = Geometry(
            whole,
            geometry.input_size,
            (geometry.scale[0] / shrink[0], geometry.scale[1] / shrink[1]),
            (geometry.offset[0] / shrink[0], geometry.offset[1] / shrink[1]),
        )
        target = {} if objects is None else {"objects": counted}
        return Prepared(sample.id, image, target, geometry, {"objects": objects})

    def collate(self, samples: Sequence[Prepared], keys: Keys) -> Batch:
        targets = {"objects": [sample.target["objects"] for sample in samples]} if samples[0].target else {}
        inputs = stack([sample.inputs for sample in samples])
        geometry, originals = [sample.geometry for sample in samples], [sample.original for sample in samples]
        return Batch(inputs, targets, geometry, originals, [sample.id for sample in samples], keys)

    def partners(self, keys: Keys) -> NDArray[np.int64] | None:
        count = self.settings.augment.partners
        return box_transforms.partners(keys, count) if count else None

    def weights(self, data: Any, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        if self.settings.balance == "none":
            return None
        return repeat_factors(data.targets[self.settings.head][indices], len(self.settings.class_names))

    def augment(self, batch: Batch) -> Batch:
        """Everything random but the view of each picture; objects move with their pictures."""
        images, (low, high) = batch.inputs, self.settings.pixel_range
        plain = images.dtype == torch.uint8
        found = box_transforms.augment(
            images if plain else (images.float() - low) / (high - low),
            batch.targets["objects"], batch.keys, self.settings.augment, partners=batch.partners,
            batch_key=batch.key, stride=MULTIPLE, fill=self.fill if plain else (self.fill - low) / (high - low),
            swaps=() if self.settings.points is None else self.settings.points.swaps, done=batch.done,
        )  # fmt: skip
        images = found.images if plain else found.images * (high - low) + low
        keys = batch.keys[: len(batch)]
        return replace(batch, inputs=images, targets={"objects": found.objects}, keys=keys, partners=None)

    # Training --------------------------------------------------------------------------------------------------------

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        found: Loss = model(batch.inputs, targets=self._tensors(batch)).losses
        return found

    def _tensors(self, batch: Batch) -> dict[str, list[Tensor]]:
        """What a network is given of the objects (`opsin.models.detectors.Targets`), on the device of the pictures."""
        objects, device = batch.targets["objects"], batch.inputs.device
        found = {
            "boxes": [torch.from_numpy(one.boxes_xyxy).to(device, torch.float32) for one in objects],
            "labels": [torch.from_numpy(one.labels).to(device) for one in objects],
        }
        if self.num_points:
            found["points"] = [torch.from_numpy(one.points).to(device, torch.float32) for one in objects]
        return found

    # Prediction and judgement ----------------------------------------------------------------------------------------

    def predict_step(
        self, outputs: Mapping[str, NDArray[Any]], ids: Sequence[str], geometry: Sequence[Geometry]
    ) -> list[Detection]:
        settings, limits = self.settings, self._limits()
        overlap = float(outputs["overlap"]) if settings.overlap is None else settings.overlap
        skeleton = () if settings.points is None else settings.points.skeleton
        found = []
        for i, (name, where) in enumerate(zip(ids, geometry)):
            boxes, scores, labels = (outputs[part][i] for part in ("boxes", "scores", "labels"))
            if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
                raise DataError(f"The model's boxes or scores for {name} are not finite.")
            merged = merge(
                boxes, scores, labels, overlap=overlap, floor=settings.floor, top=settings.max_detections,
                method=settings.merging, agnostic=settings.agnostic,
            )  # fmt: skip
            points = np.zeros((len(merged.scores), 0, 3), np.float32)
            if "points" in outputs and self.num_points:
                points = outputs["points"][i][merged.positions].astype(np.float32)
                points[..., :2] = _to_original(points[..., :2], where)
            corners = _to_original(merged.boxes.reshape(-1, 2, 2), where)  # (D, 2, 2)
            bound = np.array([where.original_size[1], where.original_size[0]], np.float32)
            corners = np.clip(corners, 0, bound).reshape(-1, 4).astype(np.float32)
            seen = (corners[:, 2:] > corners[:, :2]).all(1)  # not wholly in the padding
            candidates = Candidates(corners[seen], merged.scores[seen], merged.labels[seen], points[seen])
            found.append(Detection(name, where.original_size, settings.class_names, candidates, limits, skeleton))
        return found

    def _limits(self) -> NDArray[np.float32]:
        if self.settings.thresholds is not None:
            return np.asarray(self.settings.thresholds, np.float32)
        return np.full(len(self.settings.class_names), self.settings.default_threshold, np.float32)

    def aim(
        self, outputs: Mapping[str, NDArray[Any]], *, class_name: str | None = None, head: str | None = None
    ) -> Aim:
        """The surest object (of a class): how sure the model is of such a box there, as score x IoU of the best candidate.

        "Black-box Explanation of Object Detectors via Saliency Maps", Petsiuk et al. 2021, equation 1.
        """
        names = self.settings.class_names
        if head is not None and head != self.settings.head:
            raise UnknownName("head", head, (self.settings.head,))
        if class_name is not None and class_name not in names:
            raise UnknownName("class", class_name, names)
        boxes, scores, labels = (outputs[part][0] for part in ("boxes", "scores", "labels"))
        allowed = np.ones(len(scores), bool) if class_name is None else labels == names.index(class_name)
        if not allowed.any() or scores[allowed].max() < self.settings.floor:
            what = "an object" if class_name is None else f"'{class_name}'"
            raise ConfigError(f"The model sees nothing of {what} in this picture, so there is no box to explain.")
        best = int(np.argmax(np.where(allowed, scores, -1.0)))
        index, wanted = int(labels[best]), torch.from_numpy(boxes[best].astype(np.float32))

        def pick(answer: Any) -> Tensor:
            every = answer.boxes.float()  # (B, N, 4)
            likeness = box_iou(every.flatten(0, 1), wanted.to(every.device)[None]).view(every.shape[:2])
            value: Tensor = (likeness * answer.scores * (answer.labels == index)).amax(1)
            return value

        return Aim(self.settings.head, names[index], pick, pick)

    def score(self, result: Detection, target: Mapping[str, Any]) -> dict[str, Any]:
        objects: Objects = target["objects"]
        row = {
            "id": result.id,
            "size": np.asarray(result.size, np.int64),
            "found_boxes": result.candidates.boxes_xyxy,
            "found_scores": result.candidates.scores,
            "found_labels": result.candidates.labels,
            "true_boxes": objects.boxes_xyxy,
            "true_labels": objects.labels,
            "true_crowd": objects.crowd,
            "true_difficult": objects.difficult,
            "true_area": objects.area,
        }
        if self.num_points:
            row |= {"found_points": result.candidates.points, "true_points": objects.points}
        return row

    def summarize(self, rows: Rows, weights: NDArray[Any] | None = None) -> dict[str, Any]:
        names, limits = self.settings.class_names, self._limits().tolist()
        return dict(detection_report.metrics(rows, names, weights, operating=limits, sigmas=self._sigmas))

    @property
    def _sigmas(self) -> tuple[float, ...]:
        return () if self.settings.points is None else self.settings.points.sigmas

    @property
    def monitor(self) -> Monitor:
        return Monitor("map")

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        dtype = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}[self.settings.pixel_type]
        shape = (batch_size, self.settings.channels, *self.settings.image_size)
        low, high = self.settings.pixel_range
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * (high - low) + low
        return values.to(dtype)

    # What a report shows ---------------------------------------------------------------------------------------------

    def calibrate(self, rows: Rows) -> DetectSettings:
        """Per class the score with the best F1."""
        return self.settings.model_copy(update={"thresholds": operating_scores(rows, self.settings.class_names)})

    def sections(self, rows: Rows) -> list[Section]:
        points = () if self.settings.points is None else self.settings.points.names
        limits = self._limits().tolist()
        return detection_report.sections(rows, self.settings.class_names, operating=limits, point_names=points)

    def marks(self, row: Mapping[str, Any]) -> list[Mark]:
        """Boxes from their class's score on, and those that are there, each with its points."""
        shown = row["found_scores"] >= self._limits()[row["found_labels"]]
        found = [
            self._mark(row, "found", int(i), color=int(row["found_labels"][i])) for i in np.flatnonzero(shown)[::-1]
        ]
        return found + [self._mark(row, "true", i, true=True) for i in range(len(row["true_labels"]))]

    def _mark(self, row: Mapping[str, Any], which: str, i: int, *, true: bool = False, color: int = 0) -> Mark:
        left, top, right, bottom = row[f"{which}_boxes"][i].tolist()
        points = row[f"{which}_points"][i] if self.num_points else np.zeros((0, 3))
        known = points[:, 2] > (0 if true else SHOWN_POINT)
        place = np.cumsum(known) - 1
        pairs = () if self.settings.points is None else self.settings.points.skeleton
        joined = tuple((int(place[a]), int(place[b])) for a, b in pairs if known[a] and known[b])
        spots = tuple((x, y) for x, y in points[known, :2].tolist())
        return Mark((left, top, right, bottom), spots, joined, true, color)

    def warnings(
        self,
        rows: Rows,
        train_metrics: Mapping[str, float] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        split: str = "test",
    ) -> list[Note]:
        return detection_report.warnings(
            rows, self.settings.class_names, found=metrics, train_metrics=train_metrics, split=split,
            operating=self._limits().tolist(),
        )  # fmt: skip

    def draw_targets(self, batch: Batch) -> Image.Image:
        points, names = self.settings.points, self.settings.class_names
        return target_sheet(
            batch.inputs, batch.targets["objects"], names, ids=batch.ids, value_range=self.settings.pixel_range,
            skeleton=() if points is None else points.skeleton,
        ).draw()  # fmt: skip

    def check_batch(self, model: nn.Module, batch: Batch) -> Iterator[Note]:
        """Boxes inside the input with positive sides, labels within range, something to find at all."""
        height, width = batch.inputs.shape[-2:]
        found = self._tensors(batch)
        boxes, labels = torch.cat(found["boxes"]), torch.cat(found["labels"])
        if len(boxes) == 0:
            yield Note("no-objects", "No picture of the first batch has an object in it.", "warning")
            return
        if int(labels.min()) < 0 or int(labels.max()) >= len(self.settings.class_names):
            text = f"Labels {int(labels.min())}..{int(labels.max())} in a batch; expected 0 to {len(self.settings.class_names) - 1}."
            yield Note("label-range", text, "error")
        if bool((boxes[:, 2:] <= boxes[:, :2]).any()):
            yield Note("box-sides", "A training box has no positive width and height.", "error")
        least = self.settings.augment.keep_side
        if (small := _too_small(batch, least)) > 0:
            text = (
                f"{small} boxes of the first batch are less than {least:g} pixels wide or high in the model's "
                f"input, and such boxes are left out of training. Raise task.long_side, cut the pictures into tiles "
                f"(data.tile), or lower task.augment.keep_side."
            )
            yield Note("small-boxes", text, "warning")
        bound = torch.tensor([width, height, width, height], device=boxes.device)
        if bool((boxes < -1).any()) or bool((boxes > bound + 1).any()):
            yield Note("box-outside", "A training box reaches out of the model's input.", "error")


def _too_small(batch: Batch, least: float) -> int:
    """How many boxes of the own pictures are shorter than `least` pixels in the views of them."""
    count = 0
    for geometry, one in zip(batch.geometry, batch.originals):
        objects: Objects = one["objects"]
        boxes = objects.boxes_xyxy[~objects.crowd]
        sides = (boxes[:, 2:] - boxes[:, :2]) / np.array(geometry.scale)
        count += int((sides.min(1, initial=np.inf) < least - 1e-9).sum())
    return count


def _objects_head(data: Any, name: str | None) -> Any:
    found = [head for head in data.heads if head.kind == "objects" and name in (None, head.name)]
    if found:
        return found[0]
    have = ", ".join(f"'{head.name}' ({head.kind})" for head in data.heads) or "no labels"
    raise DataError(
        f"{data.name} has no boxes (it has {have}), and a detector learns from boxes. Give annotations in a format that holds "
        "them (COCO, VOC, YOLO, CSV with xmin ymin xmax ymax), or train a classifier: opsin train classify."
    )


def _input_size(long: int | None, sizes: NDArray[np.int64]) -> tuple[int, int]:
    """(H, W), multiples of 32, of the input for pictures of (n, 2) sizes: their common shape if there is one, else square."""
    if long is None:
        long = min(LONG_SIDE, _up(float(np.median(sizes.max(axis=1)))))
    aspect = sizes[:, 0] / sizes[:, 1]  # H / W
    middle = float(np.median(aspect))
    if np.mean(np.abs(aspect / middle - 1) < ALIKE) < 0.9:
        return _up(long), _up(long)
    return (_up(long * min(middle, 1.0)), _up(long / max(middle, 1.0)))


def _up(side: float) -> int:
    return max(MULTIPLE, -(-round(side) // MULTIPLE) * MULTIPLE)


def _to_original(points: NDArray[Any], geometry: Geometry) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (points * np.array(geometry.scale) + np.array(geometry.offset)).astype(np.float32)
    return found


build = Detect
