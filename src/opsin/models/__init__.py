"""Networks by name: `build(ModelSpec(...))` gives a module whose `forward(images)` returns `Classified`.

A name is a registered one (`models`), `timm/NAME`, `pkg.module:builder` or `file.py:builder`. A builder is a function
(or a class) with keyword arguments; it is handed those of `num_classes`, `in_channels` and `image_size` that it takes.
Importing this package, and listing the names, loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from opsin.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor, nn

models = Registry("model", "opsin.models", leave_out=("importers",))

SMALL_PICTURE = 40  # pixels: up to here `auto` takes the small net


class Classified(NamedTuple):
    """What a classifier returns, the same in training and evaluation."""

    logits: Tensor  # (B, K), before softmax or sigmoid
    auxiliary: tuple[Tensor, ...] = ()  # (B, K) each: of heads in the middle of the network, in training mode only


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
        num_outputs: K, columns of the logits.
        image_size: (H, W) of the pictures that the network gets.
    """

    name: str = "auto"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    in_channels: int = 3
    num_outputs: int = 1000
    image_size: tuple[int, int] = (224, 224)

    def to_dict(self) -> dict[str, Any]:
        """The spec as JSON values."""
        return {
            "name": self.name,
            "kwargs": dict(self.kwargs),
            "in_channels": self.in_channels,
            "num_outputs": self.num_outputs,
            "image_size": list(self.image_size),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ModelSpec:
        """Rebuild a spec from `to_dict`."""
        height, width = values["image_size"]
        return cls(**{**values, "kwargs": dict(values["kwargs"]), "image_size": (height, width)})


def resolve(spec: ModelSpec) -> ModelSpec:
    """Replace `auto` by the network that suits the picture size; other names stay as they are."""
    if spec.name != "auto":
        return spec
    return replace(spec, name="smallnet" if max(spec.image_size) <= SMALL_PICTURE else "resnet18")


def build(spec: ModelSpec, *, check: bool = True) -> nn.Module:
    """Build the network that a spec describes, on the CPU, with new weights from torch's default generator.

    Args:
        spec: what to build.
        check: send 2 pictures through and compare the shape of the logits with the spec. Running statistics, modes and
            random numbers are left as they were.

    Returns:
        A module with `forward(images) -> NamedTuple` whose field `logits` is (B, num_outputs). A person's module that
        returns a bare tensor, a dict or an object with `logits` is wrapped (as `.net`).

    Raises:
        UnknownName: if nothing has that name.
        ConfigError: if the builder has no such argument or refuses a value.
        ShapeError: if the network cannot take such pictures, or its logits have another shape.
    """
    from opsin.models.builder import build_model

    return build_model(resolve(spec), check=check)
