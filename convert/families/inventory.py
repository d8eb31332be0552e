"""The interpreter that lists what a checkpoint of the family must hold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from .base import Attention, Decoder, Linear, Norm, Table


class Role(Enum):
    LINEAR = "linear"
    EMBEDDING = "embedding"
    HEAD = "head"
    VECTOR = "vector"  # norms and biases: never quantized


@dataclass(frozen=True)
class Parameter:
    """One tensor of the unquantized checkpoint. Linears of one input share a `group` number."""

    name: str
    shape: tuple[int, ...]
    role: Role
    group: int

    @property
    def size(self) -> int:
        return math.prod(self.shape)


class _Recorder:
    """Ops over nothing: only the parameters are kept."""

    def __init__(self) -> None:
        self.parameters: list[Parameter] = []
        self._groups = 0

    def _record(self, name: str, shape: tuple[int, ...], role: Role) -> None:
        self.parameters.append(Parameter(name, shape, role, self._groups))

    def embedding(self, table: Table) -> None:
        self._groups += 1
        self._record(f"{table.name}.weight", (table.vocabulary, table.hidden), Role.EMBEDDING)

    def rms_norm(self, x: None, norm: Norm) -> None:
        self._groups += 1
        self._record(f"{norm.name}.weight", (norm.size,), Role.VECTOR)

    def linears(self, x: None, group: Sequence[Linear]) -> list[None]:
        self._groups += 1
        for linear in group:
            self._record(f"{linear.name}.weight", (linear.outputs, linear.inputs), Role.LINEAR)
        for linear in group:
            if linear.bias:
                self._record(f"{linear.name}.bias", (linear.outputs,), Role.VECTOR)
        return [None] * len(group)

    def attention(self, query: None, key: None, value: None, attention: Attention) -> None:
        return None

    def silu_multiply(self, gate: None, up: None) -> None:
        return None

    def add(self, x: None, y: None) -> None:
        return None

    def head(self, x: None, linear: Linear, tied_to: Table | None) -> None:
        self._groups += 1
        if tied_to is None:
            self._record(f"{linear.name}.weight", (linear.outputs, linear.inputs), Role.HEAD)


def parameters_of(decoder: Decoder) -> list[Parameter]:
    """Every tensor of the checkpoint, in the order of the network."""
    recorder = _Recorder()
    decoder.forward(recorder)
    return recorder.parameters
