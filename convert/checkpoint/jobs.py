"""What a folder of weights will hold: one job per parameter, its tensors, shards and row chunks.

The tensors are laid out so that what a runtime may fuse lies side by side: the codes of query, key
and value, then their scales, then their biases; the same for gate and up. A graph can then name
one byte range for the fused matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsconv.convert.families.inventory import Parameter
from dsconv.convert.files.safetensors import PlannedTensor
from dsconv.quant.schemes import Scheme

from .checkpoint import module_of
from .matrix_layout import SHAPE, has_shape_tensor, stored_tensors

MAX_SHARD_BYTES = 5_000_000_000
CHUNK_WEIGHTS = 1 << 20  # read, rounded and written at a time; one in flight per thread


@dataclass(frozen=True)
class Job:
    """One output parameter: where its rows come from and how they are stored."""

    parameter: Parameter
    source: str
    scheme: Scheme | None
    float_dtype: str

    @property
    def module(self) -> str:
        return module_of(self.parameter.name)

    @property
    def rounds_inputs(self) -> bool:
        """Are the activations that meet this weight rounded to int8?"""
        return self.scheme is not None and self.scheme.rounds_inputs

    def planned(self) -> list[PlannedTensor]:
        """The tensors of this parameter, codes first; `weight_shape` is kept apart."""
        name, shape = self.parameter.name, self.parameter.shape
        if self.scheme is None:
            return [PlannedTensor(name, self.float_dtype, shape)]
        rows, columns = shape
        return stored_tensors(self.module, (rows, columns), self.scheme)


def tensors_of(jobs: list[Job]) -> list[PlannedTensor]:
    """Everything in a shard, in file order: group by group, same kinds side by side."""
    tensors: list[PlannedTensor] = []
    shapes: list[PlannedTensor] = []
    for group in _groups(jobs):
        columns = [job.planned() for job in group]
        for kind in range(max(map(len, columns))):
            tensors += [planned[kind] for planned in columns if kind < len(planned)]
        shapes += [
            PlannedTensor(f"{job.module}.{SHAPE}", "I64", (2,))
            for job in group
            if job.scheme and has_shape_tensor(job.scheme)
        ]
    return tensors + shapes


def _groups(jobs: list[Job]) -> Iterator[list[Job]]:
    """Jobs of one input side by side, weights before biases."""
    group: list[Job] = []
    for job in jobs:
        if group and job.parameter.group != group[-1].parameter.group:
            yield group
            group = []
        group.append(job)
    if group:
        yield group


def shards_of(jobs: list[Job]) -> dict[str, list[Job]]:
    """File name -> jobs; a group is never split."""
    shards: list[list[Job]] = [[]]
    size = 0
    for group in _groups(jobs):
        nbytes = sum(tensor.nbytes for tensor in tensors_of(group))
        if shards[-1] and size + nbytes > MAX_SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1] += group
        size += nbytes
    if len(shards) == 1:
        return {"model.safetensors": shards[0]}
    count = len(shards)
    return {f"model-{i + 1:05}-of-{count:05}.safetensors": jobs for i, jobs in enumerate(shards)}


def chunks_of(parameter: Parameter) -> Iterator[tuple[int, int]]:
    """Row ranges of about CHUNK_WEIGHTS weights; multiples of 8 rows, the zero points' packing."""
    rows = parameter.shape[0]
    width = max(1, parameter.size // max(1, rows))
    step = max(8, CHUNK_WEIGHTS // width // 8 * 8)
    for start in range(0, rows, step):
        yield start, min(rows, start + step)
