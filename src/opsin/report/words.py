"""Numbers and sentences as a reader gets them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from opsin.metrics.names import METRICS, MetricInfo

_CAPITALS = {
    "auroc": "AUROC",
    "ece": "ECE",
    "f1": "F1",
    "mcc": "MCC",
    "ppv": "PPV",
    "npv": "NPV",
    "rmse": "RMSE",
    "mae": "MAE",
    "r2": "R²",
    "map": "mAP",
    "map50": "mAP50",
    "map75": "mAP75",
    "map_small": "mAP of small objects",
    "map_medium": "mAP of medium objects",
    "map_large": "mAP of large objects",
    "ar1": "AR1",
    "ar10": "AR10",
    "ar100": "AR100",
    "ar_small": "AR of small objects",
    "ar_medium": "AR of medium objects",
    "ar_large": "AR of large objects",
    "voc07": "VOC 2007 mAP",
    "voc": "VOC mAP",
    "froc": "FROC",
    "oks_map": "OKS mAP",
    "nme": "NME",
}
_MINUS = "\N{MINUS SIGN}"
_PERCENT = "\N{NO-BREAK SPACE}%"
LEVEL = f"95{_PERCENT} interval"


def known(value: Any) -> bool:
    """Whether a number is there and finite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: Any) -> str:
    """A metric with four decimals, larger numbers with fewer."""
    if not known(value):
        return "undefined"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def signed(value: Any) -> str:
    """A difference with its sign."""
    return f"{value:+.4f}".replace("-", _MINUS) if known(value) else ""


def percent(value: Any) -> str:
    """A share as a percentage; never 100 or 0 for what is only nearly all or none."""
    if not known(value):
        return "undefined"
    for digits in (1, 2, 3):
        text = f"{100 * value:.{digits}f}"
        if float(text) not in (0.0, 100.0) or value in (0, 1):
            return f"{text}{_PERCENT}"
    return ("over 99.999" if value > 0.5 else "under 0.001") + _PERCENT


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", _MINUS)


def is_share(name: str) -> bool:
    """Whether a metric lies between 0 and 1."""
    found = metric_info(name)
    return name == "heads_mean" or (found is not None and found.range.startswith("[0, 1]"))


def metric_info(name: str) -> MetricInfo | None:
    """The table's entry of a metric, also of one head's (`color.accuracy`) or at an operating point."""
    base = name.rpartition(".")[2]
    return METRICS.get(base) or METRICS.get(base.removesuffix("_at_point"))


def metric_title(name: str) -> str:
    """A metric's name in words."""
    if name == "heads_mean":
        return "Mean over heads"
    head, _, base = name.rpartition(".")
    words = _CAPITALS.get(base, base.replace("_at_point", " at the operating point").replace("_", " "))
    if base not in _CAPITALS:
        words = words[0].upper() + words[1:]
    return f"{words} of {head}" if head else words


def interval(one: Mapping[str, Any], *, shares: bool = False) -> str:
    """`low to high`, empty when there is none."""
    if not known(one.get("low")) or not known(one.get("high")):
        return ""
    show = percent if shares else number
    low, high = show(one["low"]), show(one["high"])
    return f"{low.removesuffix(_PERCENT)} to {high}" if shares else f"{low} to {high}"


def count(value: int, noun: str, plural: str | None = None) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{value:,} {noun if value == 1 else plural or noun + 's'}"


def duration(seconds: Any) -> str:
    """Seconds as a person says them."""
    if not known(seconds):
        return "unknown"
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds) // 60} min {int(seconds) % 60} s"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60} min"


def compact(value: int) -> str:
    """A large number in few signs: 1.9 M."""
    for unit, factor in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= factor:
            return f"{value / factor:.1f} {unit}"
    return str(value)


def moment(text: Any) -> str:
    """An ISO date as `2026-11-22 10:29 UTC`; anything else as it is."""
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    zone = " UTC" if when.utcoffset() is not None and not when.utcoffset() else ""
    return f"{when:%Y-%m-%d %H:%M}{zone}"
