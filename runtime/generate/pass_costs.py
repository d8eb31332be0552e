"""What passes over one token and over several take, as measured on the way."""

from __future__ import annotations

from collections import deque
from statistics import median

KEPT = 5  # times of each kind; their median counts
WIDER = 0.05  # of a single token: what a further one adds to a pass, before it was timed


class PassCosts:
    """Seconds by tokens of a pass."""

    def __init__(self) -> None:
        self._passes: dict[int, deque[float]] = {}

    def note(self, tokens: int, seconds: float) -> None:
        self._passes.setdefault(tokens, deque(maxlen=KEPT)).append(seconds)

    @property
    def alone(self) -> float:
        """Of a single token; 0 before any."""
        return median(self._passes[1]) if 1 in self._passes else 0.0

    @property
    def wider(self) -> float:
        """That a further token adds, on the average."""
        widest = max(self._passes, default=1)
        if widest == 1:
            return WIDER * self.alone
        return max(0.0, median(self._passes[widest]) - self.alone) / (widest - 1)

    def cost(self, tokens: int) -> float:
        """Of a pass: as timed, or on the line between the nearest ones that were."""
        if tokens in self._passes:
            return median(self._passes[tokens])
        below = max(known for known in self._passes if known < tokens)
        start = median(self._passes[below])
        above = min((known for known in self._passes if known > tokens), default=0)
        if not above:
            return start + self.wider * (tokens - below)
        slope = (median(self._passes[above]) - start) / (above - below)
        return start + slope * (tokens - below)
