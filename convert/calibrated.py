"""Calibrated quantization: GPTQ on the inputs that the quantized layers before really give.

One forward pass over the calibration windows drives everything (`calibrating_ops.py`); memory holds
one layer, its second moments and the activations of all windows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..quant.gptq import Factor, NotPositiveDefinite, factorize, gptq
from ..quant.rounding import ScaleOverflow, dequantize
from ..quant.scheme import Quantized
from .calibrating_ops import CalibratingOps, Moment
from .checkpoint import Checkpoint
from .families.base import Linear, Table
from .families.inventory import Role
from .parallel import Workers, single_threaded_libraries
from .quantization_plan import Job
from .quantized import (
    Advance,
    QuantizedWriter,
    chunks_of,
    copy_floats,
    refuse_non_finite,
    round_in_blocks,
)

ROWS_AT_A_TIME = 1024  # of a matrix, rounded by one thread; a multiple of the zero points' 8


def quantize_calibrated(
    checkpoint: Checkpoint,
    jobs: list[Job],
    windows: Sequence[Sequence[int]],
    writer: QuantizedWriter,
    threads: int,
    advance: Advance,
) -> None:
    """Quantize and write all parameters of `jobs`, calibrating on windows of token ids.

    The bytes do not depend on the number of threads, but on the machine: see `forward_dtype`.

    Raises:
        InputError: weights or activations that are not finite.
    """
    for job in jobs:
        if job.scheme is None:
            copy_floats(checkpoint, job, writer, advance)
    with single_threaded_libraries(), Workers(threads) as workers, torch.inference_mode():
        calibration = _Calibration(checkpoint, jobs, writer, workers, advance)
        ops = CalibratingOps(
            windows, calibration.load, calibration.table, calibration.group, workers
        )
        checkpoint.decoder.forward(ops)


def forward_dtype() -> torch.dtype:
    """bfloat16 where the processor multiplies it natively (about four times as fast)."""
    has_bfloat16: Callable[[], bool] = torch.ops.mkldnn._is_mkldnn_bf16_supported
    return torch.bfloat16 if has_bfloat16() else torch.float32


class _Calibration:
    """What the forward pass calls back: read a weight, quantize a table or a group of matrices."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        jobs: list[Job],
        writer: QuantizedWriter,
        workers: Workers,
        advance: Advance,
    ) -> None:
        self._checkpoint = checkpoint
        self._jobs = {job.module: job for job in jobs if job.parameter.role is not Role.VECTOR}
        self._writer = writer
        self._workers = workers
        self._advance = advance
        self._dtype = forward_dtype()

    def load(self, name: str) -> torch.Tensor:
        return torch.from_numpy(self._checkpoint.rows(name).copy()).to(self._dtype)

    def table(self, table: Table) -> torch.Tensor | None:
        """Quantize the embedding by search: every row counts alike, whatever the text."""
        job = self._jobs[table.name]
        if job.scheme is None:
            return None
        result = torch.empty(job.parameter.shape, dtype=self._dtype)
        for start, stop in chunks_of(job.parameter):
            weights = self._rows(job, start, stop)
            quantized = round_in_blocks(weights, job.scheme, "search")
            self._writer.write_quantized(job, quantized)
            result[start:stop] = torch.from_numpy(dequantize(quantized))
            self._advance(weights.size)
        self._writer.finish_quantized(job)
        return result

    def group(self, linears: Sequence[Linear], moment: Moment) -> dict[str, torch.Tensor]:
        """Quantize the matrices of one input; those kept in float are left out."""
        jobs = [self._jobs[linear.name] for linear in linears if linear.name in self._jobs]
        factors: dict[int, Factor] = {}
        result = {}
        second_moment = moment() if any(job.scheme for job in jobs) else None
        for job in jobs:
            if job.scheme is None or second_moment is None:
                continue
            size = job.scheme.group_size
            if size not in factors:
                factors[size] = self._factorize(job, second_moment)
            result[job.parameter.name] = self._matrix(job, factors[size])
        return result

    def _factorize(self, job: Job, second_moment: NDArray[np.float32]) -> Factor:
        if job.scheme is None:
            raise RuntimeError("only quantized matrices are factorised")
        try:
            return factorize(second_moment, job.scheme)
        except NotPositiveDefinite as error:
            raise InputError(
                f"inputs of {job.module}: {error}", "give more, and more varied, calibration text"
            ) from error

    def _matrix(self, job: Job, factor: Factor) -> torch.Tensor:
        if job.scheme is None:
            raise RuntimeError("only quantized matrices come here")
        scheme, (rows, columns) = job.scheme, job.parameter.shape
        result = torch.empty(rows, columns, dtype=self._dtype)

        def work(start: int) -> tuple[int, Quantized]:
            weights = self._rows(job, start, min(rows, start + ROWS_AT_A_TIME))
            return start, gptq(weights, factor, scheme)

        try:
            for start, part in self._workers.in_order(work, range(0, rows, ROWS_AT_A_TIME)):
                self._writer.write_quantized(job, part)
                values = torch.from_numpy(dequantize(part))
                result[start : start + len(values)] = values
                self._advance(values.numel())
        except ScaleOverflow as error:
            raise InputError(
                f"{self._checkpoint.origin}: tensor {job.source!r}: {error}",
                "the checkpoint is damaged; download it again",
            ) from error
        self._writer.finish_quantized(job)
        return result

    def _rows(self, job: Job, start: int, stop: int) -> NDArray[np.float32]:
        weights = self._checkpoint.rows(job.source, start, stop)
        bad = int(weights.size - np.isfinite(weights).sum())
        refuse_non_finite(job, bad)
        return weights
