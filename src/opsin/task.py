"""The Task contract: all that engine, evaluation, export, explain and serve know of a task.

One batch goes through a training step like this: the loader calls `prepare` for every sample and `collate` for the batch,
the engine calls `augment` once for the whole batch on the device, then `training_step` for every micro-batch. A picture
to predict goes through `prepare`, `collate`, the model (torch or any runtime) and `predict_step`.

Shapes: B batch, C channels, H W height and width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from opsin.errors import ConfigError
from opsin.recipe import Settings
from opsin.registry import Registry
from opsin.results.rows import Rows
from opsin.results.section import Mark, Note, Section
from opsin.seeding import Keys

tasks = Registry("task", "opsin.tasks")


class TaskSettings(Settings):
    """What a task needs to know to be rebuilt; stored in the bundle. Each task has its own subclass."""


class ImageSpec(NamedTuple):
    """What the pictures of a data set are: channels, dtype and value range, so that no bit is lost unseen.

    `dtype` is "uint8", "uint16" or "float32"; `range` is the (low, high) that the type can hold or the file declares.
    """

    channels: int = 3
    dtype: str = "uint8"
    range: tuple[float, float] = (0.0, 255.0)


@dataclass
class Sample:
    """One element of a data set, as read.

    Args:
        id: the relative POSIX path (NFC), plus `#index` when a file holds several.
        image: (C, H, W) uint8, uint16 or float32, EXIF orientation applied.
        target: head name to value; boxes and points in pixels of the original.
        original_size: (H, W) of the original, where the file was decoded at a smaller size; None where `image` has it.
    """

    id: str
    image: Tensor
    target: dict[str, Any] = field(default_factory=dict)
    original_size: tuple[int, int] | None = None


class Geometry(NamedTuple):
    """Where the model's input came from: a point (x, y) of the input is `scale * (x, y) + offset` in the original."""

    original_size: tuple[int, int]  # (H, W)
    input_size: tuple[int, int]  # (H, W)
    scale: tuple[float, float] = (1.0, 1.0)  # x, y
    offset: tuple[float, float] = (0.0, 0.0)  # x, y


class Prepared(NamedTuple):
    """One sample after `prepare`: input and target moved together, and the target as it was in the original."""

    id: str
    inputs: Tensor  # (C, H, W)
    target: dict[str, Any]
    geometry: Geometry
    original: dict[str, Any]


