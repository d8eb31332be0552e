"""The steps of a native program: what they hold, and their JSON form in a `.dsq` file.

docs/native.md says what each step computes. Buffers are numbered; matrices, gains, biases and
frequencies are named as in the file.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader

COMBINES = ("none", "add", "silu_multiply")


@dataclass(frozen=True)
class NormUse:
    """RMSNorm of each of `heads` equal parts of a row."""

    gain: str
    epsilon: float
    heads: int = 1

    @classmethod
    def read(cls, reader: ConfigReader) -> NormUse:
        return cls(
            reader.string("gain"),
            reader.number("epsilon", high=1.0),
            reader.integer("heads"),
        )


@dataclass(frozen=True)
class MatrixUse:
    weight: str
    bias: str | None
    output: int

    @classmethod
    def read(cls, reader: ConfigReader) -> MatrixUse:
        bias = reader.string("bias") if reader.has("bias") else None
        return cls(reader.string("weight"), bias, _buffer(reader, "output"))


@dataclass(frozen=True)
class EmbeddingStep:
    """output = the tokens' rows of the table."""

    op: ClassVar[str] = "embedding"
    weight: str
    output: int

    @classmethod
    def read(cls, reader: ConfigReader) -> EmbeddingStep:
        return cls(reader.string("weight"), _buffer(reader, "output"))


@dataclass(frozen=True)
class NormStep:
    """buffer = norm(buffer)."""

    op: ClassVar[str] = "norm"
    norm: NormUse
    buffer: int

    @classmethod
    def read(cls, reader: ConfigReader) -> NormStep:
        return cls(NormUse.read(_child(reader, "norm")), _buffer(reader, "buffer"))


@dataclass(frozen=True)
class LinearStep:
    """Matrices of one input, which is normalised before (into `normed`) where a norm is given.

    combine: "none"; "add" adds to what is in the output; "silu_multiply" has two matrices, gate
    and up, and leaves silu(gate) * up in the gate's output.
    """

    op: ClassVar[str] = "linear"
    input: int
    norm: NormUse | None
    normed: int | None
    matrices: tuple[MatrixUse, ...]
    combine: str

    @classmethod
    def read(cls, reader: ConfigReader) -> LinearStep:
        norm = reader.child("norm")
        matrices = reader.data.get("matrices")
        if not isinstance(matrices, list) or not matrices:
            raise reader.fail("matrices", "not a list of matrices")
        combine = reader.string("combine")
        if combine not in COMBINES:
            raise reader.fail("combine", f"{combine!r} is not one of {', '.join(COMBINES)}")
        return cls(
            _buffer(reader, "input"),
            NormUse.read(norm) if norm else None,
            _buffer(reader, "normed") if norm else None,
            tuple(MatrixUse.read(_object(reader, "matrices", entry)) for entry in matrices),
            combine,
        )


@dataclass(frozen=True)
class AttentionStep:
    """Rotary positions, the cache, grouped-query attention. `key` lacks its bias, given here."""

    op: ClassVar[str] = "attention"
    layer: int
    query: int
    key: int
    value: int
    output: int
    heads: int
    kv_heads: int
    head_dim: int
    frequencies: str
    rotary_factor: float
    key_bias: str | None

    @classmethod
    def read(cls, reader: ConfigReader) -> AttentionStep:
        return cls(
            layer=reader.integer("layer", low=0, high=limits.STEPS),
            query=_buffer(reader, "query"),
            key=_buffer(reader, "key"),
            value=_buffer(reader, "value"),
            output=_buffer(reader, "output"),
            heads=reader.integer("heads", high=limits.HEADS),
            kv_heads=reader.integer("kv_heads", high=limits.HEADS),
            head_dim=reader.integer("head_dim", high=limits.HEADS),
            frequencies=reader.string("frequencies"),
            rotary_factor=reader.number("rotary_factor", high=1e6),
            key_bias=reader.string("key_bias") if reader.has("key_bias") else None,
        )


@dataclass(frozen=True)
class HeadStep:
    """Logits of the last token, or of all; the input is normalised before."""

    op: ClassVar[str] = "head"
    input: int
    norm: NormUse
    normed: int
    weight: str

    @classmethod
    def read(cls, reader: ConfigReader) -> HeadStep:
        return cls(
            _buffer(reader, "input"),
            NormUse.read(_child(reader, "norm")),
            _buffer(reader, "normed"),
            reader.string("weight"),
        )


ProgramStep = EmbeddingStep | NormStep | LinearStep | AttentionStep | HeadStep
_KINDS: dict[str, type[ProgramStep]] = {
    kind.op: kind for kind in (EmbeddingStep, NormStep, LinearStep, AttentionStep, HeadStep)
}


@dataclass(frozen=True)
class Program:
    """buffers: the width of each, in floats per token."""

    buffers: tuple[int, ...]
    steps: tuple[ProgramStep, ...]

    def to_json(self) -> dict[str, Any]:
        steps = [{"op": step.op, **_to_json(step)} for step in self.steps]
        return {"buffers": list(self.buffers), "steps": steps}

    @classmethod
    def read(cls, reader: ConfigReader) -> Program:
        """Parse; what the steps refer to is checked by convert/formats/native/file.py.

        Raises:
            InputError: malformed, or a step that this version does not know.
        """
        buffers = _list(reader, "buffers", limits.BUFFERS)
        steps = _list(reader, "steps", limits.STEPS)
        for width in buffers:
            if isinstance(width, bool) or not isinstance(width, int) or not 0 < width < 2**31:
                raise reader.fail("buffers", f"{width!r} is not a width")
        return cls(tuple(buffers), tuple(_read_step(reader, entry) for entry in steps))


def _list(reader: ConfigReader, key: str, limit: int) -> list[Any]:
    found = reader.data.get(key)
    if not isinstance(found, list) or not found:
        raise reader.fail(key, "not a list of anything")
    if len(found) > limit:
        raise reader.fail(key, f"{len(found)}, limit {limit}")
    return found


def _read_step(reader: ConfigReader, entry: Any) -> ProgramStep:
    step = _object(reader, "steps", entry)
    kind = _KINDS.get(step.string("op"))
    if kind is None:
        raise step.fail("op", f"step {step.data['op']!r} is not known to this version of dsconv")
    return kind.read(step)


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_to_json(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    return value


def _object(reader: ConfigReader, key: str, entry: Any) -> ConfigReader:
    if not isinstance(entry, dict):
        raise reader.fail(key, f"{str(entry)[:40]!r} is not an object")
    return ConfigReader(entry, f"{reader.where}: {key}")


def _child(reader: ConfigReader, key: str) -> ConfigReader:
    child = reader.child(key)
    if child is None:
        raise reader.fail(key, "missing")
    return child


def _buffer(reader: ConfigReader, key: str) -> int:
    return reader.integer(key, low=0, high=limits.BUFFERS)
