"""The weights that a quantization run writes, and reads back."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.jobs import Job, tensors_of
from dsconv.convert.checkpoint.matrix_layout import SHAPE, encode, has_shape_tensor, read_quantized
from dsconv.convert.checkpoint.tensors import SafetensorsSource, TensorSource
from dsconv.convert.files.safetensors import (
    DTYPES,
    SafetensorsWriter,
    TensorInfo,
    read_tensor_infos,
)
from dsconv.errors import InputError
from dsconv.quant.schemes import QuantizedMatrix


class QuantizedWriter:
    """All shards of the output, open at once: parameters may come in any order.

    resume: the files of an earlier run are there; what it has written is told by `skip`.
    """

    def __init__(self, folder: Path, shards: dict[str, list[Job]], resume: bool = False) -> None:
        self.paths = [folder / name for name in shards]
        self._shards = shards
        self._resume = resume
        self._stack = ExitStack()
        self._files: list[SafetensorsWriter] = []
        self._writers: dict[str, SafetensorsWriter] = {}
        self._infos: dict[str, TensorInfo] = {}

    def __enter__(self) -> QuantizedWriter:
        for path, jobs in zip(self.paths, self._shards.values(), strict=True):
            tensors = tensors_of(jobs)
            writer = SafetensorsWriter(path, tensors, resume=self._resume)
            self._files.append(self._stack.enter_context(writer))
            self._writers.update({tensor.name: writer for tensor in tensors})
        return self

    def __exit__(self, *failure: object) -> None:
        self._stack.__exit__(*failure)  # type: ignore[arg-type]

    def flush(self) -> None:
        for file in self._files:
            file.flush()

    def skip(self, job: Job) -> None:
        """An earlier run has written the job."""
        names = [tensor.name for tensor in job.planned()]
        if job.scheme is not None and has_shape_tensor(job.scheme):
            names.append(f"{job.module}.{SHAPE}")
        for name in names:
            self._writers[name].skip(name)

    def read_quantized(self, job: Job, start: int, stop: int) -> QuantizedMatrix:
        """Rows of a job that was written and flushed."""
        return Written(self.source(), job).read(start, stop)

    def source(self) -> SafetensorsSource:
        """The files, as far as they are written and flushed."""
        if not self._infos:
            self.flush()
            for path in self.paths:
                self._infos.update(read_tensor_infos(path))
        return SafetensorsSource(self._infos)

    def write_floats(self, job: Job, rows: NDArray[np.generic]) -> None:
        name = job.parameter.name
        self._writers[name].write(name, rows.astype(DTYPES[job.float_dtype], copy=False))

    def rewrite(self, name: str, array: NDArray[np.generic]) -> None:
        """Other numbers for a tensor that was written before."""
        self._writers[name].rewind(name)
        self._writers[name].write(name, array)

    def write_quantized(self, job: Job, quantized: QuantizedMatrix) -> None:
        for kind, array in encode(quantized).items():
            self._write(job, kind, array)

    def finish_quantized(self, job: Job) -> None:
        if job.scheme is not None and has_shape_tensor(job.scheme):
            self._write(job, SHAPE, np.array(job.parameter.shape, np.int64))

    def _write(self, job: Job, kind: str, array: NDArray[np.generic]) -> None:
        name = f"{job.module}.{kind}"
        self._writers[name].write(name, array)


@dataclass(frozen=True)
class Written:
    """A parameter that is written."""

    source: TensorSource
    job: Job

    def read(self, start: int, stop: int) -> QuantizedMatrix:
        """Rows of a quantized one."""
        job = self.job
        if job.scheme is None:
            raise RuntimeError(f"{job.module} is not quantized")
        columns = job.parameter.shape[1]
        return read_quantized(self.source, job.module, job.scheme, columns, start, stop)

    def floats(self) -> NDArray[np.float32]:
        """One that is kept as it is."""
        rows = self.source.rows(self.job.parameter.name, 0, self.job.parameter.shape[0])
        return np.require(rows.astype(np.float32), requirements="W")


def refuse_non_finite(job: Job, count: int) -> None:
    if count:
        raise InputError(
            f"tensor {job.source!r}: {count} of {job.parameter.size} values are NaN or infinite",
            "the checkpoint is damaged; download it again",
        )
