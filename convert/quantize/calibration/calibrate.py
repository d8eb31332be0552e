"""Calibrated quantization: GPTQ on the inputs that the quantized layers before really give.

One forward pass over the calibration windows drives everything (`forward_pass.py`). Quantized
matrices are written at once and read back from the file where the pass needs them, so a resumed
run computes with the very same numbers as one that was never cut off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import module_of
from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.families.base import Linear, Norm, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.forward.malloc import return_freed_blocks
from dsconv.convert.forward.torch_ops import forward_dtype, load_parameter
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.rounding import damage_named, round_in_blocks
from dsconv.convert.quantize.run_state import QuantizeRun
from dsconv.convert.quantize.writer import refuse_non_finite
from dsconv.errors import InputError
from dsconv.quant.gptq import Factor, NotPositiveDefinite, correction, factorize, gptq
from dsconv.quant.schemes import Floats, QuantizedMatrix
from dsconv.quant.sqnr import decibels, error_power, output_power

from .divergence import mean_divergence
from .forward_pass import CalibratingOps
from .head_moments import tied_moments
from .memory_budget import memory_for_activations, memory_for_moments, rows_at_a_time
from .moments import InputStatistics, MomentSum, diagonal_blocks
from .residual_files import ResidualFiles
from .smooth import Smoother

SAMPLES = 1024  # positions on which the smoothing is chosen, spread over all windows
LOWEST_SQNR = 0.0  # dB: below, the error is larger than the signal and the run stops


def quantize_calibrated(run: QuantizeRun) -> tuple[list[MatrixReport], float | None]:
    """Quantize and write all matrices of the run, calibrating on its windows of token ids.

    Returns:
        How it went for every matrix; and the mean KL from the original on some of the windows, in
        nats per token (None without a correction of the prefix, which shows the original).

    The bytes do not depend on the number of threads, but on the machine: see `forward_dtype`.

    Raises:
        InputError: weights or activations that are not finite, or a matrix that cannot be
            quantized with less error than signal.
    """
    options = run.options
    return_freed_blocks()
    with single_threaded_libraries(), Workers(options.threads) as workers, torch.inference_mode():
        store = ActivationStore(run.journal.folder, memory_for_activations(options.max_memory))
        calibration = _Calibration(run, workers, store)
        ops = CalibratingOps(
            run.windows, calibration, store, workers, with_original=options.prefix_correction > 0
        )
        if not calibration.complete:
            run.checkpoint.decoder.forward(ops)
            calibration.close()
    return calibration.reports, calibration.divergence


class _Calibration:
    """What the forward pass calls back."""

    def __init__(self, run: QuantizeRun, workers: Workers, store: ActivationStore) -> None:
        checkpoint, jobs, options, journal = run.checkpoint, run.jobs, run.options, run.journal
        writer, advance = run.writer, run.listeners.advance
        self._checkpoint = checkpoint
        self._jobs = {job.module: job for job in jobs if job.parameter.role is not Role.VECTOR}
        by_name = {job.parameter.name: job for job in jobs}
        self._vectors = {n: job for n, job in by_name.items() if job.parameter.role is Role.VECTOR}
        self._smoother = Smoother(by_name, self._rows, writer)
        self._writer = writer
        self._workers = workers
        self._options = options
        self._journal = journal
        self._advance = advance
        self._report = run.listeners.report
        self._dtype = forward_dtype()
        self._with_original = options.prefix_correction > 0
        self._head = checkpoint.decoder.head_linear.name
        self._windows = run.windows
        self._store = store
        self._lengths = [len(window) for window in run.windows]
        self._residuals = ResidualFiles(
            journal.folder,
            self._lengths,
            checkpoint.decoder.config.hidden_size,
            1 + self._with_original,
            self._dtype,
        )
        self._resumed_at = max((record["addition"] for record in journal.records), default=0)
        self._done = {module for record in journal.records for module in record["modules"]}
        self._since_commit: list[str] = []
        self.reports = [
            MatrixReport(**entry) for record in journal.records for entry in record["reports"]
        ]
        self._reported = len(self.reports)
        known = [record["divergence"] for record in journal.records if "divergence" in record]
        self.divergence: float | None = known[0] if known else None
        for module in self._done:
            writer.skip(self._jobs[module])
            advance(self._jobs[module].parameter.size)

    def original(self, name: str) -> torch.Tensor:
        return load_parameter(self._checkpoint, name, self._dtype)

    def quantized(self, name: str) -> torch.Tensor:
        job = self._jobs.get(module_of(name))
        vector = self._vectors.get(name)
        if job is not None and vector is not None and self._has_corrected_bias(job):
            return torch.from_numpy(self._writer.read_floats(vector)).to(self._dtype)
        if job is None or job.scheme is None or job.parameter.name != name:
            return self.original(name)
        result = torch.empty(job.parameter.shape, dtype=self._dtype)
        for start, stop in chunks_of(job.parameter):
            values = self._writer.read_quantized(job, start, stop).dequantize()
            result[start:stop] = torch.from_numpy(values)
        return result

    def rounds_inputs(self, name: str) -> bool:
        return self._jobs[module_of(name)].rounds_inputs

    def rows(self, table: Table, tokens: torch.Tensor, original: bool) -> torch.Tensor:
        job = self._jobs[table.name]

        def row(token: int) -> Floats:
            if original or job.scheme is None:
                return self._checkpoint.rows(job.source, token, token + 1)
            return self._writer.read_quantized(job, token, token + 1).dequantize()

        rows = np.concatenate([row(int(token)) for token in tokens])
        return torch.from_numpy(rows).to(self._dtype)

    def table(self, table: Table) -> None:
        """Quantize the embedding: as the head's matrix where it is that too, else by search, where
        every row counts alike, whatever the text."""
        job = self._jobs[table.name]
        scheme = job.scheme
        if scheme is None or job.module in self._done:
            return
        factor = None
        if self._checkpoint.decoder.config.tie_word_embeddings and self._head not in self._jobs:
            moment = tied_moments(
                self._checkpoint, self._windows, self._dtype, self._store, self._workers
            )
            factor = factorize([moment], scheme, self._options.damping)

        def work(bounds: tuple[int, int]) -> QuantizedMatrix:
            weights = self._rows(job, *bounds)
            if factor is None:
                return round_in_blocks(weights, scheme, "search")
            return gptq(weights, factor, scheme)

        for quantized in self._workers.in_order(work, chunks_of(job.parameter)):
            self._writer.write_quantized(job, quantized)
            self._advance(quantized.codes.size)
        self._finish(job)

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        jobs = self._open_jobs(group)
        if not jobs:
            return None
        columns = group[0].inputs
        unit = max(job.scheme.undivided(columns) for job in jobs if job.scheme)
        limit = memory_for_moments(self._options.max_memory, self._checkpoint.decoder.config)
        blocks = diagonal_blocks(columns, unit, limit)
        return MomentSum(blocks, self._with_original, self._workers, self._corrects_bias(group))

    def _corrects_bias(self, group: Sequence[Linear]) -> bool:
        """Smoothed int8 rows keep theirs: it is divided later, from the source's numbers."""
        return all(linear.bias for linear in group) and not any(
            self._jobs[linear.name].rounds_inputs for linear in group
        )

    def finish(
        self,
        group: Sequence[Linear],
        moments: MomentSum,
        window: Callable[[int], torch.Tensor],
        original: Callable[[int], torch.Tensor] | None,
        source: Norm | Linear | None,
    ) -> torch.Tensor | None:
        statistics = moments.finish()
        _require_finite(statistics, group[0].name)
        columns, sample = group[0].inputs, len(self._lengths) // 2
        inputs = wanted = window(sample).float().numpy()
        if original is not None:
            strength = np.float32(self._options.prefix_correction)
            wanted = inputs + strength * (original(sample).float().numpy() - inputs)
        scales = self._smooth(group, statistics.squares(), window, source)
        if scales is not None:
            statistics.divide(scales)
            inputs, wanted = inputs / scales, wanted / scales
        factors: dict[object, Factor] = {}
        for job in self._open_jobs(group):
            if job.scheme is None:
                continue
            order = job.scheme.by_group, job.scheme.undivided(columns)  # all a factor depends on
            if order not in factors:
                factors[order] = self._factorize(job, statistics)
            self._matrix(job, factors[order], statistics, inputs, wanted, scales)
        return None if scales is None else torch.from_numpy(scales)

    def _smooth(
        self,
        group: Sequence[Linear],
        squares: Floats,
        window: Callable[[int], torch.Tensor],
        source: Norm | Linear | None,
    ) -> Floats | None:
        """Divide the source of int8 inputs -> by what [columns]; None where it cannot be."""
        jobs = [self._smoother.jobs[f"{linear.name}.weight"] for linear in group]
        if source is None or not self._smoother.applies(jobs, source):
            return None
        step = max(1, sum(self._lengths) // SAMPLES)
        samples = [window(index)[::step] for index in range(len(self._lengths))]
        scales = self._smoother.find(jobs, torch.cat(samples).float().numpy(), squares)
        return self._smoother.divide(source, scales)

    def judge(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        job = self._jobs.get(self._head) or self._jobs[self._checkpoint.decoder.table.name]

        @torch.inference_mode()
        def block(bounds: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
            before = torch.from_numpy(self._rows(job, *bounds)).to(self._dtype)
            if job.scheme is None:
                return before, before
            after = self._writer.read_quantized(job, *bounds).dequantize()
            return before, torch.from_numpy(after).to(self._dtype)

        blocks = self._workers.in_order(block, chunks_of(job.parameter))
        self.divergence = mean_divergence(original, quantized, blocks)

    def commit(self, addition: int, residual: Sequence[StoredWindows]) -> None:
        """Keep the residual and all matrices so far, unless the last time is too short ago."""
        if not self._journal.due():
            return
        path = self._residuals.write(addition, residual)
        self._append_to_journal(addition, [path])
        self._residuals.remove_all_but(path)

    def resume(self, addition: int, store: ActivationStore) -> list[StoredWindows] | None:
        if addition > self._resumed_at:
            return None
        if addition < self._resumed_at:
            return []
        return self._residuals.read(addition, store)

    @property
    def complete(self) -> bool:
        """Has every matrix been quantized, and the result judged?"""
        judged = self.divergence is not None or not self._with_original
        return judged and all(
            job.scheme is None or name in self._done for name, job in self._jobs.items()
        )

    def close(self) -> None:
        """Everything is written; nothing will be calibrated again."""
        self._append_to_journal(0, [])
        self._residuals.remove_all_but(None)

    def _append_to_journal(self, addition: int, files: list[Path]) -> None:
        self._writer.flush()
        record: dict[str, Any] = {
            "modules": self._since_commit,
            "addition": addition,
            "reports": [asdict(entry) for entry in self.reports[self._reported :]],
        }
        if self.divergence is not None:
            record["divergence"] = self.divergence
        self._journal.append(record, [*files, *self._writer.paths])
        self._since_commit, self._reported = [], len(self.reports)

    def _open_jobs(self, group: Sequence[Linear]) -> list[Job]:
        """Those of the group that are still to be quantized."""
        jobs = [self._jobs[linear.name] for linear in group if linear.name in self._jobs]
        return [job for job in jobs if job.scheme and job.module not in self._done]

    def _factorize(self, job: Job, statistics: InputStatistics) -> Factor:
        if job.scheme is None:
            raise RuntimeError("only quantized matrices are factorised")
        try:
            return factorize(statistics.moments, job.scheme, self._options.damping)
        except NotPositiveDefinite as error:
            raise InputError(
                f"inputs of {job.module}: {error}", "give more, and more varied, calibration text"
            ) from error

    def _matrix(
        self,
        job: Job,
        factor: Factor,
        statistics: InputStatistics,
        inputs: Floats,
        wanted: Floats,
        scales: Floats | None,
    ) -> None:
        """Quantize and write one matrix, and its bias where the moments left that something to do.

        Args:
            inputs, wanted: [positions, columns], to measure the error on: what the matrix gets, and
                what the original weights would get for the outputs that are aimed at.
            scales: by which the inputs were divided [columns].
        """
        scheme, start_time = job.scheme, time.perf_counter()
        if scheme is None:
            raise RuntimeError("only quantized matrices come here")
        rows, step = job.parameter.shape[0], rows_at_a_time(job.parameter.shape[1])
        strength = np.float32(self._options.prefix_correction)
        received = scheme.received(inputs)
        mean, wanted_mean = statistics.mean, statistics.mean
        if statistics.differences:
            wanted_mean = mean + strength * statistics.mean_difference

        def work(start: int) -> tuple[QuantizedMatrix, NDArray[np.float64], Floats | None]:
            weights = self._rows(job, start, min(rows, start + step))
            if scales is not None:
                weights = weights * scales
            target = weights
            if statistics.differences:
                move = correction(weights, factor, statistics.differences)
                target = weights + strength * move
            quantized = gptq(target, factor, scheme)
            dequantized = quantized.dequantize()
            offset = None
            if statistics.centred:
                offset = weights @ wanted_mean - dequantized @ mean
            rounded = scheme.round_to_nearest(weights).dequantize()
            powers = [
                output_power(wanted, weights),
                error_power(wanted, received, weights, dequantized, offset),
                error_power(wanted, received, weights, rounded),
            ]
            flat = (np.ptp(quantized.codes, axis=1) == 0) & (np.ptp(weights, axis=1) > 0)
            return quantized, np.array([*powers, flat.sum()]), offset

        powers = np.zeros(4)
        offsets: list[Floats] = []
        with damage_named(self._checkpoint, job):
            for part, power, offset in self._workers.in_order(work, range(0, rows, step)):
                self._writer.write_quantized(job, part)
                self._advance(part.codes.size)
                powers += power
                if offset is not None:
                    offsets.append(offset)
        seconds = time.perf_counter() - start_time
        signal, lost, lost_by_rounding, flat_rows = powers
        entry = MatrixReport(
            job.module,
            decibels(signal, lost),
            decibels(signal, lost_by_rounding),
            factor.damping,
            seconds,
            int(flat_rows),
        )
        if signal > 0 and entry.sqnr < LOWEST_SQNR:
            raise InputError(
                f"{job.module}: the error is larger than the signal ({entry.sqnr:.1f} dB)",
                "keep this matrix at more bits, or calibrate on other text",
            )
        if offsets:
            self._correct_bias(job, np.concatenate(offsets))
        self.reports.append(entry)
        self._report(entry)
        self._finish(job)

    def _has_corrected_bias(self, job: Job) -> bool:
        return job.module in self._done and not job.rounds_inputs

    def _correct_bias(self, job: Job, offset: Floats) -> None:
        """Add what the matrix now gives too little on average [rows]."""
        bias = self._vectors[f"{job.module}.bias"]
        values = self._checkpoint.rows(bias.source, 0, len(offset)) + offset
        self._writer.rewrite(bias.parameter.name, values)

    def _finish(self, job: Job) -> None:
        self._writer.finish_quantized(job)
        self._writer.flush()  # the pass reads it back
        self._done.add(job.module)
        self._since_commit.append(job.module)

    def _rows(self, job: Job, start: int, stop: int) -> Floats:
        weights = self._checkpoint.rows(job.source, start, stop)
        bad = int(weights.size - np.isfinite(weights).sum())
        refuse_non_finite(job, bad)
        return weights


def _require_finite(statistics: InputStatistics, where: str) -> None:
    squares = [np.diagonal(moment) for moment in statistics.moments]
    # An original input that is not finite spoils its whole row of differences.
    firsts = [difference[:, 0] for difference in statistics.differences]
    if not all(np.isfinite(part).all() for part in (*squares, *firsts)):
        raise InputError(
            f"the inputs of {where} are not finite on the calibration text",
            "the checkpoint is damaged, or its activations overflow",
        )
