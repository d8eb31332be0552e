"""The interpreter that quantizes while it runs: one forward pass over all calibration windows.

A value knows how to compute its windows, and does so only when somebody asks: the inputs of a group
of matrices are computed once, summed into second moments and stored; the matrices are quantized on
them; and the pass goes on with the quantized ones, so that every layer is calibrated on inputs
which carry the errors of the layers before it ("true sequential"). Beside it, a second stream may
carry the inputs as the original model gives them.

Weights are read when they are needed and dropped after use: memory holds one layer, its second
moments, and as many activations as the store keeps. A pass that is resumed computes nothing
before the point where it was cut off, because nobody asks for it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from dsconv.convert.families.base import Attention, Linear, Norm, Table
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchOps
from dsconv.convert.forward.workers import Workers

from .moments import MomentSum
from .weights import StreamWeights

BATCH = 512  # positions of one product of second moments
JUDGED_WINDOWS = 8  # at most, spread over all

Operation = Callable[..., torch.Tensor]  # of the `TorchOps` of a window, and inputs of the window


@dataclass(frozen=True)
class Embedded:
    """rows: of the embedding, for the tokens that occur; places: of a window's tokens in them."""

    rows: torch.Tensor
    places: Sequence[torch.Tensor]

    def get(self, index: int) -> torch.Tensor:
        return self.rows[self.places[index]][None]


@dataclass(frozen=True)
class Computed:
    """Windows that are computed again whenever they are asked for.

    cheap: so little work that storing the result is not worth its room.
    """

    operation: Operation
    inputs: tuple[Windows, ...]
    cheap: bool = False


Windows = Computed | Embedded | StoredWindows  # one tensor [1, length, features] per window


@dataclass(frozen=True)
class Given:
    """A window whose value is there. In another process it is its value."""

    windows: Embedded | StoredWindows
    index: int

    def value(self, ops: TorchOps) -> torch.Tensor:
        return self.windows.get(self.index)

    def __reduce__(self) -> tuple[type[Sent], tuple[torch.Tensor]]:
        return Sent, (self.windows.get(self.index),)


@dataclass(frozen=True)
class Sent:
    tensor: torch.Tensor

    def value(self, ops: TorchOps) -> torch.Tensor:
        return self.tensor


@dataclass(frozen=True)
class WindowTask:
    """One window of a value: what is to be computed, down to what is there."""

    operation: Operation
    inputs: tuple[WindowTask | Given | Sent, ...]

    def value(self, ops: TorchOps) -> torch.Tensor:
        return self.operation(ops, *[part.value(ops) for part in self.inputs])


def window_task(windows: Windows, index: int) -> WindowTask | Given:
    if not isinstance(windows, Computed):
        return Given(windows, index)
    return WindowTask(windows.operation, tuple(window_task(part, index) for part in windows.inputs))


@torch.inference_mode()  # which counts for one thread only
def forward_window(task: WindowTask | Given | Sent, weights: HeldWeights) -> torch.Tensor:
    """A unit of work: a pure function of values that can be pickled."""
    nothing = torch.empty(0, dtype=torch.int64)  # the tokens, which only an embedding asks for
    return task.value(TorchOps(weights, nothing, _NoCache(), weights.rounds_inputs))


@dataclass(frozen=True)
class Streams:
    """A value of the quantized model and, where wanted, of the original.

    source: what each feature is a multiple of, where that is so: the gain of a norm, the rows of a
    linear map. Dividing there divides the value; no other operation reads it.
    """

    parts: list[Windows]
    source: Norm | Linear | None = None


