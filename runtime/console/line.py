"""How far something is, and the words that say so."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from .units import clock_text, rate_text

BAR, SHORTEST = 20, 5  # columns
RECENT = 30.0  # seconds that the rate is taken over; a third of the time once that is longer


@dataclass
class Task:
    """Something that takes a while.

    total: 0 where nobody knows. began: seconds of any clock. preceded: of them passed before the
    first unit was begun, by something that had a line of its own.
    """

    title: str
    total: int
    unit: str
    began: float
    preceded: float = 0.0
    done: int = 0
    marks: deque[tuple[float, int]] = field(default_factory=deque)

    def advance(self, count: int, now: float) -> None:
        if not self.marks:
            self.marks.append((self.began + self.preceded, 0))
        self.done += count
        self.marks.append((now, self.done))
        while len(self.marks) > 2 and now - self.marks[1][0] > max(RECENT, (now - self.began) / 3):
            self.marks.popleft()

    def rate(self) -> float:
        """Units per second of late; 0 before the first ones are done."""
        if not self.marks:
            return 0.0
        (start, before), (end, done) = self.marks[0], self.marks[-1]
        return (done - before) / (end - start) if end > start else 0.0

    def left(self, now: float) -> float | None:
        """Seconds; None where nothing tells."""
        rate = self.rate()
        if not self.total or rate <= 0:
            return None
        return max((self.total - self.done) / rate - (now - self.marks[-1][0]), 0.0)

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0


def words(task: Task, now: float) -> str:
    """For a log: `quantize: 45 %, 12.3M weights/s, elapsed 0:35, left 0:43`."""
    return f"{task.title}: {', '.join((*_how_far(task), _times(task, now)))}"


def bar(task: Task, now: float, width: int, is_unicode: bool) -> str:
    """For a terminal: the same with a bar, in at most `width` columns."""
    full, empty = ("━", "─") if is_unicode else ("#", "-")
    line = "  ".join((task.title, *_how_far(task), _times(task, now)))
    columns = min(width - len(line) - 2, BAR)
    if not task.total and columns >= 0:
        return line
    if columns < SHORTEST:
        return words(task, now)[:width]
    filled = round(columns * task.share)
    drawn = full * filled + empty * (columns - filled)
    return line.replace(task.title, f"{task.title}  {drawn}", 1)


def _how_far(task: Task) -> list[str]:
    found = [f"{100 * task.share:.0f} %"] if task.total else []
    rate = task.rate()
    return [*found, rate_text(rate, task.unit)] if rate else found


def _times(task: Task, now: float) -> str:
    left = task.left(now)
    elapsed = f"elapsed {clock_text(now - task.began)}"
    return elapsed if left is None else f"{elapsed}, left {clock_text(left)}"
