"""Smoothing of a checkpoint's inputs: by how much, and who is divided by it (`quant/smoothing.py`).

The scales are those of the numbers that are stored: they follow a norm's gain and a bias as their
type holds them, so that the network's function stays what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.families.base import Linear, Norm
from dsconv.convert.files.safetensors import DTYPES
from dsconv.convert.quantize.writer import QuantizedWriter
from dsconv.quant.int8_rows import Int8RowsMatrix
from dsconv.quant.schemes import Floats
from dsconv.quant.smoothing import column_squares, fold_into_gain, search_smoothing

SAMPLED_ROWS = 512  # of each matrix: its outputs stand for all of them


@dataclass(frozen=True)
class Smoother:
    """jobs: by parameter; read: rows [start, stop) of a job's original numbers."""

    jobs: Mapping[str, Job]
    read: Callable[[Job, int, int], Floats]
    writer: QuantizedWriter

    def applies(self, jobs: Sequence[Job], source: Norm | Linear) -> bool:
        """All matrices of the input round it, and what gives it can be divided."""
        divided = self.jobs[f"{source.name}.weight"]
        return all(job.rounds_inputs for job in jobs) and (
            isinstance(source, Norm) or divided.rounds_inputs
        )

    def find(self, jobs: Sequence[Job], samples: Floats, input_squares: Floats) -> Floats:
        """Scales [columns] for the common input of some matrices.

        Args:
            samples: the input at some positions of every window, the first among them
                [positions, columns].
            input_squares: mean square of each column, over all positions [columns].
        """
        total = np.zeros(samples.shape[1], np.float32)
        matrices = []
        for job in jobs:
            step = max(1, job.parameter.shape[0] // SAMPLED_ROWS)
            parts = []
            for start, stop in chunks_of(job.parameter):
                weights = self.read(job, start, stop)
                total += column_squares([weights]) * np.float32(len(weights))
                parts.append(weights[-start % step :: step])
            matrices.append(np.concatenate(parts))
        total /= sum(job.parameter.shape[0] for job in jobs)
        return search_smoothing(samples, matrices, input_squares, total).scales

    def divide(self, source: Norm | Linear, scales: Floats) -> Floats:
        """Divide, in the files, what gives an input -> the scales [columns] that were possible."""
        if isinstance(source, Norm):
            return self._divide_vector(self.jobs[f"{source.name}.weight"], scales)
        if source.bias:
            scales = self._divide_vector(self.jobs[f"{source.name}.bias"], scales)
        self._divide_rows(self.jobs[f"{source.name}.weight"], scales)
        return scales

    def _divide_vector(self, job: Job, scales: Floats) -> Floats:
        """A gain or a bias; where it is zero there is nothing to follow."""
        dtype = DTYPES[job.float_dtype]
        values = self.read(job, 0, job.parameter.shape[0])
        stored, exact = fold_into_gain(values, scales, dtype)
        self.writer.rewrite(job.parameter.name, stored.astype(dtype))
        return np.where(values == 0, scales, exact)

    def _divide_rows(self, job: Job, scales: Floats) -> None:
        """A matrix that is written: the codes of its rows stay, their scales change."""
        parts = []
        for start, stop in chunks_of(job.parameter):
            rows = Int8RowsMatrix.of(self.writer.read_quantized(job, start, stop))
            parts.append(rows.scales / scales[start:stop, None])
        self.writer.rewrite(f"{job.module}.weight_scale", np.concatenate(parts))