class Calibrator(Protocol):
    """What the pass calls back: how matrices are quantized and kept."""

    def table(self, table: Table) -> None:
        """Quantize the embedding."""
        ...

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        """A group of matrices comes; None when it is kept, or was quantized before."""
        ...

    def finish(
        self,
        group: Sequence[Linear],
        moments: MomentSum,
        window: Callable[[int], torch.Tensor],
        original: Callable[[int], torch.Tensor] | None,
        source: Norm | Linear | None,
    ) -> torch.Tensor | None:
        """All inputs have been seen: quantize the group.

        Args:
            window: gives the inputs [length, features] of one window.
            original: the same of the original model, where it runs beside.
            source: see `Streams`.

        Returns:
            What `source` was divided by, and with it the inputs [features]; None for nothing.
        """
        ...

    def judge(self, original: torch.Tensor, quantized: torch.Tensor) -> None:
        """The inputs of the head of both models at some positions [positions, hidden]."""
        ...

    def commit(self, addition: int, residual: Sequence[StoredWindows]) -> None:
        """Everything before this residual is done: a good point to go on from after a crash."""
        ...

    def resume(self, addition: int, store: ActivationStore) -> list[StoredWindows] | None:
        """The residual that an earlier run kept after this addition; None for no resumed run.

        An empty list says that the addition came before the kept one.
        """
        ...


class _NoCache(KeyValueCache):
    """A window is seen whole, once: nothing to keep."""

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value


class HeldWeights:
    """Parameters of a stream by name, read at first use; a cleared one is read again."""

    def __init__(self, source: StreamWeights) -> None:
        self.source = source
        self.rounds_inputs = source.rounds_inputs
        self._lock = threading.Lock()
        self._values: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        with self._lock:
            if name not in self._values:
                self._values[name] = self.source.load(name)
            return self._values[name]

    def __reduce__(self) -> tuple[type[HeldWeights], tuple[StreamWeights]]:
        return HeldWeights, (self.source,)

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


