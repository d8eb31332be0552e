"""One matrix from the statistics of its inputs, without a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.quantize.calibration.matrix import (
    GroupInputs,
    MatrixQuantizer,
    MatrixTask,
)
from dsconv.convert.quantize.calibration.moments import MomentSum
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.errors import InputError
from dsconv.quant.gptq import factorize, gptq
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import IntegerScheme
from dsconv.quant.scale_min import ScaleMin
from dsconv.quant.schemes import Floats, QuantizedMatrix, Scheme, joined

SCHEMES: list[Scheme] = [IntegerScheme(4, 32), IntegerScheme(4, -1, False), ScaleMin(4), Int8Rows()]


@dataclass(frozen=True)
class ArrayRows:
    """Weights that are no file's."""

    weights: Floats

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.weights.shape
        return rows, columns

    def read(self, start: int, stop: int) -> Floats:
        return self.weights[start:stop]


def inputs_of(
    workers: Workers, columns: int, strength: float = 0.0, centred: bool = False
) -> tuple[GroupInputs, Floats]:
    """Correlated inputs, all of them the sample -> (what a matrix is rounded on, the originals)."""
    generator = torch.Generator().manual_seed(5)
    mixed = torch.randn(columns, columns, generator=generator)
    x = torch.randn(400, columns, generator=generator) @ (mixed + 2 * torch.eye(columns)) + 0.5
    original = x + 0.2 * x.roll(1, 1)
    with torch.inference_mode(), single_threaded_libraries():
        sums = MomentSum([(0, columns)], strength > 0, workers, centred)
        sums.add(x, original if strength else None)
        statistics = sums.finish()
    wanted = original.numpy() if strength else None
    return GroupInputs.between(statistics, x.numpy(), wanted, strength), original.numpy()


def quantized(
    weights: Floats, scheme: Scheme, inputs: GroupInputs, workers: Workers
) -> tuple[QuantizedMatrix, MatrixReport, Floats | None]:
    task = MatrixTask.of(
        ArrayRows(weights), scheme, factorize(inputs.statistics.moments, scheme), inputs
    )
    parts: list[QuantizedMatrix] = []
    with single_threaded_libraries():
        report, offset = MatrixQuantizer(workers).quantize("m", task, parts.append)
    assert len(parts) == len(list(task.slices()))
    return joined(parts), report, offset


def weights_of(rows: int, columns: int) -> Floats:
    return np.random.default_rng(1).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_the_codes_are_those_of_error_feedback(scheme: Scheme) -> None:
    """In slices as at once; the error is that of the outputs on the sample."""
    weights = weights_of(1100, 64)
    with Workers(2) as workers:
        inputs, _ = inputs_of(workers, 64)
        found, report, offset = quantized(weights, scheme, inputs, workers)
    wanted = gptq(weights, factorize(inputs.statistics.moments, scheme), scheme)
    np.testing.assert_array_equal(found.codes, wanted.codes)
    assert offset is None
    received = scheme.received(inputs.sample)
    error = inputs.sample @ weights.T - received @ found.dequantize().T
    signal = np.square(inputs.sample @ weights.T).sum()
    assert report.sqnr == pytest.approx(10 * np.log10(signal / np.square(error).sum()), abs=0.05)
    assert report.sqnr > report.sqnr_rounded - 0.01
    assert (report.module, report.flat_rows) == ("m", 0)


def test_the_number_of_threads_does_not_show() -> None:
    weights = weights_of(1100, 64)
    found = []
    for threads in (1, 3):
        with Workers(threads) as workers:
            inputs, _ = inputs_of(workers, 64, 0.5, centred=True)
            matrix, report, offset = quantized(weights, IntegerScheme(4, 32), inputs, workers)
        assert offset is not None
        found.append((matrix.codes.tobytes(), report.facts(), offset.tobytes()))
    assert found[0] == found[1]


def test_the_outputs_aimed_at_are_the_original_ones() -> None:
    weights = weights_of(40, 64)
    losses = []
    with Workers(1) as workers:
        for strength in (0.0, 1.0):
            inputs, original = inputs_of(workers, 64, strength)
            found, _, _ = quantized(weights, IntegerScheme(8, 32), inputs, workers)
            outputs = inputs.sample @ found.dequantize().T
            losses.append(np.square(original @ weights.T - outputs).sum())
    assert losses[1] < 0.1 * losses[0]


def test_a_bias_takes_back_what_is_lost_on_average() -> None:
    weights = weights_of(40, 64)
    with Workers(1) as workers:
        inputs, _ = inputs_of(workers, 64, centred=True)
        found, _, offset = quantized(weights, IntegerScheme(4, -1), inputs, workers)
    lost = (inputs.sample @ (weights - found.dequantize()).T).mean(0)
    assert offset is not None
    np.testing.assert_allclose(offset, lost, atol=1e-2 * np.abs(lost).max())


def test_divided_inputs_meet_multiplied_weights() -> None:
    weights, scales = weights_of(40, 64), np.linspace(0.5, 2, 64, dtype=np.float32)
    with Workers(1) as workers:
        inputs, _ = inputs_of(workers, 64)
        found, report, _ = quantized(weights, Int8Rows(), inputs.divided(scales), workers)
    assert np.square(found.dequantize() / scales - weights).mean() < 1e-3
    assert report.sqnr > 30


def test_an_error_larger_than_the_signal_is_refused() -> None:
    weights = weights_of(8, 64)
    with Workers(1) as workers:
        inputs, _ = inputs_of(workers, 64)
        away = GroupInputs(inputs.statistics, inputs.sample, -inputs.wanted, np.float32(0))
        with pytest.raises(InputError, match="larger than the signal"):
            quantized(weights, IntegerScheme(4, 32), away, workers)
