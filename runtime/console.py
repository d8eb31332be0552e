"""What people see: progress bars with rate and time left, on stderr, on a terminal only."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from dsconv.errors import UsageError
from dsconv.progress import Advance

BARS = "▁▂▃▄▅▆▇█"
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


class _RateColumn(ProgressColumn):
    """Units per second, e.g. `56 Mweights/s`."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        if not task.speed:
            return Text("")
        return Text(f"{quantity(task.speed)}{self._unit}/s", style="progress.data.speed")


def quantity(value: float) -> str:
    """Three significant digits with a decimal prefix: 1.78 G."""
    for factor, prefix in PREFIXES:
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "


def size_text(count: float) -> str:
    """Bytes for people: 1.34 GB."""
    return f"{quantity(count)}B"


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
    """Seconds for people: 0.4 s, 36 s, 12 min, 3 h 20 min."""
    if seconds < 99.5:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def sparkline(shares: Sequence[float], bars: str = BARS) -> str:
    """A bar per value between 0 and 1; `?` where it is not a number."""
    return "".join(
        "?" if math.isnan(share) else bars[round(share * (len(bars) - 1))] for share in shares
    )


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Yield the function that moves a bar by a number of units; shown from its first call on."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda count: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True)
    tasks: list[TaskID] = []

    def advance(count: int) -> None:
        if not tasks:
            bar.start()
            tasks.append(bar.add_task(title, total=total))
        bar.advance(tasks[0], count)

    try:
        yield advance
    finally:
        if tasks:
            bar.stop()


def say(message: str) -> None:
    """A line for people."""
    print(message, file=sys.stderr)
