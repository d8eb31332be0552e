"""Where a calibrated run reads weights: the original's, and those that it has written.

Everything here can be pickled: files are opened by path where a unit of work runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from dsconv.convert.checkpoint.checkpoint import Checkpoint, module_of
from dsconv.convert.checkpoint.jobs import Job, chunks_of
from dsconv.convert.checkpoint.tensors import TensorSource
from dsconv.convert.families.inventory import Role
from dsconv.convert.forward.torch_ops import load_parameter
from dsconv.convert.quantize.writer import Written, refuse_non_finite
from dsconv.quant.schemes import Floats


class Rows(Protocol):
    """A matrix [rows, columns] of which slices are read."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def read(self, start: int, stop: int) -> Floats: ...


@dataclass(frozen=True)
class OriginalRows:
    """Those of a job's parameter, which must be finite (else: InputError)."""

    checkpoint: Checkpoint
    job: Job

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.job.parameter.shape
        return rows, columns

    def read(self, start: int, stop: int) -> Floats:
        weights = self.checkpoint.rows(self.job.source, start, stop)
        refuse_non_finite(self.job, int(weights.size - np.isfinite(weights).sum()))
        return weights


class StreamWeights(Protocol):
    """The parameters of one stream of activations."""

    def load(self, name: str) -> torch.Tensor:
        """In the type of the forward pass."""
        ...

    def rounds_inputs(self, name: str) -> bool:
        """Is what this weight is multiplied by rounded to int8?"""
        ...

    def rows(self, table: str, tokens: torch.Tensor) -> torch.Tensor:
        """Of the embedding [tokens, hidden]."""
        ...


@dataclass(frozen=True)
class OriginalWeights:
    checkpoint: Checkpoint
    dtype: torch.dtype

    def load(self, name: str) -> torch.Tensor:
        return load_parameter(self.checkpoint, name, self.dtype)

    def rounds_inputs(self, name: str) -> bool:
        return False

    def rows(self, table: str, tokens: torch.Tensor) -> torch.Tensor:
        name = f"{table}.weight"
        rows = [self.checkpoint.rows(name, int(token), int(token) + 1) for token in tokens]
        return torch.from_numpy(np.concatenate(rows)).to(self.dtype)


@dataclass(frozen=True)
class QuantizedWeights:
    """Of the quantized model, as far as it is written; the original's where nothing changes.

    jobs: by parameter; source: the output's own files.
    """

    original: OriginalWeights
    jobs: Mapping[str, Job]
    source: TensorSource

    def load(self, name: str) -> torch.Tensor:
        job = self.jobs.get(name)
        matrix = self.jobs.get(f"{module_of(name)}.weight")
        if job is None or matrix is None or matrix.scheme is None:
            return self.original.load(name)
        written = Written(self.source, job)
        if job.parameter.role is Role.VECTOR:  # a bias may have been corrected
            if matrix.rounds_inputs:
                return self.original.load(name)
            return torch.from_numpy(written.floats()).to(self.original.dtype)
        result = torch.empty(job.parameter.shape, dtype=self.original.dtype)
        for start, stop in chunks_of(job.parameter):
            result[start:stop] = torch.from_numpy(written.read(start, stop).dequantize())
        return result

    def rounds_inputs(self, name: str) -> bool:
        return self.jobs[name].rounds_inputs

    def rows(self, table: str, tokens: torch.Tensor) -> torch.Tensor:
        job = self.jobs[f"{table}.weight"]
        if job.scheme is None:
            return self.original.rows(table, tokens)
        written = Written(self.source, job)
        rows = [written.read(int(token), int(token) + 1).dequantize() for token in tokens]
        return torch.from_numpy(np.concatenate(rows)).to(self.original.dtype)
