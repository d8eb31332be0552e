"""Numbers, sizes and times as people write them: 135M parameters, 1.34 GB, 4.0k tokens/s, 0:05."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from dsconv.errors import UsageError

BARS = "▁▂▃▄▅▆▇█"
PREFIXES = ("", "k", "M", "G", "T", "P")
BYTES = "B"


def _scaled(value: float, digits: int) -> tuple[float, str]:
    """The value below 1,000 once it is rounded to so many digits, and its decimal prefix."""
    place = 0
    while place < len(PREFIXES) - 1 and float(f"{abs(value):.{digits}g}") >= 1000:
        value, place = value / 1000, place + 1
    return value, PREFIXES[place]


def count_text(value: float) -> str:
    """A number of things, its prefix at it: 42, 4.0k, 95.8k, 135M, 1.5G."""
    scaled, prefix = _scaled(value, 3)
    if not prefix:
        return f"{value:.0f}" if value == round(value) or abs(value) >= 100 else f"{value:.3g}"
    return f"{scaled:.0f}{prefix}" if abs(scaled) >= 99.95 else f"{scaled:.1f}{prefix}"


def size_text(count: float) -> str:
    """Bytes: 1.34 GB."""
    scaled, prefix = _scaled(count, 3)
    return f"{scaled:.3g} {prefix}{BYTES}"


def rate_text(value: float, unit: str) -> str:
    """Per second: 1.5 GB/s, 4.0k tokens/s."""
    return f"{size_text(value)}/s" if unit == BYTES else f"{count_text(value)} {unit}/s"


def parse_size(text: str) -> int:
    """Bytes of `512MiB`, `2GiB`, `1.5 GB`, or a plain number.

    Raises:
        UsageError: something else.
    """
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(i?)B?\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else -1.0
    except ValueError:
        number = -1.0
    if match is None or not 0 <= number < 1e15:
        raise UsageError(f"{text!r} is not a size", "use a number of bytes, e.g. 2GiB")
    base = 1024 if match[3] else 1000
    return int(number * base ** " KMGT".index(match[2].upper() or " "))


def time_text(seconds: float) -> str:
    """A time in words: < 0.1 s, 0.4 s, 36 s, 12 min, 3 h 20 min."""
    if 0 < seconds < 0.1:
        return "< 0.1 s"
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def clock_text(seconds: float) -> str:
    """A time that passes: 0:05, 12:40, 3:20:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def sparkline(shares: Sequence[float], bars: str = BARS) -> str:
    """A bar per value between 0 and 1; `?` where it is not a number."""
    return "".join(
        "?" if math.isnan(share) else bars[round(share * (len(bars) - 1))] for share in shares
    )
