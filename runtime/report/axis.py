"""Scales of the plots: from a value to a place between 0 and 1, and where the ticks are."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

DECADES = 8  # a logarithmic axis shows no more; what is smaller stands at its lower end
MOST_TICKS = 5
HUGE = 1e300  # spans of larger numbers would overflow
TINY = 1e-290  # and the logarithm of smaller ones underflow
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Axis:
    """From `low` to `high` (low < high, both positive when logarithmic)."""

    low: float
    high: float
    is_log: bool

    def share(self, value: float) -> float:
        """Place of a value: 0 at the low end, 1 at the high end, never outside; NaN is at 0."""
        if math.isnan(value):
            return 0.0
        value = min(max(value, self.low), self.high)
        if self.is_log:
            return math.log10(value / self.low) / math.log10(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    @property
    def ticks(self) -> list[float]:
        """At most 6 round values inside the axis."""
        if self.is_log:
            first, last = math.ceil(_log(self.low)), math.floor(_log(self.high))
            stride = max(1, math.ceil((last - first) / MOST_TICKS))
            return [10.0**power for power in range(first, last + 1, stride)]
        step = _round_step((self.high - self.low) / MOST_TICKS)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * count for count in range(first, last + 1)]


def _log(value: float) -> float:
    """log10, with whole decades not blurred by rounding."""
    return round(math.log10(value), 9)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= least)


def log_axis(values: Iterable[float]) -> Axis:
    """Whole decades round the positive finite values, at most DECADES of them."""
    found = [min(max(v, TINY), 1 / TINY) for v in values if math.isfinite(v) and v > 0]
    if not found:
        return Axis(1e-6, 1.0, True)
    last = math.ceil(_log(max(found)))
    first = max(math.floor(_log(min(found))), last - DECADES)
    return Axis(10.0 ** min(first, last - 1), 10.0**last, True)


def linear_axis(values: Iterable[float], from_zero: bool = False) -> Axis:
    """Round limits about the finite values; `from_zero` includes 0."""
    found = [min(max(v, -HUGE), HUGE) for v in values if math.isfinite(v)]
    found += [0.0] if from_zero or not found else []
    low, high = min(found), max(found)
    if high - low <= max(abs(high) * 1e-9, TINY):  # all equal
        margin = abs(high) * 0.1 if abs(high) > TINY else 1.0
        low, high = (low - margin if low else 0.0), high + margin
    step = _round_step((high - low) / MOST_TICKS)
    return Axis(step * math.floor(low / step), step * math.ceil(high / step), False)


def tick_text(value: float) -> str:
    """0.01, 250, 2×10⁸, 10⁻⁶."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    sign, power = "-" if value < 0 else "", math.floor(_log(abs(value)))
    factor = f"{abs(value) / 10.0**power:.2g}×"
    return f"{sign}{'' if factor == '1×' else factor}10{str(power).translate(SUPERSCRIPTS)}"
