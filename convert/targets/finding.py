"""One thing that a target does not take, with the cure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .graph_view import GraphView


@dataclass(frozen=True)
class Finding:
    """`node` and `operator` are empty where the graph as a whole is meant."""

    file: str
    rule: str
    node: str
    operator: str
    message: str
    fix: str

    @classmethod
    def of(cls, view: GraphView, node: Any, rule: str, message: str, fix: str) -> Finding:
        """About a node, named by its first output where it has no name."""
        domain = f"{node.domain}." if node.domain else ""
        name = node.name or next(iter(node.output), "")
        return cls(view.path.name, rule, name, f"{domain}{node.op_type}", message, fix)
