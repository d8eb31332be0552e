"""How well a calibrated matrix was quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

DOUBTFUL_SQNR = 6.0  # dB: a quarter of the signal's power is error
DOUBTFUL_LOSS = 1.0  # dB below plain rounding


@dataclass(frozen=True)
class MatrixReport:
    """How well a calibrated matrix was quantized.

    sqnr: power of the outputs aimed at over the power of their error on one calibration window, in
    dB (aimed at: those of the original weights on inputs moved towards the original model's by the
    strength of the prefix correction); sqnr_rounded: the same when rounded to nearest;
    damping: share of the mean diagonal that the factorisation needed;
    flat_rows: those whose codes are all alike though the weights are not.
    """

    module: str
    sqnr: float
    sqnr_rounded: float
    damping: float
    seconds: float
    flat_rows: int

    @property
    def doubtful(self) -> bool:
        """Worth a look: much error, codes that carry nothing, or worse than plain rounding."""
        return (
            self.sqnr < DOUBTFUL_SQNR
            or self.flat_rows > 0
            or self.sqnr < self.sqnr_rounded - DOUBTFUL_LOSS
        )

    def facts(self) -> dict[str, float]:
        """What is the same in every run."""
        return {
            "sqnr": self.sqnr,
            "sqnr_rounded": self.sqnr_rounded,
            "damping": self.damping,
            "flat_rows": self.flat_rows,
        }


Report = Callable[[MatrixReport], None]
