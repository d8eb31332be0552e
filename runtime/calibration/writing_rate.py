"""How long a step of writing the calibration text takes: a few steps of the very code that writes.

With few documents at once the time goes into calls and memory, not into arithmetic, so it is taken
from networks of the model's own widths, with one layer and with more than caches hold, and weights
that mean nothing.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.forward.batch_generation import WeightPieces
from dsconv.convert.forward.torch_ops import forward_dtype

from .self_written import SAMPLING, Layout, Prompt, Writer, write_streams

STEPS = 6
BEYOND_CACHES = 1 << 26  # weights of the larger network, of a model that has as many
MOST_VOCABULARY = 1 << 15  # the head's time grows with it


class MeaninglessSource:
    """Weights of the shapes asked for, all alike."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def names(self) -> Iterable[str]:
        return self._shapes.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def dtype(self, name: str) -> str:
        return "F32"

    def storage(self, name: str) -> str:
        return "F32"

    def nbytes(self, name: str) -> int:
        return 4 * int(np.prod(self._shapes[name]))

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        first, *rest = self._shapes[name]
        count = (first if stop is None else stop) - start
        return np.full((count, *rest), 0.01, np.float32)

    def columns(self, name: str, start: int, stop: int) -> NDArray[Any]:
        raise RuntimeError(f"{name}: only whole rows are written with")

    def files(self) -> list[Path]:
        return []


def step_seconds(checkpoint: Checkpoint, layout: Layout, threads: int) -> float:
    """Of all documents by a token."""
    config = checkpoint.decoder.config
    vocabulary = min(config.vocab_size, MOST_VOCABULARY)
    sizes = [p.size for p in checkpoint.parameters.values() if p.role is Role.LINEAR]
    one = max(1, sum(sizes) // config.num_hidden_layers)
    many = max(2, min(config.num_hidden_layers, 1 + -(-BEYOND_CACHES // one)))
    few, some = (_seconds(checkpoint, layers, vocabulary, layout, threads) for layers in (1, many))
    layer = max(some - few, 0.0) / (many - 1)
    rest = max(few - layer, 0.0) * config.vocab_size / vocabulary
    return config.num_hidden_layers * layer + rest


def _seconds(
    checkpoint: Checkpoint, layers: int, vocabulary: int, layout: Layout, threads: int
) -> float:
    config = checkpoint.decoder.config
    small = replace(config, num_hidden_layers=layers, vocab_size=vocabulary)
    decoder = type(checkpoint.decoder)(small)
    shapes = {parameter.name: parameter.shape for parameter in parameters_of(decoder)}
    source = MeaninglessSource(shapes)
    model = Checkpoint(checkpoint.origin, checkpoint.config, decoder, source, {})
    weights = WeightPieces(model, forward_dtype(), hold=True)
    short = replace(layout, slot_tokens=STEPS)
    times: list[float] = []
    writer = Writer(model, weights, short, ())

    def advance(tokens: int) -> None:
        times.append(time.perf_counter())

    write_streams(writer, [Prompt((1,))], SAMPLING, threads, advance)
    return (times[-1] - times[0]) / (STEPS - 1)  # the first one makes the weights
