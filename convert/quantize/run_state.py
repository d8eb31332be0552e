"""What the parts of a quantization run share: copying, rounding, calibration, tuning."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job
from dsconv.progress import Advance

from .journal import Journal
from .matrix_report import Report
from .options import QuantizeOptions
from .writer import QuantizedWriter


@dataclass(frozen=True)
class Listeners:
    """Who is told how the run goes.

    advance: the number of weights done, for a progress bar; report: every calibrated matrix;
    say: how the tuning goes.
    """

    advance: Advance = lambda weights: None
    report: Report = lambda matrix: None
    say: Callable[[str], None] = lambda line: None


SILENT = Listeners()


@dataclass(frozen=True)
class QuantizeRun:
    """A run whose files are open. windows: token ids to calibrate on, empty without calibration."""

    checkpoint: Checkpoint
    jobs: Sequence[Job]
    windows: Sequence[Sequence[int]]
    writer: QuantizedWriter
    options: QuantizeOptions
    journal: Journal
    listeners: Listeners
