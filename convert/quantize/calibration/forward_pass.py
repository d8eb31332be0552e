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
from typing import Protocol, TypeVar

import torch

from dsconv.convert.families.base import Attention, Linear, Norm, Table
from dsconv.convert.forward.activation_store import ActivationStore, StoredWindows
from dsconv.convert.forward.torch_ops import KeyValueCache, Predicate, TorchOps
from dsconv.convert.forward.workers import Workers

from .moments import MomentSum

BATCH = 512  # positions of one product of second moments
JUDGED_WINDOWS = 8  # at most, spread over all

Result = TypeVar("Result")


class Computed:
    """Windows that are computed again whenever they are asked for.

    cheap: so little work that storing the result is not worth its room.
    """

    def __init__(self, compute: Callable[[int], torch.Tensor], cheap: bool = False) -> None:
        self.get = compute
        self.cheap = cheap


Windows = Computed | StoredWindows  # one tensor [1, length, features] per window


@dataclass(frozen=True)
class Streams:
    """A value of the quantized model and, where wanted, of the original.

    source: what each feature is a multiple of, where that is so: the gain of a norm, the rows of a
    linear map. Dividing there divides the value; no other operation reads it.
    """

    parts: list[Windows]
    source: Norm | Linear | None = None


class Calibrator(Protocol):
    """What the pass calls back: how weights are read, quantized and kept."""

    def original(self, name: str) -> torch.Tensor:
        """A parameter of the original model in the type of the forward."""
        ...

    def quantized(self, name: str) -> torch.Tensor:
        """The same of the quantized model, as far as it is quantized."""
        ...

    def table(self, table: Table) -> None:
        """Quantize the embedding."""
        ...

    def rows(self, table: Table, tokens: torch.Tensor, original: bool) -> torch.Tensor:
        """Rows of the embedding [tokens, hidden], of the quantized or of the original model."""
        ...

    def begin(self, group: Sequence[Linear]) -> MomentSum | None:
        """A group of matrices comes; None when it is kept, or was quantized before."""
        ...

    def rounds_inputs(self, name: str) -> bool:
        """Does the quantized model round what it multiplies this weight by?"""
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


