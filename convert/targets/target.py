"""The shape of a row in the table of targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# How we know: it ran here; its source or manual says so; nobody in reach showed it.
Evidence = Literal["measured", "read", "guessed"]
ZeroPoints = Literal["any", "explicit", "symmetric"]
ANY_OPSET = (1, 999)


@dataclass(frozen=True)
class Note:
    """A fact, how we know it, and where it stands."""

    text: str
    evidence: Evidence
    source: str


@dataclass(frozen=True)
class Refusal:
    """An operator that the target does not run, with the cure; `domain` None is every domain."""

    operator: str
    reason: str
    fix: str
    domain: str | None = None


@dataclass(frozen=True)
class GraphRules:
    """What a target takes of an ONNX graph.

    Attributes:
        opsets: lowest and highest version of the standard operators.
        domains: operator domains, "" for the standard one.
        operators: all that it has, where such a list exists; None where it does not.
        refused: what a list cannot say, or what the cure is.
        elements: types of tensors by ONNX name; None for any.
        zero_points: of 4-bit codes: any; explicit, a node without the input is wrong; symmetric,
            other than zero is not taken.
        fixed_shapes: no open dimension.
        graph_bytes: graph and weights together.
        checks: names of further rules, see lint.py.
        fix: what to do about an operator without a cure of its own.
    """

    opsets: tuple[int, int] = ANY_OPSET
    domains: frozenset[str] = frozenset({"", "com.microsoft"})
    operators: frozenset[str] | None = None
    refused: tuple[Refusal, ...] = ()
    elements: frozenset[str] | None = None
    zero_points: ZeroPoints = "any"
    fixed_shapes: bool = False
    graph_bytes: int | None = None
    checks: tuple[str, ...] = ()
    fix: str = "export the checkpoint again with this --target"


@dataclass(frozen=True)
class GraphRecipe:
    """How export writes a graph for the target, and which checkpoints it can write.

    The first fields are those of `ExportOptions`. `group_sizes` of quantized matrices, None for
    any; -1 is the whole row. `symmetric`: stored zero points cannot be taken.
    """

    dialect: str
    precision: str = "float32"
    prefill_length: int | None = None
    rotary_tables: bool = False
    packed_embedding: bool = True
    bfloat16: bool = True
    explicit_zero_points: bool = False
    fused_products: bool = True
    group_sizes: tuple[int, ...] | None = None
    symmetric: bool = False


@dataclass(frozen=True)
class Target:
    """One row.

    Attributes:
        hardware: in words.
        artifacts: formats of `export` that its software reads, best first; empty for none.
        evidence: how sure the row as a whole is.
        provider: `--provider` that runs the artifact, with the options that the graph relies on;
            None where no runtime of ours reaches it.
        wheel: what brings the provider; versions: those that the row is about.
        recipe, rules: of the ONNX artifact; None where there is none.
        words: what people call it too, in small letters: vendors, chips, interfaces.
    """

    name: str
    hardware: str
    artifacts: tuple[str, ...]
    evidence: Evidence
    provider: str | None = None
    options: Mapping[str, str] = field(default_factory=dict)
    wheel: str = ""
    versions: str = ""
    recipe: GraphRecipe | None = None
    rules: GraphRules | None = None
    notes: tuple[Note, ...] = ()
    words: tuple[str, ...] = ()
