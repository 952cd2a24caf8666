"""Classify: which class a picture belongs to, which labels apply to it, or several such questions at once.

One *head* is one question: exactly one class (`single`, softmax and cross-entropy) or any number of labels (`multi`,
sigmoids and binary cross-entropy). Missing labels (-1, nan) are masked and not counted. The logits of all heads stand
side by side in one tensor (B, sum of K), so that any classifier serves for any number of heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from opsin.data import transforms
from opsin.data.classes import (
    class_weights,
    infer_heads,
    may_mirror,
    picture_sizes,
    pixel_statistics,
    prior_logits,
    to_spec,
)
from opsin.data.resize import Interpolation, center_crop, chain, random_resized_crop, resize, resize_center_crop, stack
from opsin.data.transforms import AugmentSettings
from opsin.errors import ConfigError, DataError, UnknownName
from opsin.layers.normalize import Normalized
from opsin.losses.classification import (
    binary_count,
    binary_cross_entropy_sum,
    cross_entropy_count,
    cross_entropy_sum,
)
from opsin.metrics import classification_report
from opsin.metrics.inputs import mean_of_defined
from opsin.models.fitted.probes import fit_labels, fit_logistic
from opsin.recipe import Settings
from opsin.results.classification import Classification, Head, decided
from opsin.results.rows import Rows
from opsin.results.section import Note, Section
from opsin.seeding import Keys
from opsin.task import (
    Aim,
    Batch,
    Geometry,
    ImageSpec,
    Loss,
    Monitor,
    Part,
    Prepared,
    Sample,
    Task,
    TaskSettings,
)

NAMES = ("classify",)
HELP = "say which class, or which labels, a picture has"
_AFTER_INPUT = {
    "heads",
    "augment",
    "augment_preset",
    "flip",
    "label_smoothing",
    "balance",
    "operating_point",
    "decide",
    "auxiliary_weight",
}
COUNTED_AUXILIARY = 2  # heads counted before the forward pass; more are right too, at the cost of a backward pass each
SMALL = 64  # pixels: up to here pictures are used at their own size and shifted, above they are cropped and resized


class HeadSettings(Settings):
    """One question about a picture."""

    name: str
    kind: Literal["single", "multi"] = "single"
    class_names: tuple[str, ...]
    weight: float = Field(1.0, ge=0)
    class_weights: tuple[float, ...] | None = None
    thresholds: tuple[float, ...] | None = None
    """Operating point, chosen on the validation part: a score per class; for two classes the second one's counts."""


class ClassifySettings(TaskSettings):
    """Settings of the task classify."""

    heads: tuple[HeadSettings, ...]
    """Questions and their class names; taken from the data."""
    image_size: tuple[int, int]
    """(H, W) that the model gets; by default the size of small pictures, else 224 x 224."""
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
    crop_share: float = Field(0.875, gt=0, le=1)
    """Side of the square that the model gets, as a share of the shorter side of the resized photo."""
    interpolation: Interpolation = "bilinear"
    """How pictures are resized; weights trained with bicubic want that."""
    small: bool
    """Pictures are small and keep their size: shifted, never cropped at random."""
    augment_preset: Literal["plain", "standard", "strong"] = "standard"
    """Which random changes training pictures get (`--augment`)."""
    augment: AugmentSettings = AugmentSettings()
    """The changes one by one; what is given here wins over the preset."""
    flip: bool
    """Mirrored pictures keep their class; by default no for gray small pictures, letters, digits, left and right."""
    auxiliary_weight: float = Field(0.3, ge=0)
    """Weight of each loss that a network's auxiliary heads add in training (GoogLeNet's and Inception's, if built with
    `model.kwargs.auxiliary=true`); 0.3 as in section 5 of GoogLeNet's paper."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread over all classes in training."""
    balance: Literal["none", "inverse", "effective"] = "none"
    """Weigh classes by inverse frequency or by effective number (Cui et al. 2019); heads with any number of labels per
    picture are not weighed."""
    operating_point: str = "f1"
    """How thresholds are chosen on the validation part: f1, recall=0.95, specificity=0.9, fpr=0.05 or cost=1:5."""
    decide: Literal["best", "operating-point"] = "best"
    """What two-class predictions say: the class with the better score, or the one at the operating point."""


