"""Rules that a list of operators and types cannot say, by the name that the table uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .graph_view import GraphView, attribute, input_of

WHOLE_ROWS = "quantize with --group-size -1 --symmetric"


@dataclass(frozen=True)
class LintFinding:
    """What a target does not take, with the cure. `node` and `operator` are empty where all of the
    graph is meant.
    """

    file: str
    rule: str
    node: str
    operator: str
    message: str
    fix: str

    @classmethod
    def of(cls, view: GraphView, node: Any, rule: str, message: str, fix: str) -> LintFinding:
        """About a node, named by its first output where it has no name."""
        domain = f"{node.domain}." if node.domain else ""
        name = node.name or next(iter(node.output), "")
        return cls(view.path.name, rule, name, f"{domain}{node.op_type}", message, fix)


def blocked_gather(view: GraphView) -> Iterator[LintFinding]:
    """OpenVINO 2025.4 gives wrong rows for DequantizeLinear in blocks, then Gather."""
    for node in view.nodes:
        source = view.producers.get(input_of(node, 0))
        if node.op_type == "Gather" and source is not None and _is_blocked(source):
            yield LintFinding.of(
                view,
                node,
                "blocked-gather",
                "rows of a blocked DequantizeLinear come out wrong",
                "keep the table in float16, or in int8 with one scale per row",
            )


def whole_row_blocks(view: GraphView) -> Iterator[LintFinding]:
    """Intel's NPU is slow on groups: one scale per row."""
    for node in view.nodes:
        blocked = _is_blocked(node) or (
            node.op_type == "MatMulNBits" and attribute(node, "block_size") < attribute(node, "K")
        )
        if blocked:
            yield LintFinding.of(
                view, node, "group-size", "groups of weights; the target wants rows", WHOLE_ROWS
            )


def nbits_blocks(view: GraphView) -> Iterator[LintFinding]:
    """The Hexagon NPU takes MatMulNBits with blocks of 32 or 64, on [batch, tokens, inputs]."""
    for node in view.nodes:
        if node.op_type != "MatMulNBits":
            continue
        size = attribute(node, "block_size")
        if size not in (32, 64):
            message = f"blocks of {size}; the target takes 32 and 64"
            yield LintFinding.of(view, node, "group-size", message, "quantize with --group-size 32")
        if view.rank(input_of(node, 0)) == 2:
            message = "a product of [tokens, inputs] stays on the CPU"
            yield LintFinding.of(view, node, "rank", message, "reshape it to [1, tokens, inputs]")


def norm_axes(view: GraphView) -> Iterator[LintFinding]:
    """QNN 2.7 gives wrong values for a norm in one node over more than three axes."""
    for node in view.nodes:
        rank = view.rank(input_of(node, 0))
        if node.op_type == "SimplifiedLayerNormalization" and rank is not None and rank > 3:
            message = f"a norm over {rank} axes comes out wrong"
            yield LintFinding.of(view, node, "rank", message, "reshape it to [1, rows, inputs]")


def weight_only_dequantize(view: GraphView) -> Iterator[LintFinding]:
    """DequantizeLinear runs on the Hexagon NPU only between quantized activations."""
    for node in view.nodes:
        if node.op_type != "DequantizeLinear" or input_of(node, 0) not in view.constants:
            continue
        users = view.users.get(next(iter(node.output), ""), ())
        if not all(_has_quantized_partner(view, user, node) for user in users):
            yield LintFinding.of(
                view,
                node,
                "weight-only-dequantize",
                "quantized weights beside float activations stay on the CPU",
                "use MatMulNBits with blocks of 32, or quantize the activations too",
            )


def half_attention(view: GraphView) -> Iterator[LintFinding]:
    """CUDA has these in half precision only."""
    for node in view.nodes:
        kind = view.element(input_of(node, 3)) if node.op_type == "GroupQueryAttention" else None
        kind = view.element(input_of(node, 0)) if node.op_type == "QMoE" else kind
        if kind == "FLOAT":
            message = "no kernel in float32, only in float16 and bfloat16"
            yield LintFinding.of(view, node, "type", message, "export again with this --target")


def bfloat16_product(view: GraphView) -> Iterator[LintFinding]:
    """The CPU provider multiplies no bfloat16 matrices."""
    for node in view.nodes:
        kinds = {view.element(name) for name in node.input}
        if node.op_type in ("MatMul", "Gemm") and "BFLOAT16" in kinds:
            yield LintFinding.of(
                view, node, "type", "no kernel in bfloat16", "cast the inputs to float32"
            )


def constant_shapes(view: GraphView) -> Iterator[LintFinding]:
    """MIGraphX takes Expand and ConstantOfShape with constant shapes only."""
    for node in view.nodes:
        index = {"Expand": 1, "ConstantOfShape": 0}.get(node.op_type)
        if index is not None and input_of(node, index) not in view.constants:
            message = "its shape is computed; the target takes a constant one"
            yield LintFinding.of(view, node, "computed-shape", message, "fix the graph's shapes")


def _is_blocked(node: Any) -> bool:
    return node.op_type == "DequantizeLinear" and attribute(node, "block_size") > 0


def _has_quantized_partner(view: GraphView, user: Any, node: Any) -> bool:
    """Does `user` combine the node's result with another dequantized value?"""
    others = [name for name in user.input if name and name not in node.output]
    sources = [view.producers.get(name) for name in others]
    return any(s is not None and s.op_type == "DequantizeLinear" for s in sources)


CHECKS: Mapping[str, Callable[[GraphView], Iterator[LintFinding]]] = {
    "bfloat16-product": bfloat16_product,
    "blocked-gather": blocked_gather,
    "constant-shapes": constant_shapes,
    "half-attention": half_attention,
    "nbits-blocks": nbits_blocks,
    "norm-axes": norm_axes,
    "weight-only-dequantize": weight_only_dequantize,
    "whole-row-blocks": whole_row_blocks,
}
