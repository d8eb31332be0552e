"""Check an ONNX graph, from any tool, against what a target takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.formats.onnx.names import GRAPH_FILE
from dsconv.errors import InputError, UnsupportedError

from .graph_view import STANDARD_DOMAINS, GraphView, input_of, open_graph_view
from .lint_rules import CHECKS, LintFinding
from .target import ANY_OPSET, GraphRules, Refusal, Target

FOUR_BITS = ("INT4", "UINT4")


@dataclass(frozen=True)
class LintResult:
    """What was looked at, and what was found, in the order of the graphs' nodes."""

    target: str
    files: tuple[str, ...]
    nodes: int
    findings: tuple[LintFinding, ...]


def lint(artifact: Path, target: Target) -> LintResult:
    """Check a `.onnx` file, or every one in a folder.

    Raises:
        InputError: there is no graph, or it cannot be read.
        UnsupportedError: the target takes no ONNX graph.
    """
    if target.rules is None:
        takes = " or ".join(target.artifacts) or "nothing that dsconv writes"
        raise UnsupportedError(
            f"target {target.name} takes no ONNX graph: there are no rules to check against",
            f"it takes {takes}; see dsconv targets",
        )
    views = [open_graph_view(path) for path in graph_files(artifact)]
    findings = [finding for view in views for finding in check_graph(view, target.rules)]
    names = tuple(view.path.name for view in views)
    return LintResult(target.name, names, sum(len(v.nodes) for v in views), tuple(findings))


def graph_files(artifact: Path) -> list[Path]:
    """Raises InputError where there is none."""
    if artifact.is_file():
        return [artifact]
    if not artifact.is_dir():
        raise InputError(f"{artifact}: no such file or folder", "use a .onnx file or its folder")
    found = sorted(artifact.glob("*.onnx"), key=lambda path: (path.name != GRAPH_FILE, path.name))
    if not found:
        raise InputError(f"{artifact}: holds no .onnx file", "use a .onnx file or its folder")
    return found


def check_graph(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    """Every departure of one graph from the rules."""
    for check in (_opset, _size, _inputs, _operators, _elements, _zero_points):
        yield from check(view, rules)
    for name in rules.checks:
        yield from CHECKS[name](view)


Check = Callable[[GraphView, GraphRules], Iterator[LintFinding]]


def _opset(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    low, high = rules.opsets
    if rules.opsets != ANY_OPSET and not low <= view.opset <= high:
        message = f"opset {view.opset}, the target takes {low} to {high}"
        yield LintFinding(view.path.name, "opset", "", "", message, f"convert it to opset {high}")


def _size(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    limit = rules.graph_bytes
    if limit is not None and view.size_bytes >= limit:
        yield LintFinding(
            view.path.name,
            "size",
            "",
            "",
            f"{view.size_bytes} bytes with its weights, limit {limit}",
            "use a smaller model, or the vendor's torch or vLLM with a checkpoint",
        )


def _inputs(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    if not rules.fixed_shapes:
        return
    for value in view.inputs:
        shape = view.shape(value)
        if any(isinstance(size, str) or size <= 0 for size in shape):
            yield LintFinding(
                view.path.name,
                "open-dimension",
                value.name,
                "input",
                f"shape {shape}: the target takes fixed sizes only",
                "export again with this --target, which pads the cache",
            )


def _operators(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    for node in view.nodes:
        domain = "" if node.domain in STANDARD_DOMAINS else node.domain
        if node.op_type == "Constant" or view.is_folded(node):
            continue
        refusal = _refusal(node.op_type, domain, rules)
        if refusal is not None:
            yield LintFinding.of(view, node, "operator", refusal.reason, refusal.fix)
        elif domain not in rules.domains:
            message = f"domain {domain!r} is not known to the target"
            yield LintFinding.of(view, node, "domain", message, rules.fix)
        elif rules.operators is not None and node.op_type not in rules.operators:
            message = "not among the operators of the target"
            yield LintFinding.of(view, node, "operator", message, rules.fix)


def _refusal(operator: str, domain: str, rules: GraphRules) -> Refusal | None:
    return next(
        (r for r in rules.refused if r.operator == operator and r.domain in (None, domain)), None
    )


def _elements(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    """One finding per node: the first of its values with a type that the target lacks."""
    if rules.elements is None:
        return
    for node in view.nodes:
        if view.is_folded(node):
            continue
        for name in (*node.input, *node.output):
            kind = view.element(name)
            if kind is not None and kind not in rules.elements:
                message = f"{name!r} is {kind.lower()}, which the target does not take"
                yield LintFinding.of(view, node, "type", message, rules.fix)
                break


def _zero_points(view: GraphView, rules: GraphRules) -> Iterator[LintFinding]:
    if rules.zero_points == "any":
        return
    for node in view.nodes:
        problem = _zero_point_problem(view, node, rules.zero_points)
        if problem is not None:
            yield LintFinding.of(view, node, "zero-point", *problem)


def _zero_point_problem(view: GraphView, node: Any, rule: str) -> tuple[str, str] | None:
    if node.op_type in ("DequantizeLinear", "QuantizeLinear"):
        codes = view.element(input_of(node, 0)) if node.op_type[0] == "D" else None
        name = input_of(node, 2)
        if rule == "explicit" and not name and codes in FOUR_BITS:
            return "int4 without a zero point is computed wrong", "add a zero point input of zeros"
        if rule == "symmetric" and name and not _is_zero(view, name):
            return "a zero point other than zero", "quantize with --symmetric"
    if rule == "symmetric" and node.op_type == "MatMulNBits" and input_of(node, 3):
        return "zero points are not taken", "quantize with --symmetric"
    return None


def _is_zero(view: GraphView, name: str) -> bool:
    values = view.constant_array(name)
    return values is not None and not values.any()
