"""The interpreter that quantizes while it runs: one forward pass over all calibration windows.

A value is the list of the windows' activations. When a group of linear maps is reached, the second
moment of its inputs is taken, its matrices are quantized, and the pass goes on with the quantized
ones: every layer is calibrated on inputs that already carry the errors of the layers before it
("true sequential"). Weights are read when they are needed and dropped after use, so memory holds
one layer and the activations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from .families.base import Attention, Linear, Norm, Table
from .parallel import Workers
from .torch_ops import KeyValueCache, TorchOps

WINDOWS_AT_A_TIME = 8  # rows of one matrix product: long enough to hide the addition of its result

Windows = list[torch.Tensor]
Result = TypeVar("Result")
Moment = Callable[[], NDArray[np.float32]]
# Called with the linears of one input and a function that computes the input's mean outer product
# [inputs, inputs]; returns the new weights by parameter name.
QuantizeGroup = Callable[[Sequence[Linear], Moment], dict[str, torch.Tensor]]


class _NoCache(KeyValueCache):
    """A window is seen whole, once: nothing to keep."""

    def append(
        self, layer: int, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key, value


class CalibratingOps:
    """Ops over windows of token ids, quantizing as it goes.

    Args:
        load: reads a float parameter as a torch tensor in the dtype of the forward.
        quantize_table: quantizes the embedding -> its new weights (or None: unchanged).
        quantize_group: see QuantizeGroup.
    """

    def __init__(
        self,
        windows: Sequence[Sequence[int]],
        load: Callable[[str], torch.Tensor],
        quantize_table: Callable[[Table], torch.Tensor | None],
        quantize_group: QuantizeGroup,
        workers: Workers,
    ) -> None:
        self._windows = [torch.tensor(list(window), dtype=torch.int64) for window in windows]
        self._load = load
        self._quantize_table = quantize_table
        self._quantize_group = quantize_group
        self._workers = workers
        self._current: dict[str, torch.Tensor] = {}
        self._by_length: dict[int, TorchOps] = {}

    def embedding(self, table: Table) -> Windows:
        quantized = self._quantize_table(table)
        if quantized is not None:
            self._current[f"{table.name}.weight"] = quantized
        result = [
            TorchOps(self._weight, window, _NoCache()).embedding(table) for window in self._windows
        ]
        self._current.clear()
        return result

    def rms_norm(self, x: Windows, norm: Norm) -> Windows:
        return self._each(lambda ops, part: ops.rms_norm(part, norm), x)

    def linears(self, x: Windows, group: Sequence[Linear]) -> list[Windows]:
        self._quantize(x, group)
        for linear in group:  # read before the threads ask for them
            self._weight(f"{linear.name}.weight")
        results = self._each(lambda ops, part: ops.linears(part, group), x)
        self._current.clear()  # biases and the like are small and read again
        return [list(column) for column in zip(*results, strict=True)]

    def attention(
        self, query: Windows, key: Windows, value: Windows, attention: Attention
    ) -> Windows:
        return self._each(lambda ops, q, k, v: ops.attention(q, k, v, attention), query, key, value)

    def silu_multiply(self, gate: Windows, up: Windows) -> Windows:
        return self._each(lambda ops, g, u: ops.silu_multiply(g, u), gate, up)

    def add(self, x: Windows, y: Windows) -> Windows:
        return [a + b for a, b in zip(x, y, strict=True)]

    def head(self, x: Windows, linear: Linear, tied_to: Table | None) -> Windows:
        """The head is quantized on its inputs; nobody needs the logits."""
        self._quantize(x, [linear])
        return []

    def _quantize(self, x: Windows, group: Sequence[Linear]) -> None:
        name = group[0].name
        new = self._quantize_group(group, lambda: second_moment(x, name, self._workers))
        self._current.update(new)

    def _each(self, work: Callable[..., Result], *values: Windows) -> list[Result]:
        """`work(ops, part, ...)` for every window, one window per thread."""

        @torch.inference_mode()  # which counts for one thread only
        def one(parts: tuple[torch.Tensor, ...]) -> Result:
            return work(self._ops(parts[0]), *parts)

        return list(self._workers.in_order(one, zip(*values, strict=True)))

    def _ops(self, part: torch.Tensor) -> TorchOps:
        """One set of ops (and rotary tables) per window length."""
        length = part.shape[1]
        if length not in self._by_length:
            tokens = torch.zeros(length, dtype=torch.int64)
            self._by_length[length] = TorchOps(self._weight, tokens, _NoCache())
        return self._by_length[length]

    def _weight(self, name: str) -> torch.Tensor:
        if name not in self._current:
            self._current[name] = self._load(name)
        return self._current[name]


def second_moment(x: Windows, where: str, workers: Workers) -> NDArray[np.float32]:
    """Mean of x xᵀ over all positions of all windows -> [features, features].

    Raises:
        InputError: the activations are not finite.
    """
    features = x[0].shape[-1]
    total = np.zeros((features, features), np.float32)

    def product(start: int) -> NDArray[np.float32]:
        parts = [part[0] for part in x[start : start + WINDOWS_AT_A_TIME]]
        rows = torch.cat(parts).float().numpy()
        symmetric: NDArray[np.float32] = rows.T @ rows  # NumPy sees it and computes one half
        return symmetric

    for part in workers.in_order(product, range(0, len(x), WINDOWS_AT_A_TIME)):
        total += part
    if not np.isfinite(total).all():
        raise InputError(
            f"the inputs of {where} are not finite on the calibration text",
            "the checkpoint is damaged, or its activations overflow",
        )
    total /= np.float32(sum(part.shape[1] for part in x))
    return total
