"""Which nodes of a graph ran where: from ONNX Runtime's partition, times from its profile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Operators on the shapes and lengths of tensors; ONNX Runtime prefers the CPU for them.
SHAPE_ARITHMETIC = frozenset(
    (
        *("Add", "Cast", "Concat", "Constant", "ConstantOfShape", "Div", "Equal", "Expand"),
        *("Gather", "Identity", "Mul", "Range", "ReduceMax", "ReduceSum", "Reshape", "Shape"),
        *("Size", "Slice", "Squeeze", "Sub", "Unsqueeze", "Where"),
    )
)
KERNEL_TIME = "_kernel_time"  # how the profile's events of nodes end


@dataclass(frozen=True)
class Share:
    """What one provider ran. seconds: of the profiled steps; None where nothing was timed."""

    provider: str
    operators: Mapping[str, int]  # operator -> nodes
    seconds: float | None = None

    @property
    def nodes(self) -> int:
        return sum(self.operators.values())


@dataclass(frozen=True)
class Placement:
    """Every provider that runs a part of the graph."""

    shares: tuple[Share, ...]

    def node_share(self, provider: str) -> float:
        """Share of the nodes, 0 to 1."""
        total = sum(share.nodes for share in self.shares)
        return sum(s.nodes for s in self.shares if s.provider == provider) / total if total else 0.0

    def time_share(self, provider: str) -> float | None:
        """Share of the time of all nodes; None where nothing was timed."""
        total = sum(share.seconds or 0.0 for share in self.shares)
        if not total:
            return None
        return sum(s.seconds or 0.0 for s in self.shares if s.provider == provider) / total

    def elsewhere(self, provider: str) -> dict[str, int]:
        """Operators that another provider runs -> nodes."""
        counts: Counter[str] = Counter()
        for share in self.shares:
            if share.provider != provider:
                counts.update(share.operators)
        return dict(counts)

    def to_json(self) -> list[dict[str, Any]]:
        return [
            {
                "provider": share.provider,
                "nodes": share.nodes,
                "node_share": self.node_share(share.provider),
                "time_share": self.time_share(share.provider),
                "operators": dict(share.operators),
            }
            for share in self.shares
        ]

    def words(self) -> str:
        """One line: the share of nodes and of time of every provider."""
        parts = []
        for share in self.shares:
            time = self.time_share(share.provider)
            timed = "" if time is None else f", {time:.0%} of the time"
            nodes = f"{self.node_share(share.provider):.0%} of the nodes ({share.nodes})"
            parts.append(f"{share.provider}: {nodes}{timed}")
        return "; ".join(parts)


def from_partition(subgraphs: Iterable[Any]) -> Placement | None:
    """From `get_provider_graph_assignment_info()`; None where the provider tells nothing."""
    counts: dict[str, Counter[str]] = {}
    for subgraph in subgraphs:
        operators = (node.op_type for node in subgraph.get_nodes())
        counts.setdefault(subgraph.ep_name, Counter()).update(operators)
    shares = [Share(provider, dict(operators)) for provider, operators in counts.items()]
    return Placement(tuple(sorted(shares, key=lambda share: -share.nodes))) if shares else None


def from_profile(events: Sequence[Mapping[str, Any]]) -> Placement:
    """From the events of a profile, whose times are microseconds.

    A compiled part of the graph is one node here.
    """
    operators: dict[str, dict[str, str]] = {}  # provider -> node -> operator
    seconds: dict[str, float] = {}
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") != "Node" or not name.endswith(KERNEL_TIME):
            continue
        arguments = event.get("args", {})
        provider = str(arguments.get("provider") or "unknown")
        operators.setdefault(provider, {})[name] = str(arguments.get("op_name", ""))
        seconds[provider] = seconds.get(provider, 0.0) + float(event.get("dur", 0)) / 1e6
    shares = (
        Share(provider, dict(Counter(nodes.values())), seconds[provider])
        for provider, nodes in operators.items()
    )
    return Placement(tuple(sorted(shares, key=lambda share: -share.nodes)))


def with_times(partition: Placement, profile: Placement) -> Placement:
    """The partition's nodes with the profile's times."""
    seconds = {share.provider: share.seconds for share in profile.shares}
    return Placement(
        tuple(
            Share(share.provider, share.operators, seconds.get(share.provider, 0.0))
            for share in partition.shares
        )
    )
