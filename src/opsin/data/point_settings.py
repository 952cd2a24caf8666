"""What the points of an object are, as a setting: from the data, or said by the person."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opsin.data.point_names import swaps_by_name
from opsin.data.targets import PointSpec
from opsin.recipe import Settings


class PointSettings(Settings):
    """What the points are; what is not given is taken from the data."""

    names: tuple[str, ...] = ()
    swaps: tuple[int, ...] = ()
    """Where each point goes when the picture is mirrored; empty if not known."""
    skeleton: tuple[tuple[int, int], ...] = ()
    """Pairs of points that are joined when drawn."""
    sigmas: tuple[float, ...] = ()
    """Spread of annotators as a share of the object's size, for OKS; empty if not known."""

    @classmethod
    def of(cls, points: PointSpec, given: Settings | Mapping[str, Any] | None) -> PointSettings:
        """The points of the data, with what was given on top; twins that nobody names are found by the points' names."""
        return cls.over({**vars(points), "swaps": points.swaps or swaps_by_name(points.names)}, given)
