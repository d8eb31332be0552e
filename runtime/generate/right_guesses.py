"""How often guesses are right, by their kind; the last ones count most."""

from __future__ import annotations

from collections.abc import Sequence

WEIGHT = 4.0  # of what is believed before any guess, in guesses
MEMORY = 0.98  # weight of a guess against the next one of its kind

CONFIDENCES = (0.3, 0.5, 0.7, 0.9)  # edges between kinds
AS_CONFIDENT = (0.2, 0.4, 0.6, 0.8, 0.95)  # a draft is right as often as it believes


class RightGuesses:
    """prior: of each kind, the share of right ones before any."""

    def __init__(self, prior: Sequence[float]) -> None:
        self._right = [share * WEIGHT for share in prior]
        self._trials = [WEIGHT] * len(prior)

    def share(self, kind: int) -> float:
        return self._right[kind] / self._trials[kind]

    def note(self, kind: int, right: bool) -> None:
        self._right[kind] = MEMORY * self._right[kind] + right
        self._trials[kind] = MEMORY * self._trials[kind] + 1


def confidence_kind(confidence: float) -> int:
    """Of a guess to which the draft gives this probability; an index of AS_CONFIDENT."""
    return sum(confidence >= edge for edge in CONFIDENCES)
