"""How far a calibrated run is, and what of it is kept to go on from after a crash."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dsconv.convert.checkpoint.jobs import Job
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.quantize.matrix_report import MatrixReport
from dsconv.convert.quantize.run_state import QuantizeRun

from .residual_files import ResidualFiles


class Progress:
    """Begins with what the journal says.

    matrices: by module; divergence: of the finished model, once it has been judged.
    """

    def __init__(
        self, run: QuantizeRun, matrices: Mapping[str, Job], residuals: ResidualFiles
    ) -> None:
        records = run.journal.records
        self._run = run
        self._matrices = matrices
        self._residuals = residuals
        self._resumed_at = max((record["addition"] for record in records), default=0)
        self._done = {module for record in records for module in record["modules"]}
        self._since_commit: list[str] = []
        self.reports = [MatrixReport(**entry) for record in records for entry in record["reports"]]
        self._reported = len(self.reports)
        known = [record["divergence"] for record in records if "divergence" in record]
        self.divergence: float | None = known[0] if known else None
        for module in self._done:
            run.writer.skip(matrices[module])
            run.listeners.advance(matrices[module].parameter.size)

    def is_open(self, job: Job) -> bool:
        """Is it still to be quantized?"""
        return job.scheme is not None and job.module not in self._done

    @property
    def complete(self) -> bool:
        """Has every matrix been quantized, and the result judged?"""
        judged = self.divergence is not None or self._residuals.streams == 1
        return judged and not any(map(self.is_open, self._matrices.values()))

    def finish(self, job: Job, report: MatrixReport | None = None) -> None:
        """All rows of the matrix are written."""
        if report is not None:
            self.reports.append(report)
            self._run.listeners.report(report)
        self._run.writer.finish_quantized(job)
        self._run.writer.flush()  # the pass reads it back
        self._done.add(job.module)
        self._since_commit.append(job.module)

    def commit(self, addition: int, residual: Sequence[StoredWindows]) -> None:
        """Keep the residual and all matrices so far, unless the last time is too short ago."""
        if not self._run.journal.due():
            return
        path = self._residuals.write(addition, residual)
        self._append(addition, [path])
        self._residuals.remove_all_but(path)

    def resume(self, addition: int, store: ActivationStore) -> list[StoredWindows] | None:
        """See `Calibrator.resume`."""
        if addition > self._resumed_at:
            return None
        if addition < self._resumed_at:
            return []
        return self._residuals.read(addition, store)

    def close(self) -> None:
        """Everything is written; nothing will be calibrated again."""
        self._append(0, [])
        self._residuals.remove_all_but(None)

    def _append(self, addition: int, files: list[Path]) -> None:
        writer = self._run.writer
        writer.flush()
        record: dict[str, Any] = {
            "modules": self._since_commit,
            "addition": addition,
            "reports": [asdict(entry) for entry in self.reports[self._reported :]],
        }
        if self.divergence is not None:
            record["divergence"] = self.divergence
        self._run.journal.append(record, [*files, *writer.paths])
        self._since_commit, self._reported = [], len(self.reports)
