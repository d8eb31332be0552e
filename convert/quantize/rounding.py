"""Without calibration: every parameter by itself, copied or rounded in chunks of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.forward.workers import Workers
from dsconv.errors import InputError
from dsconv.quant.scales import ScaleOverflow
from dsconv.quant.schemes import METHODS, QuantizedMatrix, Scheme, joined

from .run_state import QuantizeRun
from .writer import refuse_non_finite

BLOCK_WEIGHTS = 1 << 16  # rounded at a time: with its temporaries it stays in a core's L2 cache


def copy_unquantized(run: QuantizeRun) -> None:
    """Every parameter that stays as it is."""
    for job in run.jobs:
        if job.scheme is not None:
            continue
        if run.journal.resumed:  # whose first line came after all of them
            run.writer.skip(job)
            run.listeners.advance(job.parameter.size)
        else:
            _copy(run, job)


def _copy(run: QuantizeRun, job: Job) -> None:
    """In row chunks, refusing values that are not finite."""
    bad = 0
    for start, stop in chunks_of(job.parameter):
        rows = run.checkpoint.source.rows(job.source, start, stop)
        bad += int(rows.size - np.isfinite(rows.astype(np.float32)).sum())
        run.writer.write_floats(job, rows)
        run.listeners.advance(rows.size)
    refuse_non_finite(job, bad)


def round_freely(run: QuantizeRun) -> None:
    """Every other parameter, without calibration."""
    journal, writer = run.journal, run.writer
    done = {module for record in journal.records for module in record["modules"]}
    fresh: list[str] = []
    with Workers(run.options.threads) as workers:
        for job in run.jobs:
            if job.scheme is None:
                continue
            if job.module in done:
                writer.skip(job)
                run.listeners.advance(job.parameter.size)
                continue
            _round(run, RoundedRows(run.checkpoint, job, job.scheme, run.options.method), workers)
            fresh.append(job.module)
            if journal.due():
                writer.flush()
                journal.append({"modules": fresh}, writer.paths)
                fresh = []


def _round(run: QuantizeRun, matrix: RoundedRows, workers: Workers) -> None:
    """Round chunks in parallel and write them in order: the bytes do not depend on the threads."""
    job, bad = matrix.job, 0
    with damage_named(run.checkpoint, job):
        for quantized, count, size in workers.in_order(
            round_rows, chunks_of(job.parameter), matrix
        ):
            bad += count
            if quantized is not None and not bad:
                run.writer.write_quantized(job, quantized)
            run.listeners.advance(size)
    refuse_non_finite(job, bad)
    run.writer.finish_quantized(job)


@dataclass(frozen=True)
class RoundedRows:
    """A matrix that is rounded by itself: what all slices of its rows share."""

    checkpoint: Checkpoint
    job: Job
    scheme: Scheme
    method: str


def round_rows(
    bounds: tuple[int, int], matrix: RoundedRows
) -> tuple[QuantizedMatrix | None, int, int]:
    """-> (rows [start, stop), None when not all are finite; how many are not; how many there are).

    A unit of work: a pure function of values that can be pickled.
    """
    weights = matrix.checkpoint.rows(matrix.job.source, *bounds)
    bad = int(weights.size - np.isfinite(weights).sum())
    rounded = None if bad else round_in_blocks(weights, matrix.scheme, matrix.method)
    return rounded, bad, weights.size


@contextmanager
def damage_named(checkpoint: Checkpoint, job: Job) -> Iterator[None]:
    """A matrix whose scales no type holds is an InputError that names it."""
    try:
        yield
    except ScaleOverflow as error:
        raise InputError(
            f"{checkpoint.origin}: tensor {job.source!r}: {error}",
            "the checkpoint is damaged; download it again",
        ) from error


def round_in_blocks(weights: NDArray[np.float32], scheme: Scheme, method: str) -> QuantizedMatrix:
    """Round in blocks that stay in cache; groups are independent, so the blocks do not show."""
    step = max(1, BLOCK_WEIGHTS // weights.shape[1])
    return joined(
        [
            METHODS[method](weights[start : start + step], scheme)
            for start in range(0, len(weights), step)
        ]
    )
