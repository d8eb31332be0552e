"""The native interpreter of a family's description: the list of steps that the C++ engine runs.

First every operation is written down as a node of a graph; then the nodes become steps, fused
where that saves a pass over memory, with buffers given back after their last use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dsconv.convert.families.base import Attention, Decoder, Linear, Norm, Table
from dsconv.convert.families.rope import Rope

from .steps import (
    AttentionStep,
    EmbeddingStep,
    HeadStep,
    LinearStep,
    MatrixUse,
    NormStep,
    NormUse,
    Program,
    ProgramStep,
)


@dataclass(eq=False)
class Value:
    """A row of `width` floats per token, made by `maker`."""

    width: int
    maker: Node | None = None
    users: list[Node] = field(default_factory=list)


@dataclass(eq=False)
class Node:
    """An operation; `spec` is what the family said of it, `norm` what its input goes through."""

    spec: Table | Norm | tuple[Linear, ...] | Attention | str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    tied_to: Table | None = None
    norm: Norm | None = None


class _Graph:
    """Ops over nothing: writes down what is asked for."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _add(
        self,
        spec: Table | Norm | tuple[Linear, ...] | Attention | str,
        inputs: Sequence[Value],
        widths: Sequence[int],
        tied_to: Table | None = None,
    ) -> list[Value]:
        outputs = tuple(map(Value, widths))
        node = Node(spec, tuple(inputs), outputs, tied_to)
        for value in outputs:
            value.maker = node
        for value in inputs:
            value.users.append(node)
        self.nodes.append(node)
        return list(outputs)

    def embedding(self, table: Table) -> Value:
        return self._add(table, [], [table.hidden])[0]

    def rms_norm(self, x: Value, norm: Norm) -> Value:
        return self._add(norm, [x], [x.width])[0]

    def linears(self, x: Value, group: Sequence[Linear]) -> list[Value]:
        return self._add(tuple(group), [x], [linear.outputs for linear in group])

    def attention(self, query: Value, key: Value, value: Value, attention: Attention) -> Value:
        return self._add(attention, [query, key, value], [query.width])[0]

    def silu_multiply(self, gate: Value, up: Value) -> Value:
        return self._add("silu_multiply", [gate, up], [gate.width])[0]

    def add(self, x: Value, y: Value) -> Value:
        return self._add("add", [x, y], [x.width])[0]

    def head(self, x: Value, linear: Linear, tied_to: Table | None) -> Value:
        return self._add((linear,), [x], [linear.outputs], tied_to)[0]


def build_program(decoder: Decoder) -> tuple[Program, dict[str, Rope]]:
    """-> (program, name of each table of rotary frequencies that it refers to)."""
    graph = _Graph()
    logits = decoder.forward(graph)
    return _Lowering(_fold_norms(graph.nodes), logits).run()


def _fold_norms(nodes: list[Node]) -> list[Node]:
    """Norms of whole rows become a part of the linear maps that alone read them."""
    kept = []
    for node in nodes:
        norm, users = node.spec, node.outputs[0].users
        alone = len(users) == 1 and isinstance(users[0].spec, tuple)
        if not alone or not isinstance(norm, Norm) or norm.heads != 1:
            kept.append(node)
            continue
        x, user = node.inputs[0], users[0]
        user.norm, user.inputs = norm, (x,)
        x.users[x.users.index(node)] = user
    return kept