class CalibratingOps:
    """Ops over windows of token ids, quantizing as it goes.

    streams: weights of the quantized model and, where it runs beside, of the original.
    """

    def __init__(
        self,
        windows: Sequence[Sequence[int]],
        calibrator: Calibrator,
        streams: Sequence[StreamWeights],
        store: ActivationStore,
        workers: Workers,
    ) -> None:
        self._windows = [torch.tensor(list(window), dtype=torch.int64) for window in windows]
        self._calibrator = calibrator
        self._store = store
        self._workers = workers
        self._weights = [HeldWeights(stream) for stream in streams]
        self._additions = 0

    def embedding(self, table: Table) -> Streams:
        """Only the rows of tokens that occur are read: a whole table may be larger than a layer."""
        self._calibrator.table(table)
        tokens, places = torch.unique(torch.cat(self._windows), return_inverse=True)
        of_window = places.split([len(window) for window in self._windows])
        return Streams(
            [
                Embedded(weights.source.rows(table.name, tokens), of_window)
                for weights in self._weights
            ]
        )

    def rms_norm(self, x: Streams, norm: Norm) -> Streams:
        return Streams(_each(partial(TorchOps.rms_norm, norm=norm), x.parts, cheap=True), norm)

    def linears(self, x: Streams, group: Sequence[Linear]) -> list[Streams]:
        inputs = self._quantize(x, group)
        return [
            Streams(_each(partial(matrix_product, linear=linear), inputs), linear)
            for linear in group
        ]

    def attention(
        self, query: Streams, key: Streams, value: Streams, attention: Attention
    ) -> Streams:
        attend = partial(TorchOps.attention, attention=attention)
        return Streams(_each(attend, query.parts, key.parts, value.parts))

    def silu_multiply(self, gate: Streams, up: Streams) -> Streams:
        return Streams(_each(TorchOps.silu_multiply, gate.parts, up.parts), up.source)

    def add(self, x: Streams, y: Streams) -> Streams:
        """The residual. A decoder never looks back at what it has added to: x is given up."""
        self._additions += 1
        kept = self._calibrator.resume(self._additions, self._store)
        if kept is not None:
            return Streams([*kept]) if kept else x
        pairs = zip(x.parts, y.parts, self._weights, strict=True)
        sums = [self._sum(a, b, weights) for a, b, weights in pairs]
        self._calibrator.commit(self._additions, sums)
        return Streams([*sums])

    def head(self, x: Streams, linear: Linear, tied_to: Table | None) -> Streams:
        """The head is quantized on its inputs; the logits are looked at for some windows only."""
        inputs = self._quantize(x, [linear])
        if len(inputs) > 1:
            step = -(-len(self._windows) // JUDGED_WINDOWS)
            quantized, original = (
                torch.cat(
                    [
                        self._window(part, weights, index)
                        for index in range(0, len(self._windows), step)
                    ]
                )
                for part, weights in zip(inputs, self._weights, strict=True)
            )
            self._calibrator.judge(original, quantized)
        self._forget_weights()
        return Streams([])

    def _quantize(self, x: Streams, group: Sequence[Linear]) -> list[Windows]:
        """Show all inputs to the calibrator -> the inputs, stored where they were expensive."""
        moments = self._calibrator.begin(group)
        if moments is None:
            return x.parts
        pairs = list(zip(x.parts, self._weights, strict=True))
        originals = [self._stored(part, weights) for part, weights in pairs[1:]]
        kept = self._observed(x.parts[0], originals, moments)
        self._forget_weights()
        window = partial(self._window, kept, self._weights[0])
        before = partial(self._window, originals[0], self._weights[1]) if originals else None
        scales = self._calibrator.finish(group, moments, window, before, x.source)
        if scales is not None:
            kept = Computed(partial(_quotient, scales=scales), (kept,), cheap=True)
        return [kept, *originals]

    def _observed(self, x: Windows, originals: Sequence[Windows], moments: MomentSum) -> Windows:
        """All windows of the quantized model beside the original's -> kept where expensive."""
        kept = self._store.new(len(self._windows)) if _is_expensive(x) else x
        batch: list[int] = []
        values: list[torch.Tensor] = []
        for index, value in enumerate(self._values(x, self._weights[0])):
            if kept is not x and isinstance(kept, StoredWindows):
                kept.put(index, value)
            batch.append(index)
            values.append(value[0])
            if sum(map(len, values)) >= BATCH or index == len(self._windows) - 1:
                with torch.inference_mode():
                    same = [
                        torch.cat([self._window(part, self._weights[1], i) for i in batch])
                        for part in originals
                    ]
                    moments.add(torch.cat(values), *same)
                batch, values = [], []
        return kept

    def _stored(self, x: Windows, weights: HeldWeights) -> Windows:
        if not _is_expensive(x):
            return x
        kept = self._store.new(len(self._windows))
        for index, value in enumerate(self._values(x, weights)):
            kept.put(index, value)
        self._forget_weights()
        return kept

    def _sum(self, x: Windows, y: Windows, weights: HeldWeights) -> StoredWindows:
        result = self._store.new(len(self._windows))
        total = Computed(TorchOps.add, (x, y))
        for index, value in enumerate(self._values(total, weights)):
            if isinstance(x, StoredWindows):
                x.drop(index)
            result.put(index, value)
        self._forget_weights()
        return result

    def _values(self, x: Windows, weights: HeldWeights) -> Iterator[torch.Tensor]:
        """Of all windows, one window per thread."""
        tasks = (window_task(x, index) for index in range(len(self._windows)))
        return self._workers.in_order(forward_window, tasks, weights)

    def _window(self, x: Windows, weights: HeldWeights, index: int) -> torch.Tensor:
        """-> [length, features]."""
        return forward_window(window_task(x, index), weights)[0]

    def _forget_weights(self) -> None:
        for weights in self._weights:
            weights.clear()


def _each(operation: Operation, *inputs: list[Windows], cheap: bool = False) -> list[Windows]:
    """One value per stream."""
    return [Computed(operation, parts, cheap) for parts in zip(*inputs, strict=True)]


def _is_expensive(x: Windows) -> bool:
    return isinstance(x, Computed) and not x.cheap


def matrix_product(ops: TorchOps, x: torch.Tensor, linear: Linear) -> torch.Tensor:
    return ops.linears(x, [linear])[0]


def _quotient(ops: TorchOps, x: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return (x.float() / scales).to(x.dtype)
