"""Attention by standard operators: rotary waves and mask of a call, and opset 24's Attention."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.families.base import Attention
from dsconv.convert.families.rope import Rope
from dsconv.convert.formats.onnx.graph import FLOAT, Value

from .dialect import Dialect, cast

# Added to the scores of keys that a query must not see; finite, since -inf makes 0 * inf = NaN
# on rows that are masked whole.
MASKED = np.float32(-3.0e38)
BOOL = 9  # the element type's number in ONNX


def attention24(
    dialect: Dialect, query: Value, key: Value, value: Value, attention: Attention
) -> list[Value]:
    """RotaryEmbedding and Attention of opset 23/24 -> output, present key, present value.

    The mask is explicit: the operator's own causal flag aligns to the upper left, which is wrong
    with a past.
    """
    graph = dialect.graph
    cosine, sine = rotary_waves(dialect, attention.rope)
    query, key = (
        graph.node("RotaryEmbedding", [x, cosine, sine], num_heads=heads)
        for x, heads in ((query, attention.heads), (key, attention.kv_heads))
    )
    return graph.nodes(
        "Attention",
        [query, key, value, score_mask(dialect), *dialect.past[attention.layer]],
        3,
        q_num_heads=attention.heads,
        kv_num_heads=attention.kv_heads,
        scale=dialect.attention_scale(attention),
    )


def rotary_waves(dialect: Dialect, rope: Rope) -> tuple[Value, Value]:
    """cosine, sine [batch, sequence, head_dim / 2] of this call's positions, made once."""

    def build() -> tuple[Value, Value]:
        graph = dialect.graph
        if dialect.options.rotary_tables:
            return _waves_from_tables(dialect, rope)
        positions = cast(graph, dialect.positions, FLOAT)
        column = graph.node("Unsqueeze", [positions, graph.integers(-1)])
        return dialect.cosine_and_sine(rope, column)

    return dialect.once("rotary_waves", build)


def _waves_from_tables(dialect: Dialect, rope: Rope) -> tuple[Value, Value]:
    graph, positions = dialect.graph, dialect.positions
    tables = dict(
        zip(("cosine", "sine"), rotary_tables(rope, dialect.options.context_length), strict=True)
    )
    cosine, sine = (
        dialect.weights.written(f"rotary_{name}", "F32", table.shape, iter([table]))
        for name, table in tables.items()
    )
    return (
        graph.node("Gather", [cosine, positions], axis=0),
        graph.node("Gather", [sine, positions], axis=0),
    )


def rotary_tables(rope: Rope, positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """-> cosine, sine [positions, head_dim / 2]; angles in float32, as the models' authors do."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * rope.frequencies()
    factor = np.float32(rope.attention_factor)
    return np.cos(angles) * factor, np.sin(angles) * factor


def score_mask(dialect: Dialect) -> Value:
    """float [batch, 1, sequence, total]: 0 where a query may look, MASKED elsewhere; made once.

    Query row r stands at cache column past + r; padding columns come from attention_mask. With
    fixed shapes the caller brings the mask.
    """
    if dialect.options.fixed:
        return dialect.mask

    def build() -> Value:
        graph = dialect.graph
        zero, one = graph.constant(np.array(0, np.int64)), graph.constant(np.array(1, np.int64))
        sequence = graph.node("Gather", [graph.node("Shape", [dialect.ids]), one], axis=0)
        total = graph.node("Gather", [graph.node("Shape", [dialect.mask]), one], axis=0)
        past = graph.node("Sub", [total, sequence])
        rows = graph.node("Range", [past, total, one])
        columns = graph.node("Range", [zero, total, one])
        visible = graph.node(
            "GreaterOrEqual",  # not LessOrEqual, which Moore Threads' provider lacks
            [
                graph.node("Unsqueeze", [rows, graph.integers(1)]),
                graph.node("Unsqueeze", [columns, graph.integers(0)]),
            ],
        )
        kept = graph.node("Cast", [dialect.mask], to=BOOL)
        both = graph.node(
            "And",
            [
                graph.node("Unsqueeze", [visible, graph.integers(0, 1)]),
                graph.node("Unsqueeze", [kept, graph.integers(1, 2)]),
            ],
        )
        nothing = graph.constant(np.float32(0))
        return graph.node("Where", [both, nothing, graph.constant(MASKED)])

    return dialect.once("score_mask", build)
