"""What people see: progress bars with rate and time left, on stderr, on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]

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


@contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
    """Show a bar on a terminal; yield the function that moves it by a number of units."""
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
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.advance(task, count)


def say(message: str) -> None:
    """A line for people."""
    print(message, file=sys.stderr)