class Classify(Task[ClassifySettings]):
    """Classification with one or several heads; see the module's text."""

    settings_type = ClassifySettings

    def __init__(self, settings: ClassifySettings) -> None:
        super().__init__(settings)
        ends = np.cumsum([len(head.class_names) for head in settings.heads]).tolist()
        self.slices = [slice(end - len(head.class_names), end) for head, end in zip(settings.heads, ends)]
        self.spec: ImageSpec = ImageSpec(settings.channels, settings.pixel_type, settings.pixel_range)
        self._weights = [None if h.class_weights is None else torch.tensor(h.class_weights) for h in settings.heads]

    # From data to settings, from settings to a model -----------------------------------------------------------------

    @classmethod
    def infer(cls, data: Any, indices: NDArray[np.int64], given: Mapping[str, Any]) -> ClassifySettings:
        """Class names, picture size, channels, mean and deviation from the training samples."""
        values = dict(given)
        if "heads" not in values:
            values["heads"] = [HeadSettings(**head) for head in infer_heads(data)]
        sizes = picture_sizes(data, indices)  # (n, 2)
        small = bool(values.setdefault("small", int(sizes.max()) <= SMALL))
        if "image_size" not in values:
            values["image_size"] = tuple(int(v) for v in np.median(sizes, axis=0)) if small else (224, 224)
        spec = data.spec
        values.setdefault("channels", {2: 4}.get(spec.channels, spec.channels))
        values.setdefault("pixel_type", spec.dtype)
        values.setdefault("pixel_range", tuple(spec.range))
        values.setdefault("flip", _may_flip(values["heads"], small, values["channels"]))
        base = transforms.preset(values.get("augment_preset", "standard"), small=small, flip=values["flip"])
        values["augment"] = AugmentSettings.over(base, values.get("augment"))
        if "mean" not in values or "std" not in values:
            want = ImageSpec(values["channels"], values["pixel_type"], values["pixel_range"])
            mean, std = pixel_statistics(data, indices, want)
            values.setdefault("mean", mean)
            values.setdefault("std", std)
        settings = ClassifySettings.model_validate(values)
        if settings.decide == "operating-point" and not any(len(h.class_names) == 2 for h in settings.heads):
            raise ConfigError("task.decide = 'operating-point' needs a head with exactly two classes.")
        if settings.balance != "none":
            if all(head.kind == "multi" for head in settings.heads):
                raise ConfigError(
                    f"task.balance = '{settings.balance}' weighs exclusive classes, and these data have none (any number "
                    "of labels per picture). Leave it out."
                )
            heads = tuple(
                head
                if head.kind == "multi"
                else head.model_copy(
                    update={
                        "class_weights": class_weights(
                            data, indices, head.name, len(head.class_names), settings.balance
                        )
                    }
                )
                for head in settings.heads
            )
            settings = settings.model_copy(update={"heads": heads})
        return settings

    @property
    def model_facts(self) -> dict[str, Any]:
        return {
            "in_channels": self.settings.channels,
            "num_outputs": self.slices[-1].stop,
            "image_size": self.settings.image_size,
        }

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        return {head.name: head.class_names for head in self.settings.heads}

    def assemble(self, network: nn.Module) -> nn.Module:
        """Pixels are normalized inside the model, so that no export can forget it."""
        return Normalized(network, self.spec, self.settings.mean, self.settings.std)

    @property
    def static_prepare(self) -> bool:
        return self.settings.small or self.settings.augment.crop_scale is None

    def input_settings(self) -> dict[str, Any]:
        return self.settings.model_dump(mode="json", exclude=_AFTER_INPUT)

    # From a sample to a batch ----------------------------------------------------------------------------------------

    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        image = to_spec(sample.image, self.spec)
        size, how = self.settings.image_size, self.settings.interpolation
        if self.settings.small:
            image, geometry = _fit(image, size, how)
        elif train and (share := self.settings.augment.crop_scale) is not None:
            image, geometry = random_resized_crop(image, key, size, share, self.settings.augment.crop_ratio, how)
        elif size[0] == size[1]:
            image, geometry = resize_center_crop(image, size[0], self.settings.crop_share, how)
        else:
            image, geometry = _fit(image, size, how)
        return Prepared(sample.id, image, sample.target, geometry, sample.target)

    @property
    def reduce_to(self) -> int | None:
        return None if self.settings.small else round(max(self.settings.image_size) / self.settings.crop_share)

    def collate(self, samples: Sequence[Prepared], keys: Keys) -> Batch:
        targets: dict[str, Tensor] = {}
        if samples[0].target:
            for head in self.settings.heads:
                values = np.stack([np.asarray(sample.target[head.name]) for sample in samples])
                targets[head.name] = torch.from_numpy(values.astype(np.int64 if head.kind == "single" else np.float32))
        inputs = stack([sample.inputs for sample in samples])
        geometry, originals = [sample.geometry for sample in samples], [sample.original for sample in samples]
        return Batch(inputs, targets, geometry, originals, [sample.id for sample in samples], keys)

    def partners(self, keys: Keys) -> NDArray[np.int64] | None:
        return transforms.partners(keys) if self.settings.augment.mixes else None

    def augment(self, batch: Batch) -> Batch:
        """Everything random but the crop of photos; mixed pictures get mixed (soft) targets.

        A label that one of the two pictures lacks is missing in the mixture (`multi`), or counts by the other's share
        (`single`).
        """
        settings = self.settings.augment
        images = transforms.augment(batch.inputs, batch.keys, settings, self.settings.pixel_range)
        if batch.partners is None:
            return replace(batch, inputs=images)
        images, share = transforms.mix(images, batch.partners, batch.keys, settings)
        partners = torch.from_numpy(batch.partners).to(images.device)
        targets = {}
        for head in self.settings.heads:
            soft = self._soft(head, batch.targets[head.name]).to(share.dtype)
            own, other = soft[: len(batch)], soft[partners]
            targets[head.name] = _portion(share, own) + _portion(1 - share, other)
        return replace(batch, inputs=images, targets=targets, keys=batch.keys[: len(batch)], partners=None)

    def _soft(self, head: HeadSettings, target: Tensor) -> Tensor:
        if head.kind == "multi":
            return target
        known = (target >= 0).to(torch.float32)
        return F.one_hot(target.clamp_min(0), len(head.class_names)).to(torch.float32) * known[:, None]

    # Training --------------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for head, weights in zip(self.settings.heads, self._weights):
            target = batch.targets[head.name]
            count = float(binary_count(target) if head.kind == "multi" else cross_entropy_count(target, weights))
            found |= dict.fromkeys(_part_names(head.name, COUNTED_AUXILIARY), count)
        return found

    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        output = model(batch.inputs)
        every = [output.logits, *getattr(output, "auxiliary", ())]  # (B, sum K) each
        loss: Loss = {}
        for head, part, weights in zip(self.settings.heads, self.slices, self._weights):
            target = batch.targets[head.name]
            for i, (name, logits) in enumerate(zip(_part_names(head.name, len(every) - 1), every)):
                if head.kind == "multi":
                    total, count, _ = binary_cross_entropy_sum(logits[:, part], target)
                else:
                    given = None if weights is None else weights.to(logits.device)
                    total, count, _ = cross_entropy_sum(
                        logits[:, part], target, label_smoothing=self.settings.label_smoothing, class_weights=given
                    )
                loss[name] = Part(total, count, head.weight * (self.settings.auxiliary_weight if i else 1.0))
        return loss

    def fit_head(
        self, features: NDArray[np.float32], data: Any, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str]:
        """Logistic regression per head, with the class weights that training would use."""
        fitted = []
        for head in self.settings.heads:
            target = data.targets[head.name][indices]
            if head.kind == "multi":
                fitted.append(fit_labels(features, target.astype(np.float64)))
            else:
                weights = None if head.class_weights is None else dict(enumerate(head.class_weights))
                fitted.append(fit_logistic(features, target, len(head.class_names), weights))
        weight, bias = (np.concatenate(parts) for parts in ([f.weight for f in fitted], [f.bias for f in fitted]))
        strengths = ", ".join(f"{one.strength:g}" for one in fitted)
        return weight, bias, f"logistic regression on {features.shape[1]} features, C = {strengths} by cross-validation"

    def prior(self, data: Any, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        parts = [
            prior_logits(data.targets[head.name][indices], len(head.class_names), head.class_weights)
            for head in self.settings.heads
        ]
        return np.concatenate(parts)

    # Prediction and judgement ----------------------------------------------------------------------------------------

    def predict_step(
        self, outputs: Mapping[str, NDArray[Any]], ids: Sequence[str], geometry: Sequence[Geometry]
    ) -> list[Classification]:
        logits = outputs["logits"].astype(np.float32)
        if not np.isfinite(logits).all():
            raise DataError(
                f"The model's scores for {ids[int(np.argwhere(~np.isfinite(logits))[0, 0])]} are not finite."
            )
        scores = [
            _softmax(logits[:, p]) if h.kind == "single" else _sigmoid(logits[:, p])
            for h, p in zip(self.settings.heads, self.slices)
        ]
        limits = [self._limits(head) for head in self.settings.heads]
        return [
            Classification(
                name,
                tuple(
                    Head(h.name, h.class_names, s[i], h.kind == "multi", t)
                    for h, s, t in zip(self.settings.heads, scores, limits)
                ),
            )
            for i, name in enumerate(ids)
        ]

    def _limits(self, head: HeadSettings) -> NDArray[np.float32] | None:
        used = head.kind == "multi" or self.settings.decide == "operating-point"
        return np.asarray(head.thresholds, np.float32) if used and head.thresholds is not None else None

    def aim(
        self, outputs: Mapping[str, NDArray[Any]], *, class_name: str | None = None, head: str | None = None
    ) -> Aim:
        """A class's logit; by default of the class that is said, or of the best label where any number applies."""
        heads = {one.name: i for i, one in enumerate(self.settings.heads)}
        if head is not None and head not in heads:
            raise UnknownName("head", head, heads)
        number = 0 if head is None else heads[head]
        asked, part = self.settings.heads[number], self.slices[number]
        if class_name is not None and class_name not in asked.class_names:
            raise UnknownName(f"class of head '{asked.name}'", class_name, asked.class_names)
        said = self.predict_step(outputs, ["the picture"], [Geometry((1, 1), (1, 1))])[0].heads[number].index
        index = said if class_name is None else asked.class_names.index(class_name)

        def chance(answer: Any) -> Tensor:
            logits = answer.logits[:, part]  # (B, K)
            values = logits.softmax(1) if asked.kind == "single" else logits.sigmoid()
            chosen: Tensor = values[:, index]
            return chosen

        def pick(answer: Any) -> Tensor:
            chosen: Tensor = answer.logits[:, part.start + index]
            return chosen

        return Aim(asked.name, asked.class_names[index], pick, chance)

    def score(self, result: Classification, target: Mapping[str, Any]) -> dict[str, Any]:
        row: dict[str, Any] = {"id": result.id}
        for head in result.heads:
            prefix = self._prefix(head.name)
            row[f"{prefix}target"] = np.asarray(target[head.name])
            row[f"{prefix}scores"] = head.scores
        return row

    def correct(self, rows: Rows) -> NDArray[np.float64] | None:
        head = self.settings.heads[0]
        if len(self.settings.heads) > 1 or head.kind == "multi":
            return None
        right = self._said(head, rows) == rows["target"]
        return np.where(rows["target"] >= 0, right, np.nan)

    def _said(self, head: HeadSettings, rows: Rows) -> NDArray[np.int64] | None:
        """Class that `predict_step` says of each row, (N,); None for labels."""
        return None if head.kind == "multi" else decided(rows[f"{self._prefix(head.name)}scores"], self._limits(head))

    def _prefix(self, name: str) -> str:
        return "" if len(self.settings.heads) == 1 else f"{name}."

    def summarize(self, rows: Rows, weights: NDArray[Any] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for head in self.settings.heads:
            prefix = self._prefix(head.name)
            values = classification_report.metrics(
                rows[f"{prefix}scores"],
                rows[f"{prefix}target"],
                weights,
                multi=head.kind == "multi",
                thresholds=head.thresholds,
                said=self._said(head, rows),
            )
            found |= {f"{prefix}{name}": value for name, value in values.items()}
        if len(self.settings.heads) > 1:
            each = [found[f"{h.name}.{_headline(h.kind)}"] for h in self.settings.heads]
            found = {"heads_mean": mean_of_defined(np.stack(each, axis=-1)), **found}
        return found

    @property
    def monitor(self) -> Monitor:
        if len(self.settings.heads) > 1:
            return Monitor("heads_mean")
        return Monitor(_headline(self.settings.heads[0].kind))

    def example_inputs(self, batch_size: int = 1) -> Tensor:
        dtype = {"uint8": torch.uint8, "uint16": torch.uint16, "float32": torch.float32}[self.settings.pixel_type]
        shape = (batch_size, self.settings.channels, *self.settings.image_size)
        low, high = self.settings.pixel_range
        values = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * (high - low) + low
        return values.to(dtype)

    # What a report shows ---------------------------------------------------------------------------------------------

    def calibrate(self, rows: Rows) -> ClassifySettings:
        """Thresholds by the rule `operating_point`, for labels and for two classes."""
        heads = []
        for head in self.settings.heads:
            prefix = self._prefix(head.name)
            points = classification_report.operating_points(
                rows[f"{prefix}scores"],
                rows[f"{prefix}target"],
                self.settings.operating_point,
                multi=head.kind == "multi",
            )
            heads.append(head.model_copy(update={"thresholds": points}))
        return self.settings.model_copy(update={"heads": tuple(heads)})

    def sections(self, rows: Rows) -> list[Section]:
        found: list[Section] = []
        for head in self.settings.heads:
            prefix = self._prefix(head.name)
            found += classification_report.sections(
                head.name if prefix else "", head.class_names, rows.ids, rows[f"{prefix}scores"], rows[f"{prefix}target"],
                multi=head.kind == "multi", thresholds=head.thresholds, said=self._said(head, rows),
            )  # fmt: skip
        return found

    def warnings(
        self,
        rows: Rows,
        train_metrics: Mapping[str, float] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        split: str = "test",
    ) -> list[Note]:
        found: list[Note] = []
        for head in self.settings.heads:
            prefix, headline = self._prefix(head.name), _headline(head.kind)
            own = {name: one for name, one in (metrics or {}).items() if name.startswith(prefix)}
            train = (train_metrics or {}).get(prefix + headline)
            notes = classification_report.warnings(
                head.name if prefix else "", head.class_names, rows[f"{prefix}scores"], rows[f"{prefix}target"],
                multi=head.kind == "multi", found={name.removeprefix(prefix): one for name, one in own.items()},
                train_metrics={} if train is None else {headline: train}, split=split, said=self._said(head, rows),
            )  # fmt: skip
            found += [note for note in notes if note not in found]
        return found

    def check_batch(self, model: nn.Module, batch: Batch) -> Iterator[Note]:
        """Labels within range; the loss of a new model near ln(K)."""
        with torch.no_grad():
            loss = self.training_step(model, batch, "main")
        for head in self.settings.heads:
            target, k = batch.targets[head.name], len(head.class_names)
            if head.kind == "single" and (int(target.max()) >= k or int(target.min()) < -1):
                text = f"Head '{head.name}': labels {int(target.min())}..{int(target.max())}, expected -1 (missing) to {k - 1}."
                yield Note("label-range", text, "error")
            part = loss[head.name]
            count = float(part.count)
            expected = float(np.log(k)) if head.kind == "single" else float(np.log(2))
            value = float(part.sum) / max(count, 1e-9)
            if count and value > 3 * expected + 1:
                text = f"Head '{head.name}': the loss at the start is {value:.2f}; a model that knows nothing has {expected:.2f}."
                yield Note(
                    "initial-loss",
                    f"{text} Fine with weights from elsewhere; else check labels and initialization.",
                    "warning",
                )


def _part_names(head: str, auxiliary: int) -> list[str]:
    """Names of a head's loss parts: its own, then one for each auxiliary head of the network."""
    return [head, *(f"{head}.auxiliary{i + 1}" for i in range(auxiliary))]


def _headline(kind: str) -> str:
    return "accuracy" if kind == "single" else "average_precision"


def _portion(share: Tensor, labels: Tensor) -> Tensor:
    """Shares (B,) of labels (B, K); a missing label (nan) of a picture without a share is no loss."""
    return torch.where(share[:, None] > 0, share[:, None] * labels, 0.0)


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    power = np.exp(logits - logits.max(axis=1, keepdims=True))
    found: NDArray[np.float32] = power / power.sum(axis=1, keepdims=True)
    return found


def _sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = (0.5 * (1.0 + np.tanh(0.5 * logits))).astype(np.float32)
    return found


def _fit(image: Tensor, size: tuple[int, int], how: Interpolation) -> tuple[Tensor, Geometry]:
    """Bring a picture to exactly (H, W): whole when its shape agrees, else its middle."""
    height, width = image.shape[-2:]
    if height * size[1] == width * size[0]:
        return resize(image, size, how)
    scale = max(size[0] / height, size[1] / width)
    resized, first = resize(image, (max(size[0], round(height * scale)), max(size[1], round(width * scale))), how)
    cut, second = center_crop(resized, size)
    return cut, chain(first, second)


def _may_flip(heads: Sequence[Any], small: bool, channels: int) -> bool:
    return may_mirror([name for head in heads for name in head.class_names]) and not (small and channels == 1)


build = Classify
