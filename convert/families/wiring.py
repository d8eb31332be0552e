"""The interpreter that tells what each linear map of a layer reads, and which rows are heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .base import Attention, Decoder, Linear, Norm, Table


@dataclass(frozen=True)
class InputGroup:
    """Linear maps of one input.

    source: what each feature of the input is a multiple of: the gain of a norm, the rows of a
    linear map. None where it is a sum.
    """

    linears: tuple[Linear, ...]
    source: Norm | Linear | None


@dataclass(frozen=True)
class Wiring:
    """Of one layer, in the order of the network.

    row_heads, column_heads: by the name of a linear map, how many attention heads its rows
    (outputs) or columns (inputs) are.
    """

    groups: Sequence[InputGroup]
    row_heads: Mapping[str, int]
    column_heads: Mapping[str, int]


@dataclass(frozen=True)
class _Value:
    """linear: that a head's norm may have followed; heads: of attention, whose output this is."""

    source: Norm | Linear | None = None
    linear: Linear | None = None
    heads: int | None = None


@dataclass
class _Recorder:
    """Ops over nothing: only who reads what is kept."""

    groups: list[InputGroup] = field(default_factory=list)
    row_heads: dict[str, int] = field(default_factory=dict)
    column_heads: dict[str, int] = field(default_factory=dict)

    def embedding(self, table: Table) -> _Value:
        return _Value()

    def rms_norm(self, x: _Value, norm: Norm) -> _Value:
        return _Value(norm, x.linear)

    def linears(self, x: _Value, group: Sequence[Linear]) -> list[_Value]:
        self.groups.append(InputGroup(tuple(group), x.source))
        if x.heads is not None:
            self.column_heads.update({linear.name: x.heads for linear in group})
        return [_Value(linear, linear) for linear in group]

    def attention(self, query: _Value, key: _Value, value: _Value, attention: Attention) -> _Value:
        counts = attention.heads, attention.kv_heads, attention.kv_heads
        for operand, heads in zip((query, key, value), counts, strict=True):
            if operand.linear is not None:
                self.row_heads[operand.linear.name] = heads
        return _Value(value.source, heads=attention.heads)

    def silu_multiply(self, gate: _Value, up: _Value) -> _Value:
        return _Value(up.source)

    def add(self, x: _Value, y: _Value) -> _Value:
        return _Value()

    def head(self, x: _Value, linear: Linear, tied_to: Table | None) -> _Value:
        return self.linears(x, [linear])[0]


def wiring_of(decoder: Decoder, layer: int) -> Wiring:
    recorder = _Recorder()
    decoder.layer(recorder, layer, _Value())
    return Wiring(recorder.groups, recorder.row_heads, recorder.column_heads)
