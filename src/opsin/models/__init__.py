"""Networks by name: `build(ModelSpec(...))` gives a module whose `forward(images)` returns `Classified`, `Detected` or
`Located`.

A name is a registered one (`models`), `timm/NAME`, `pkg.module:builder` or `file.py:builder`. A builder is a function
(or a class) with keyword arguments; it is handed those of `num_classes`, `in_channels` and `image_size` that it takes.
Importing this package, and listing the names, loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from opsin.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

    from opsin.task import Part

Answer = Literal["classified", "detected", "located"]
"""What a network's forward returns: `Classified`, `Detected` or `Located`."""

models = Registry("model", "opsin.models", leave_out=("importers",))

SMALL_PICTURE = 40  # pixels: up to here `auto` takes the small net


class Classified(NamedTuple):
    """What a classifier returns, the same in training and evaluation."""

    logits: Tensor  # (B, K), before softmax or sigmoid
    auxiliary: tuple[Tensor, ...] = ()  # (B, K) each: of heads in the middle of the network, in training mode only


class Detected(NamedTuple):
    """What a detector returns, the same in training and evaluation: N candidates a picture, before boxes of one object are
    merged (`opsin.tasks.detect` does that, so that it is the same for every runtime).

    With targets given the losses are there, and N may be 0.
    """

    boxes: Tensor  # (B, N, 4) xyxy in pixels of the input
    scores: Tensor  # (B, N) in [0, 1]; 0 where there is no candidate
    labels: Tensor  # (B, N) int64, positions in the class names
    overlap: Tensor  # () IoU above which the weaker of two boxes of one class is dropped; 1 if none has to be
    points: Tensor | None = None  # (B, N, P, 3): x, y in pixels of the input and a score in [0, 1]
    losses: Mapping[str, Part] | None = None  # name to sum and count


class Located(NamedTuple):
    """What a keypoint network returns, the same in training and evaluation; the losses are there if targets are given."""

    points: Tensor  # (B, P, 2): x, y in pixels of the input
    scores: Tensor  # (B, P) in [0, 1]
    losses: Mapping[str, Part] | None = None  # name to sum and count


class Feature(NamedTuple):
    """One level of a backbone's `forward_pyramid`: channels, and input pixels per feature cell."""

    channels: int
    stride: int


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a network again; stored in the bundle.

    Args:
        name: registered name, `timm/NAME`, `pkg.module:builder`, `file.py:builder`, or `auto`.
        kwargs: the builder's own keyword arguments.
        in_channels: channels of a picture.
        num_outputs: K, columns of the logits, or classes of boxes.
        image_size: (H, W) of the pictures that the network gets.
        answer: what `forward` has to return.
        num_points: P, points of an object or a picture.
    """

    name: str = "auto"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    num_outputs: int = 1000
    image_size: tuple[int, int] = (224, 224)
    answer: Answer = "classified"
    num_points: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "in_channels": self.in_channels,
            "num_outputs": self.num_outputs,
            "image_size": list(self.image_size),
            "answer": self.answer,
            "num_points": self.num_points,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_dict`."""
        height, width = values["image_size"]
        return cls(**{**values, "kwargs": dict(values["kwargs"]), "image_size": (height, width)})


_ROOMS: dict[str, Answer] = {"detectors": "detected", "keypoints": "located"}
_DEFAULTS: dict[Answer, str] = {"detected": "yolox_nano", "located": "heatmap_net"}


def answer_of(name: str) -> Answer | None:
    """What the network of a registered name returns, by the folder that its file lies in; None for other names."""
    if name.startswith("timm/"):
        return "classified"
    if name not in models:
        return None
    return _ROOMS.get(models.where(name).removeprefix("opsin.models.").partition(".")[0], "classified")


def resolve(spec: ModelSpec) -> ModelSpec:
    """Replace `auto` by the network that suits the task and the picture size; other names stay as they are."""
    if spec.name != "auto":
        return spec
    if spec.answer in _DEFAULTS:
        return replace(spec, name=_DEFAULTS[spec.answer])
    return replace(spec, name="smallnet" if max(spec.image_size) <= SMALL_PICTURE else "resnet18")


def build(spec: ModelSpec, *, check: bool = True) -> nn.Module:
    """Build the network that a spec describes, on the CPU, with new weights from torch's default generator.

    Args:
        spec: what to build.
        check: send 2 pictures through and compare the shape of the answer with the spec. Running statistics, modes and
            random numbers are left as they were.

    Returns:
        A module with `forward(images) -> NamedTuple` as `spec.answer` says. A person's classifier that returns a bare
        tensor, a dict or an object with `logits` is wrapped (as `.net`).

    Raises:
        UnknownName: if nothing has that name.
        ConfigError: if the builder has no such argument or refuses a value.
        ShapeError: if the network cannot take such pictures, or its logits have another shape.
    """
    from opsin.models.builder import build_model

    return build_model(resolve(spec), check=check)
