"""What a model is, as `inspect` shows it and `--json` prints it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .model_facts import Architecture, Origin, TextFacts


@dataclass(frozen=True)
class TensorRow:
    """One parameter: how it is stored and in how many bytes (scales and zero points included).

    rounds_inputs: the activations that meet it are rounded, too.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    size_bytes: int
    rounds_inputs: bool = False


@dataclass(frozen=True)
class Problem:
    """Why dsconv can do nothing with it but show it, and the cure."""

    message: str
    hint: str


@dataclass(frozen=True)
class Description:
    """`parameters` is 0 where tensors hold several numbers in one and nothing says how many."""

    kind: str
    family: str
    parameters: int
    size_bytes: int
    tensors: tuple[TensorRow, ...]
    notes: tuple[str, ...] = ()
    architecture: Architecture | None = None
    text: TextFacts | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin | None = None
    problem: Problem | None = None

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.size_bytes / self.parameters if self.parameters else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "family": self.family,
            "parameters": self.parameters,
            "bits_per_weight": self.bits_per_weight,
            "size_bytes": self.size_bytes,
            "tensors": [
                {
                    "name": row.name,
                    "shape": list(row.shape),
                    "storage": row.storage,
                    "size_bytes": row.size_bytes,
                }
                for row in self.tensors
            ],
            "notes": list(self.notes),
            "architecture": self.architecture.to_json() if self.architecture else None,
            "tokenizer": self.text.to_json() if self.text else None,
            "sampling": dict(self.sampling),
            "provenance": self.origin.to_json() if self.origin else None,
            "problem": vars(self.problem) if self.problem else None,
        }
