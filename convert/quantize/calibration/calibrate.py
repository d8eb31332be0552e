"""Calibrated quantization: GPTQ on the inputs that the quantized layers before really give.

One forward pass over the calibration windows drives everything (`forward_pass.py`). Quantized
matrices are written at once and read back from the file where the pass needs them, so a resumed
run computes with the very same numbers as one that was never cut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.families.base import Linear, Norm, Table
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.activation_store import ActivationStore
from dsconv.convert.forward.malloc import return_freed_blocks
from dsconv.convert.forward.torch_ops import forward_dtype
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.rounding import damage_named
from dsconv.convert.quantize.run_state import QuantizeRun
from dsconv.errors import InputError
from dsconv.quant.gptq import Factor, NotPositiveDefinite, factorize
from dsconv.quant.schemes import Floats, QuantizedMatrix

from .divergence import HeadPair, head_rows, mean_divergence
from .embedding import EmbeddingTask, embedding_slices
from .forward_pass import CalibratingOps
from .head_moments import tied_moments
from .matrix import GroupInputs, MatrixQuantizer, MatrixTask
from .memory_budget import memory_for_activations, memory_for_moments
from .moments import InputStatistics, MomentSum, diagonal_blocks
from .progress import Progress
from .residual_files import ResidualFiles
from .smooth import Smoother
from .weights import OriginalRows, OriginalWeights, QuantizedWeights, StreamWeights

SAMPLES = 1024  # positions on which the smoothing is chosen, spread over all windows


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
    options, checkpoint = run.options, run.checkpoint
    return_freed_blocks()
    with single_threaded_libraries(), Workers(options.threads) as workers, torch.inference_mode():
        store = ActivationStore(run.journal.folder, memory_for_activations(options.max_memory))
        original = OriginalWeights(checkpoint, forward_dtype())
        by_name = {job.parameter.name: job for job in run.jobs}
        streams: list[StreamWeights] = [QuantizedWeights(original, by_name, run.writer.source())]
        if options.prefix_correction > 0:
            streams.append(original)
        lengths, hidden = list(map(len, run.windows)), checkpoint.decoder.config.hidden_size
        residuals = ResidualFiles(run.journal.folder, lengths, hidden, len(streams), original.dtype)
        calibration = _Calibration(run, residuals, store, workers)
        if not calibration.progress.complete:
            ops = CalibratingOps(run.windows, calibration, streams, store, workers)
            checkpoint.decoder.forward(ops)
            calibration.progress.close()
    return calibration.progress.reports, calibration.progress.divergence


class _Calibration:
    """What the forward pass calls back."""

    def __init__(
        self,
        run: QuantizeRun,
        residuals: ResidualFiles,
        store: ActivationStore,
        workers: Workers,
    ) -> None:
        self._run, self._store, self._workers = run, store, workers
        self._jobs = {job.module: job for job in run.jobs if job.parameter.role is not Role.VECTOR}
        self._by_name = {job.parameter.name: job for job in run.jobs}
        self._smoother = Smoother(self._by_name, self._read, run.writer)
        self._quantizer = MatrixQuantizer(workers)
        self._dtype, self._lengths = residuals.dtype, residuals.lengths
        self._with_original = residuals.streams > 1
        self.progress = Progress(run, self._jobs, residuals)
        self.commit, self.resume = self.progress.commit, self.progress.resume

    def table(self, table: Table) -> None:
        job = self._jobs[table.name]
        if job.scheme is None or not self.progress.is_open(job):
            return
        decoder, factor = self._run.checkpoint.decoder, None
        if decoder.config.tie_word_embeddings and decoder.head_linear.name not in self._jobs:
            original = OriginalWeights(self._run.checkpoint, self._dtype)
            moment = tied_moments(original, self._run.windows, self._store, self._workers)
            factor = factorize([moment], job.scheme, self._run.options.damping)
        task = EmbeddingTask(self._rows(job), job.scheme, factor)
        for quantized in embedding_slices(task, self._workers):
            self._write(job, quantized)
        self.progress.finish(job)

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        schemes = [job.scheme for job in self._open_jobs(group) if job.scheme]
        if not schemes:
            return None
        columns = group[0].inputs
        unit = max(scheme.undivided(columns) for scheme in schemes)
        config = self._run.checkpoint.decoder.config
        limit = memory_for_moments(self._run.options.max_memory, config)
        blocks = diagonal_blocks(columns, unit, limit)
        return MomentSum(blocks, self._with_original, self._workers, self._corrects_bias(group))

    def finish(
        self,
        group: Sequence[Linear],
        moments: MomentSum,
        window: Callable[[int], torch.Tensor],
        original: Callable[[int], torch.Tensor] | None,
        source: Norm | Linear | None,
    ) -> torch.Tensor | None:
        options, middle = self._run.options, len(self._lengths) // 2
        statistics = moments.finish()
        _require_finite(statistics, group[0].name)
        wanted = None if original is None else original(middle).float().numpy()
        inputs = GroupInputs.between(
            statistics, window(middle).float().numpy(), wanted, options.prefix_correction
        )
        scales = self._smooth(group, statistics.squares(), window, source)
        if scales is not None:
            inputs = inputs.divided(scales)
        factors: dict[object, Factor] = {}
        for job in self._open_jobs(group):
            if job.scheme is None:
                continue
            # All that a factor depends on.
            order = job.scheme.by_group, job.scheme.undivided(group[0].inputs)
            if order not in factors:
                factors[order] = _factorize(job, statistics, options.damping)
            task = MatrixTask.of(self._rows(job), job.scheme, factors[order], inputs)
            self._quantize(job, task)
        return None if scales is None else torch.from_numpy(scales)

    def judge(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        decoder = self._run.checkpoint.decoder
        job = self._jobs.get(decoder.head_linear.name) or self._jobs[decoder.table.name]
        pair = HeadPair(self._rows(job), self._run.writer.source(), self._dtype)
        blocks = self._workers.in_order(head_rows, chunks_of(job.parameter), pair)
        self.progress.divergence = mean_divergence(original, quantized, blocks)

    def _open_jobs(self, group: Sequence[Linear]) -> list[Job]:
        """Those of the group that are still to be quantized."""
        jobs = [self._jobs[linear.name] for linear in group if linear.name in self._jobs]
        return list(filter(self.progress.is_open, jobs))

    def _corrects_bias(self, group: Sequence[Linear]) -> bool:
        """Smoothed int8 rows keep theirs: it is divided later, from the source's numbers."""
        return all(linear.bias for linear in group) and not any(
            self._jobs[linear.name].rounds_inputs for linear in group
        )

    def _smooth(
        self,
        group: Sequence[Linear],
        squares: Floats,
        window: Callable[[int], torch.Tensor],
        source: Norm | Linear | None,
    ) -> Floats | None:
        """Divide the source of int8 inputs -> by what [columns]; None where it cannot be."""
        jobs = [self._by_name[f"{linear.name}.weight"] for linear in group]
        if source is None or not self._smoother.applies(jobs, source):
            return None
        step = max(1, sum(self._lengths) // SAMPLES)
        samples = [window(index)[::step] for index in range(len(self._lengths))]
        scales = self._smoother.find(jobs, torch.cat(samples).float().numpy(), squares)
        return self._smoother.divide(source, scales)

    def _quantize(self, job: Job, task: MatrixTask) -> None:
        """Write one matrix, and its bias where the moments left that something to do."""
        with damage_named(self._run.checkpoint, job):
            report, offset = self._quantizer.quantize(
                job.module, task, lambda rows: self._write(job, rows)
            )
        if offset is not None:  # what the matrix now gives too little on average
            bias = self._by_name[f"{job.module}.bias"]
            values = self._run.checkpoint.rows(bias.source, 0, len(offset)) + offset
            self._run.writer.rewrite(bias.parameter.name, values)
        self.progress.finish(job, report)

    def _write(self, job: Job, rows: QuantizedMatrix) -> None:
        self._run.writer.write_quantized(job, rows)
        self._run.listeners.advance(rows.codes.size)

    def _rows(self, job: Job) -> OriginalRows:
        return OriginalRows(self._run.checkpoint, job)

    def _read(self, job: Job, start: int, stop: int) -> Floats:
        return self._rows(job).read(start, stop)


def _factorize(job: Job, statistics: InputStatistics, damping: float) -> Factor:
    if job.scheme is None:
        raise RuntimeError("only quantized matrices are factorised")
    try:
        return factorize(statistics.moments, job.scheme, damping)
    except NotPositiveDefinite as error:
        raise InputError(
            f"inputs of {job.module}: {error}", "use more, and more varied, calibration text"
        ) from error


def _require_finite(statistics: InputStatistics, where: str) -> None:
    squares = [np.diagonal(moment) for moment in statistics.moments]
    # An original input that is not finite spoils its whole row of differences.
    firsts = [difference[:, 0] for difference in statistics.differences]
    if not all(np.isfinite(part).all() for part in (*squares, *firsts)):
        raise InputError(
            f"the inputs of {where} are not finite on the calibration text",
            "the checkpoint is damaged, or its activations overflow",
        )