class _Lowering:
    """Turns nodes into steps, in their order.

    A RuntimeError means that a family asks for something that the engine has no step for.
    """

    def __init__(self, nodes: list[Node], logits: Value) -> None:
        self._nodes = nodes
        self._logits = logits
        self._order = {id(node): index for index, node in enumerate(nodes)}
        self._steps: list[ProgramStep] = []
        self._widths: list[int] = []
        self._free: list[int] = []
        self._buffers: dict[int, int] = {}  # id of a value -> buffer
        self._ropes: dict[Rope, str] = {}

    def run(self) -> tuple[Program, dict[str, Rope]]:
        for node in self._nodes:
            spec = node.spec
            if isinstance(spec, Table):
                output = self._new(node.outputs[0])
                self._steps.append(EmbeddingStep(f"{spec.name}.weight", output))
            elif isinstance(spec, Norm):
                self._norm(node, spec)
            elif isinstance(spec, Attention):
                self._attention(node, spec)
            elif isinstance(spec, tuple) and node.outputs[0] is self._logits:
                self._head(node, spec[0])
            elif isinstance(spec, tuple):
                self._linears(node, spec)
            elif id(node.outputs[0]) not in self._buffers:
                raise RuntimeError(f"{spec} of these operands cannot be fused")
            self._release(node)
        program = Program(tuple(self._widths), tuple(self._steps))
        return program, {name: rope for rope, name in self._ropes.items()}

    # --- buffers ----------------------------------------------------------------------------

    def _scratch(self, width: int) -> int:
        for buffer in self._free:
            if self._widths[buffer] == width:
                self._free.remove(buffer)
                return buffer
        self._widths.append(width)
        return len(self._widths) - 1

    def _new(self, value: Value) -> int:
        buffer = self._buffers[id(value)] = self._scratch(value.width)
        return buffer

    def _of(self, value: Value) -> int:
        return self._buffers[id(value)]

    def _release(self, node: Node) -> None:
        """Give back the buffers of values that nobody needs after `node`."""
        for value in dict.fromkeys(node.inputs):
            if self._is_last(node, value) and id(value) in self._buffers:
                buffer = self._buffers.pop(id(value))
                if buffer not in self._buffers.values():
                    self._free.append(buffer)

    def _is_last(self, node: Node, value: Value) -> bool:
        return max(value.users, key=lambda user: self._order[id(user)]) is node

    # --- steps ------------------------------------------------------------------------------

    def _norm(self, node: Node, norm: Norm) -> None:
        x = node.inputs[0]
        if not self._is_last(node, x):
            raise RuntimeError(f"{norm.name}: its input is needed afterwards")
        buffer = self._buffers[id(node.outputs[0])] = self._of(x)
        self._steps.append(NormStep(_norm_use(norm), buffer))

    def _linears(self, node: Node, group: tuple[Linear, ...]) -> None:
        x = node.inputs[0]
        norm = _norm_use(node.norm) if node.norm else None
        normed = self._scratch(x.width) if norm else None
        combine = "none"
        users = {id(user): user for value in node.outputs for user in value.users}
        (user, *others) = users.values()
        if user.spec == "silu_multiply" and not others and user.inputs == node.outputs:
            combine = "silu_multiply"
            outputs = [self._new(value) for value in node.outputs]
            self._buffers[id(user.outputs[0])] = outputs[0]
        elif user.spec == "add" and not others and len(group) == 1:
            combine = "add"
            (other,) = (value for value in user.inputs if value is not node.outputs[0])
            if not self._is_last(user, other):
                raise RuntimeError(f"{group[0].name}: the sum's operand is needed afterwards")
            outputs = [self._of(other)]
            self._buffers[id(user.outputs[0])] = outputs[0]
        else:
            outputs = [self._new(value) for value in node.outputs]
        matrices = tuple(
            MatrixUse(f"{linear.name}.weight", self._bias(linear, value), output)
            for linear, value, output in zip(group, node.outputs, outputs, strict=True)
        )
        self._steps.append(LinearStep(self._of(x), norm, normed, matrices, combine))
        if normed is not None:
            self._free.append(normed)

    def _bias(self, linear: Linear, value: Value) -> str | None:
        """The bias to add at once; that of a key is left to the attention."""
        return f"{linear.name}.bias" if linear.bias and not _is_key(value) else None

    def _attention(self, node: Node, attention: Attention) -> None:
        query, key, value = node.inputs
        bias = None
        if key.maker and isinstance(key.maker.spec, tuple):
            linear = key.maker.spec[key.maker.outputs.index(key)]
            bias = f"{linear.name}.bias" if linear.bias else None
        rope = attention.rope
        name = self._ropes.setdefault(rope, f"rotary.{len(self._ropes)}.frequencies")
        self._steps.append(
            AttentionStep(
                layer=attention.layer,
                query=self._of(query),
                key=self._of(key),
                value=self._of(value),
                output=self._new(node.outputs[0]),
                heads=attention.heads,
                kv_heads=attention.kv_heads,
                head_dim=attention.head_dim,
                frequencies=name,
                rotary_factor=rope.attention_factor,
                key_bias=bias,
            )
        )

    def _head(self, node: Node, linear: Linear) -> None:
        if node.norm is None:
            raise RuntimeError("the head's input is not normalised")
        x, weight = node.inputs[0], linear if node.tied_to is None else node.tied_to
        norm, normed = _norm_use(node.norm), self._scratch(x.width)
        self._steps.append(HeadStep(self._of(x), norm, normed, f"{weight.name}.weight"))


def _norm_use(norm: Norm) -> NormUse:
    return NormUse(f"{norm.name}.weight", norm.epsilon, norm.heads)


def _is_key(value: Value) -> bool:
    return any(isinstance(user.spec, Attention) and user.inputs[1] is value for user in value.users)
