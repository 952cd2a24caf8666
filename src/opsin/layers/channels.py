"""How many channels a layer has after a width multiplier."""

from __future__ import annotations


def rounded_channels(channels: float, divisor: int = 8) -> int:
    """Round to the nearest multiple of `divisor`, at least one, and never down by more than a tenth.

    The rule by which the published MobileNets were scaled, so that widths fit vector units.

    Example:
        >>> rounded_channels(32 * 0.75), rounded_channels(10), rounded_channels(11.9)
        (24, 16, 16)
    """
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