def _rows_of(value: Any, start: int, stop: int) -> Any:
    if isinstance(value, Mapping):
        return {name: _rows_of(part, start, stop) for name, part in value.items()}
    return value if isinstance(value, int | float) else value[start:stop]


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {name: _moved(part, device) for name, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [part.to(device, non_blocking=True) for part in value]
    return value


@dataclass
class Batch:
    """A process's share of a global batch.

    Args:
        inputs: (B + extra, C, H, W), uint8 (or uint16, float32 for deep pictures); a list when sizes differ.
        targets: name to tensor with first axis B + extra, or lists.
        geometry, originals, ids: one entry per own sample (B), for predictions in original pixels.
        keys: (B + extra,) uint64, the random key of every sample.
        partners: (B,) positions in `inputs` of the samples to mix with, or (B, P) for several each, or None. Partners
            come from the *global* batch: those that other processes own lie in the `extra` last places, and `augment`
            cuts them off.
        key: of the global batch (that of its first sample), for what all its samples share, such as their size.
        done: share of the planned epochs that lie behind, in [0, 1), for what changes as training nears its end.
    """

    inputs: Any
    targets: dict[str, Any]
    geometry: list[Geometry]
    originals: list[dict[str, Any]]
    ids: list[str]
    keys: Keys
    partners: NDArray[np.int64] | None = None
    key: int = 0
    done: float = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    def to(self, device: torch.device) -> Batch:
        """Move every tensor to the device."""
        return replace(self, inputs=_moved(self.inputs, device), targets=_moved(self.targets, device))

    def split(self, size: int) -> list[Batch]:
        """Cut into even micro-batches of at most `size` samples (after `augment`, so without extra samples).

        A single sample has no batch statistics, so there is none unless `size` is 1: an odd batch cut into pairs has one
        micro-batch of three.
        """
        if len(self) <= size:
            return [self]
        count = -(-len(self) // size) if size == 1 else min(-(-len(self) // size), len(self) // 2)
        cuts = [-(-len(self) * i // count) for i in range(count + 1)]  # the first is the largest
        given: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        parts: list[dict[str, Any]] = [
            {name: None if value is None else _rows_of(value, start, stop) for name, value in given.items()}
            for start, stop in pairwise(cuts)
        ]
        return [Batch(**part) for part in parts]


class Part(NamedTuple):
    """One term of a loss, as a sum and the count that it will be divided by, once and globally.

    `sum` is a scalar tensor with gradient; `count` is how many things were summed (samples, boxes, unmasked labels).
    """

    sum: Tensor
    count: Tensor | float  # type: ignore[assignment]  # hides tuple.count, which nothing uses
    weight: float = 1.0


Loss = dict[str, Part]


class Aim(NamedTuple):
    """One number of a model's answer that can be explained.

    `head` and `class_name` say in words which; `pick` takes the model's outputs (the NamedTuple of tensors) and gives
    that number for each picture, (B,), with gradient; `chance` gives it as a probability in [0, 1].
    """

    head: str
    class_name: str
    pick: Callable[[Any], Tensor]
    chance: Callable[[Any], Tensor]


class Monitor(NamedTuple):
    """The metric that chooses the best model on the validation part."""

    name: str
    higher_is_better: bool = True


S = TypeVar("S", bound=TaskSettings)


class Task(abc.ABC, Generic[S]):
    """A kind of work: what is learned from a sample, what a prediction is and how it is judged.

    A subclass is one file in `opsin.tasks`, named by the verb a person types, and sets `settings_type`. A concrete
    method is never overridden in a second level of inheritance.
    """

    phases: ClassVar[tuple[str, ...]] = ("main",)
    coupled: ClassVar[bool] = False
    settings_type: ClassVar[type[TaskSettings]] = TaskSettings
    defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """The weakest layer of a run's settings, by section, where the general defaults do not suit the task."""
    explained_by: ClassVar[str] = "grad-cam"
    """The method of `opsin.explain` unless another is named."""
    spec: ImageSpec | None = None  # what pictures are turned into, for tasks on pictures

    def __init__(self, settings: S) -> None:
        self.settings = settings

    # From data to settings, from settings to a model -----------------------------------------------------------------

    @classmethod
    def view(cls, data: Any) -> Any:
        """The data set as the task sees it, before it is split; by default as it is.

        A task whose samples are parts of pictures makes them here. It keeps the parts of one picture together by a column
        that `defaults` names as `data.split.group`.

        Raises:
            DataError: if the data set has nothing to make such samples of.
        """
        return data

    @classmethod
    @abc.abstractmethod
    def infer(cls, data: Any, indices: NDArray[np.int64], given: Mapping[str, Any]) -> S:
        """Complete settings: what a person gave, and the rest from the training samples (class names, size, mean).

        Args:
            data: the data set (`opsin.data.dataset.Dataset`).
            indices: positions of the training part; nothing else may be looked at.
            given: settings as given, by field name.

        Raises:
            DataError: if the data set has no such targets; the message says what it has.
        """

    @property
    @abc.abstractmethod
    def model_facts(self) -> dict[str, Any]:
        """What a network must fit: `in_channels`, `num_outputs`, `image_size` (H, W)."""

    @property
    def classes(self) -> dict[str, tuple[str, ...]]:
        """Class names by head, for tasks with classes: what other data must have to be judged by this model."""
        return {}

    @property
    def point_names(self) -> tuple[str, ...]:
        """Names of an object's points, in order, for tasks with points: as `classes`."""
        return ()

    def assemble(self, network: nn.Module) -> nn.Module:
        """Put what belongs to the model but not to the architecture around it, e.g. pixel normalization."""
        return network

    @property
    def static_prepare(self) -> bool:
        """Whether `prepare` is the same in training and evaluation and gives inputs of one size."""
        return False

    @property
    def reduce_to(self) -> int | None:
        """Pixels of the shorter side that are enough for `prepare`; None if pictures are wanted as they are."""
        return None

    def input_settings(self) -> dict[str, Any]:
        """The settings that decide what `prepare` makes of a picture for prediction; by default all of them."""
        return self.settings.model_dump(mode="json")

    # From a sample to a batch -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def prepare(self, sample: Sample, key: int, train: bool) -> Prepared:
        """Bring one sample to the model's input: image and target together, random parts from `key` alone."""

    @abc.abstractmethod
    def collate(self, samples: Sequence[Prepared], keys: Keys) -> Batch:
        """Put prepared samples into one batch."""

    def partners(self, keys: Keys) -> NDArray[np.int64] | None:
        """For mixing augmentations: whom each sample of the *global* batch (keys (B,)) is mixed with: (B,), (B, P), None."""
        del keys
        return None

    def weights(self, data: Any, indices: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """How often each of the training samples at `indices` (N,) is wanted in an epoch; None for once each."""
        del data, indices
        return None

    def augment(self, batch: Batch) -> Batch:
        """Augment a whole training batch on its device; returns the own samples only."""
        return batch

    # Training ---------------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch, phase: str) -> dict[str, float]:
        """Counts per loss part that are known from the targets alone; the others are taken from `training_step`."""
        del batch, phase
        return {}

    @abc.abstractmethod
    def training_step(self, model: nn.Module, batch: Batch, phase: str) -> Loss:
        """The loss of a micro-batch as named parts. Calls `model(...)` only, never its parts."""

    def parameters(self, model: nn.Module, phase: str) -> Iterable[tuple[str, nn.Parameter]]:
        """Named parameters that a phase trains; all of them by default."""
        del phase
        return model.named_parameters()

    def gather(self, features: Tensor) -> Tensor:
        """For coupled tasks: the rows of all processes, own gradient kept; the engine replaces it when there are several."""
        return features

    def fit_head(
        self, features: NDArray[np.float32], data: Any, indices: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], str] | None:
        """Weights of a last linear layer that fits features to targets, for transfer without steps.

        Args:
            features: (N, D), what the last layer is given for the samples.
            data: the data set.
            indices: positions of the samples, (N,).

        Returns:
            Weight (K, D), bias (K,) and what was done in words; None if the task has no such fit.
        """
        del features, data, indices
        return None

    def prior(self, data: Any, indices: NDArray[np.int64]) -> NDArray[np.float32] | None:
        """Logits (K,) that say of every picture the shares of the classes among the samples at `indices`.

        None if the task has no classes. Only the targets of `data` are looked at.
        """
        del data, indices
        return None

    # Prediction and judgement -----------------------------------------------------------------------------------------

    @abc.abstractmethod
    def predict_step(
        self, outputs: Mapping[str, NDArray[Any]], ids: Sequence[str], geometry: Sequence[Geometry]
    ) -> list[Any]:
        """Turn model outputs (arrays by name, from any runtime) into one result per picture, in original pixels."""

    def aim(
        self, outputs: Mapping[str, NDArray[Any]], *, class_name: str | None = None, head: str | None = None
    ) -> Aim:
        """Which number of the model's answer to explain; optional, like everything that a report shows.

        Args:
            outputs: the model's outputs for the one picture in question, arrays by name with first axis 1.
            class_name: by default what the model says of that picture.
            head: by default the first.

        Raises:
            ConfigError: if the task has no such number.
            UnknownName: if it has no such class or head.
        """
        del outputs, class_name, head
        raise ConfigError(
            f"The task {type(self).__name__.lower()} cannot be explained: it names no score of a picture."
        )

    @abc.abstractmethod
    def score(self, result: Any, target: Mapping[str, Any]) -> dict[str, Any]:
        """One row: everything that metrics, intervals and comparisons need of this sample."""

    @abc.abstractmethod
    def summarize(self, rows: Rows, weights: NDArray[Any] | None = None) -> dict[str, Any]:
        """Metrics of rows under weights: values of shape () for weights None or (N,), of shape (R,) for (R, N)."""

    @property
    @abc.abstractmethod
    def monitor(self) -> Monitor:
        """The metric that picks the best model."""

    @abc.abstractmethod
    def example_inputs(self, batch_size: int = 1) -> Tensor:
        """Inputs of the right shape and type, for export and cost."""

    # What a report shows; all optional --------------------------------------------------------------------------------

    def calibrate(self, rows: Rows) -> S:
        """Settings with operating points chosen on the rows of the validation part."""
        del rows
        return self.settings

    def correct(self, rows: Rows) -> NDArray[np.float64] | None:
        """Whether each row is answered right, (N,) of 0 and 1, nan without a label; None if answers have degrees."""
        del rows
        return None

    def sections(self, rows: Rows) -> list[Section]:
        """Tables, matrices, curves and galleries for the report."""
        del rows
        return []

    def marks(self, row: Mapping[str, Any]) -> list[Mark]:
        """What is drawn over the picture of a row in galleries: what was found, and what is there.

        Args:
            row: one row of the table, by column.
        """
        del row
        return []

    def warnings(
        self,
        rows: Rows,
        train_metrics: Mapping[str, float] | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        split: str = "test",
    ) -> list[Note]:
        """What a reader must be told before believing the metrics.

        Args:
            rows: of one part of the data.
            train_metrics: values on the training part.
            metrics: name to interval (`opsin.metrics.intervals.Interval`) of the rows.
            split: the part that the rows are from.
        """
        del rows, train_metrics, metrics, split
        return []

    def draw_targets(self, batch: Batch) -> Image.Image | None:
        """An augmented batch with what is to be learned from it, for people to look at before step 1; None for no picture."""
        del batch
        return None

    def check_batch(self, model: nn.Module, batch: Batch) -> Iterator[Note]:
        """Preflight findings that only the task can see (label range, loss at the start, outputs against targets)."""
        del model, batch
        return iter(())


def as_arrays(outputs: Any) -> dict[str, NDArray[Any]]:
    """Turn the NamedTuple that a model returns (or a bare tensor, called `logits`) into float32 arrays by name."""
    named = outputs._asdict() if hasattr(outputs, "_asdict") else {"logits": outputs}
    return {
        name: (value.detach().float() if value.is_floating_point() else value.detach()).cpu().numpy()
        for name, value in named.items()
        if isinstance(value, Tensor)
    }