class CalibratingOps:
    """Ops over windows of token ids, quantizing as it goes."""

    def __init__(
        self,
        windows: Sequence[Sequence[int]],
        calibrator: Calibrator,
        store: ActivationStore,
        workers: Workers,
        with_original: bool,
    ) -> None:
        self._windows = [torch.tensor(list(window), dtype=torch.int64) for window in windows]
        self._calibrator = calibrator
        self._store = store
        self._workers = workers
        self._weights = [_Weights(calibrator.quantized, calibrator.rounds_inputs)]
        if with_original:
            self._weights.append(_Weights(calibrator.original, lambda name: False))
        self._additions = 0

    def embedding(self, table: Table) -> Streams:
        """Only the rows of tokens that occur are read: a whole table may be larger than a layer."""
        self._calibrator.table(table)
        tokens, places = torch.unique(torch.cat(self._windows), return_inverse=True)
        of_window = places.split([len(window) for window in self._windows])

        def stream(rows: torch.Tensor) -> Computed:
            return Computed(lambda index: rows[of_window[index]][None], cheap=True)

        return Streams(
            [
                stream(self._calibrator.rows(table, tokens, original=index > 0))
                for index in range(len(self._weights))
            ]
        )

    def rms_norm(self, x: Streams, norm: Norm) -> Streams:
        parts: list[Windows] = [
            self._each_window(weights, lambda ops, v: ops.rms_norm(v, norm), part)
            for part, weights in zip(x.parts, self._weights, strict=True)
        ]
        return Streams(parts, norm)

    def linears(self, x: Streams, group: Sequence[Linear]) -> list[Streams]:
        inputs = self._quantize(x, group)

        def outputs(linear: Linear) -> Streams:
            parts: list[Windows] = [
                self._each_window(
                    weights, lambda ops, v: ops.linears(v, [linear])[0], part, dear=True
                )
                for part, weights in zip(inputs, self._weights, strict=True)
            ]
            return Streams(parts, linear)

        return [outputs(linear) for linear in group]

    def attention(
        self, query: Streams, key: Streams, value: Streams, attention: Attention
    ) -> Streams:
        streams = query.parts, key.parts, value.parts
        return Streams(
            [
                self._each_window(
                    weights,
                    lambda ops, q, k, v: ops.attention(q, k, v, attention),
                    *parts,
                    dear=True,
                )
                for weights, *parts in zip(self._weights, *streams, strict=True)
            ]
        )

    def silu_multiply(self, gate: Streams, up: Streams) -> Streams:
        parts: list[Windows] = [
            self._each_window(weights, lambda ops, g, u: ops.silu_multiply(g, u), *both, dear=True)
            for weights, *both in zip(self._weights, gate.parts, up.parts, strict=True)
        ]
        return Streams(parts, up.source)

    def add(self, x: Streams, y: Streams) -> Streams:
        """The residual. A decoder never looks back at what it has added to: x is given up."""
        self._additions += 1
        kept = self._calibrator.resume(self._additions, self._store)
        if kept is not None:
            return Streams([*kept]) if kept else x
        sums = [self._sum(a, b) for a, b in zip(x.parts, y.parts, strict=True)]
        self._calibrator.commit(self._additions, sums)
        return Streams([*sums])

    def head(self, x: Streams, linear: Linear, tied_to: Table | None) -> Streams:
        """The head is quantized on its inputs; the logits are looked at for some windows only."""
        inputs = self._quantize(x, [linear])
        if len(inputs) > 1:
            step = -(-len(self._windows) // JUDGED_WINDOWS)
            quantized, original = (
                torch.cat([part.get(index)[0] for index in range(0, len(self._windows), step)])
                for part in inputs
            )
            self._calibrator.judge(original, quantized)
        self._forget_weights()
        return Streams([])

    def _each_window(
        self,
        weights: _Weights,
        work: Callable[..., torch.Tensor],
        *inputs: Windows,
        dear: bool = False,
    ) -> Computed:
        """`work(ops, *inputs of one window)`, when asked."""

        def compute(index: int) -> torch.Tensor:
            ops = TorchOps(weights, self._windows[index], _NoCache(), weights.rounds_inputs)
            return work(ops, *[part.get(index) for part in inputs])

        return Computed(compute, cheap=not dear)

    def _quantize(self, x: Streams, group: Sequence[Linear]) -> list[Windows]:
        """Show all inputs to the calibrator -> the inputs, stored where they were dear."""
        moments = self._calibrator.begin(group)
        if moments is None:
            return x.parts
        originals = [self._stored(part) for part in x.parts[1:]]
        kept, fill = self._filling(x.parts[0])
        batch: list[int] = []
        values: list[torch.Tensor] = []
        for index, value in enumerate(self._in_order(fill)):
            batch.append(index)
            values.append(value[0])
            if sum(map(len, values)) >= BATCH or index == len(self._windows) - 1:
                with torch.inference_mode():
                    same = [torch.cat([part.get(i)[0] for i in batch]) for part in originals]
                    moments.add(torch.cat(values), *same)
                batch, values = [], []
        self._forget_weights()
        before = (lambda i: originals[0].get(i)[0]) if originals else None
        scales = self._calibrator.finish(group, moments, lambda i: kept.get(i)[0], before, x.source)
        return [kept if scales is None else _divided(kept, scales), *originals]

    def _filling(self, x: Windows) -> tuple[Windows, Callable[[int], torch.Tensor]]:
        """-> (x as it will be kept, a function that gives a window of x and keeps it there)."""
        if isinstance(x, StoredWindows) or x.cheap:
            return x, x.get
        kept = self._store.new(len(self._windows))

        def fill(index: int) -> torch.Tensor:
            value = x.get(index)
            kept.put(index, value)
            return value

        return kept, fill

    def _stored(self, x: Windows) -> Windows:
        kept, fill = self._filling(x)
        if kept is not x:
            for _ in self._in_order(fill):
                pass
            self._forget_weights()
        return kept

    def _sum(self, x: Windows, y: Windows) -> StoredWindows:
        result = self._store.new(len(self._windows))

        def one(index: int) -> None:
            value = x.get(index) + y.get(index)
            if isinstance(x, StoredWindows):
                x.drop(index)
            result.put(index, value)

        for _ in self._in_order(one):
            pass
        self._forget_weights()
        return result

    def _in_order(self, work: Callable[[int], Result]) -> Iterator[Result]:
        """`work` for every window, one window per thread."""

        @torch.inference_mode()  # which counts for one thread only
        def one(index: int) -> Result:
            return work(index)

        return self._workers.in_order(one, range(len(self._windows)))

    def _forget_weights(self) -> None:
        for weights in self._weights:
            weights.clear()


def _divided(x: Windows, scales: torch.Tensor) -> Windows:
    def compute(index: int) -> torch.Tensor:
        value = x.get(index)
        return (value.float() / scales).to(value.dtype)

    return Computed(compute, cheap=True)


class _Weights:
    """Parameters by name, read at first use; a cleared one is read again."""

    def __init__(self, read: Callable[[str], torch.Tensor], rounds_inputs: Predicate) -> None:
        self.rounds_inputs = rounds_inputs
        self._read = read
        self._lock = threading.Lock()
        self._values: dict[str, torch.Tensor] = {}

    def __call__(self, name: str) -> torch.Tensor:
        with self._lock:
            if name not in self._values:
                self._values[name] = self._read(name)
            return self._values[name]

    def clear(self) -> None:
        with self._lock:
            self._values.clear()
