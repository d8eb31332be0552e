"""One matrix, rounded with error feedback on what is known of its inputs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.forward.workers import Workers
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.errors import InputError
from dsconv.quant.gptq import Factor, correction, gptq
from dsconv.quant.schemes import Floats, QuantizedMatrix, Scheme
from dsconv.quant.sqnr import decibels, error_power, output_power

from .memory_budget import rows_at_a_time
from .moments import InputStatistics
from .weights import Rows

LOWEST_SQNR = 0.0  # dB: below, the error is larger than the signal and the run stops


@dataclass(frozen=True)
class GroupInputs:
    """What the matrices of one input are rounded on.

    sample, wanted: [positions, columns], to measure the error on: what the matrices get, and what
    the original weights would get for the outputs that are aimed at. strength: of the correction of
    the prefix. scales: by which the inputs were divided [columns].
    """

    statistics: InputStatistics
    sample: Floats
    wanted: Floats
    strength: np.float32
    scales: Floats | None = None

    @classmethod
    def between(
        cls,
        statistics: InputStatistics,
        sample: Floats,
        original: Floats | None,
        prefix_correction: float,
    ) -> GroupInputs:
        """Aimed at are the outputs on inputs between these and the original model's."""
        strength = np.float32(prefix_correction)
        wanted = sample if original is None else sample + strength * (original - sample)
        return cls(statistics, sample, wanted, strength)

    def divided(self, scales: Floats) -> GroupInputs:
        """The statistics are given up."""
        self.statistics.divide(scales)
        return replace(
            self, sample=self.sample / scales, wanted=self.wanted / scales, scales=scales
        )

    @property
    def wanted_mean(self) -> Floats:
        statistics = self.statistics
        if not statistics.differences:
            return statistics.mean
        return statistics.mean + self.strength * statistics.mean_difference


@dataclass(frozen=True)
class MatrixTask:
    """A matrix and what it is rounded on: what all slices of its rows share.

    received: what the quantized matrix meets of the sample.
    """

    rows: Rows
    scheme: Scheme
    factor: Factor
    inputs: GroupInputs
    received: Floats

    @classmethod
    def of(cls, rows: Rows, scheme: Scheme, factor: Factor, inputs: GroupInputs) -> MatrixTask:
        return cls(rows, scheme, factor, inputs, scheme.received(inputs.sample))

    def slices(self) -> Iterator[tuple[int, int]]:
        rows, columns = self.rows.shape
        step = rows_at_a_time(columns)
        for start in range(0, rows, step):
            yield start, min(rows, start + step)


@dataclass(frozen=True)
class QuantizedSlice:
    """powers: of the outputs, of their error, of that after plain rounding; then the number of rows
    whose codes are all alike. offset: what the outputs lack on average [rows], where a bias can
    take it."""

    rows: QuantizedMatrix
    powers: NDArray[np.float64]
    offset: Floats | None


def quantize_slice(bounds: tuple[int, int], task: MatrixTask) -> QuantizedSlice:
    """Rows [start, stop). A unit of work: a pure function of values that can be pickled."""
    inputs, statistics = task.inputs, task.inputs.statistics
    weights = task.rows.read(*bounds)
    if inputs.scales is not None:
        weights = weights * inputs.scales
    target = weights
    if statistics.differences:
        move = correction(weights, task.factor, statistics.differences)
        target = weights + inputs.strength * move
    quantized = gptq(target, task.factor, task.scheme)
    dequantized = quantized.dequantize()
    offset = None
    if statistics.centred:
        offset = weights @ inputs.wanted_mean - dequantized @ statistics.mean
    rounded = task.scheme.round_to_nearest(weights).dequantize()
    flat = (np.ptp(quantized.codes, axis=1) == 0) & (np.ptp(weights, axis=1) > 0)
    powers = (
        output_power(inputs.wanted, weights),
        error_power(inputs.wanted, task.received, weights, dequantized, offset),
        error_power(inputs.wanted, task.received, weights, rounded),
        flat.sum(),
    )
    return QuantizedSlice(quantized, np.array(powers), offset)


@dataclass(frozen=True)
class MatrixQuantizer:
    """Takes the slices of a matrix in order, one per thread."""

    workers: Workers

    def quantize(
        self, module: str, task: MatrixTask, write: Callable[[QuantizedMatrix], None]
    ) -> tuple[MatrixReport, Floats | None]:
        """-> how it went; what the outputs lack on average [rows], where a bias can take it.

        Args:
            write: is given every slice.

        Raises:
            InputError: the error is larger than the signal.
            ScaleOverflow: weights too large for the scheme.
        """
        start, powers = time.perf_counter(), np.zeros(4)
        offsets: list[Floats] = []
        for part in self.workers.in_order(quantize_slice, task.slices(), task):
            write(part.rows)
            powers += part.powers
            if part.offset is not None:
                offsets.append(part.offset)
        seconds = time.perf_counter() - start
        signal, lost, lost_by_rounding, flat_rows = powers
        sqnr, rounded = decibels(signal, lost), decibels(signal, lost_by_rounding)
        if signal > 0 and sqnr < LOWEST_SQNR:
            raise InputError(
                f"{module}: the error is larger than the signal ({sqnr:.1f} dB)",
                "keep this matrix at more bits, or calibrate on other text",
            )
        damping = task.factor.damping
        report = MatrixReport(module, sqnr, rounded, damping, seconds, int(flat_rows))
        return report, np.concatenate(offsets) if offsets else None
