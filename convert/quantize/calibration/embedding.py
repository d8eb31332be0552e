"""The embedding: rounded on the inputs of the head where it is that too, else by search, where
every row counts alike, whatever the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dsconv.convert.checkpoint.jobs import chunks_of
from dsconv.convert.forward.workers import Workers
from dsconv.convert.quantize.rounding import round_in_blocks
from dsconv.quant.gptq import Factor, gptq
from dsconv.quant.schemes import QuantizedMatrix, Scheme

from .weights import OriginalRows


@dataclass(frozen=True)
class EmbeddingTask:
    """What all slices of its rows share. factor: of the inputs of the head."""

    rows: OriginalRows
    scheme: Scheme
    factor: Factor | None


def embedding_slice(bounds: tuple[int, int], task: EmbeddingTask) -> QuantizedMatrix:
    """Rows [start, stop). A unit of work: a pure function of values that can be pickled."""
    weights = task.rows.read(*bounds)
    if task.factor is None:
        return round_in_blocks(weights, task.scheme, "search")
    return gptq(weights, task.factor, task.scheme)


def embedding_slices(task: EmbeddingTask, workers: Workers) -> Iterator[QuantizedMatrix]:
    return workers.in_order(embedding_slice, chunks_of(task.rows.job.parameter), task)
