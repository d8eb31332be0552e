"""What `bench` found: figures with their spread, as JSON."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Figures:
    """One figure measured several times, in the order of the rounds."""

    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Figures:
        return cls(tuple(float(value) for value in values))

    @property
    def median(self) -> float:
        return self._quantile(0.5)

    @property
    def quartiles(self) -> tuple[float, float]:
        return self._quantile(0.25), self._quantile(0.75)

    def _quantile(self, share: float) -> float:
        return float(np.quantile(self.values, share)) if self.values else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "median": self.median,
            "quartiles": list(self.quartiles),
            "rounds": list(self.values),
        }

    @property
    def shares(self) -> list[float]:
        """Where each value lies between the smallest (0) and the largest (1)."""
        low, high = min(self.values, default=0.0), max(self.values, default=0.0)
        return [(value - low) / (high - low or 1.0) for value in self.values]


@dataclass(frozen=True)
class Decode:
    """Decoding at one context; `fraction` of the read bandwidth measured in the same rounds."""

    context: int
    rate: Figures
    fraction: Figures
    peak_rss_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "context": self.context,
            "tokens_per_second": self.rate.to_json(),
            "bandwidth_fraction": self.fraction.to_json(),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


@dataclass(frozen=True)
class LeftOut:
    """A batch that was asked for and that this artifact cannot do."""

    batch: int
    context: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        return {"batch": self.batch, "context": self.context, "reason": self.reason}


@dataclass(frozen=True)
class BatchDecode:
    """Decoding of many sequences at once, each after `context` tokens; the rate is of all of them
    together."""

    batch: int
    context: int
    rate: Figures
    peak_rss_bytes: int

    def to_json(self) -> dict[str, Any]:
        return {
            "batch": self.batch,
            "context": self.context,
            "tokens_per_second": self.rate.median,
            "spread": self.rate.to_json(),
            "peak_rss_bytes": self.peak_rss_bytes,
        }


@dataclass(frozen=True)
class Artifact:
    """One column of the comparison. Rates are tokens per second, times seconds.

    batches: what was asked for and this runtime can do; the rest is left out. placement: which
    nodes run where, as in JSON (see placement.py); empty on the CPU.
    """

    path: str
    runtime: str
    provider: str
    threads: int
    load_seconds: Figures
    first_token_seconds: Figures
    prefill_tokens: int
    cold_prefill: Figures
    prefill: Figures
    decodes: tuple[Decode, ...]
    peak_rss_bytes: int
    weight_bytes_per_token: int
    placement: Sequence[Mapping[str, Any]] = ()
    batches: tuple[BatchDecode, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    def to_json(self) -> dict[str, Any]:
        first = self.decodes[0] if self.decodes else None
        return {
            "path": self.path,
            "runtime": self.runtime,
            "provider": self.provider,
            "threads": self.threads,
            "prefill_tokens_per_second": self.prefill.median,
            "decode_tokens_per_second": first.rate.median if first else None,
            "decode_context": first.context if first else None,
            "load_seconds": self.load_seconds.median,
            "first_token_seconds": self.first_token_seconds.median,
            "peak_rss_bytes": self.peak_rss_bytes,
            "weight_bytes_per_token": self.weight_bytes_per_token,
            "bandwidth_fraction": first.fraction.median if first else None,
            "prefill_tokens": self.prefill_tokens,
            "placement": list(self.placement) or None,
            "spread": {
                "load_seconds": self.load_seconds.to_json(),
                "first_token_seconds": self.first_token_seconds.to_json(),
                "cold_prefill_tokens_per_second": self.cold_prefill.to_json(),
                "prefill_tokens_per_second": self.prefill.to_json(),
            },
            "decode": [decode.to_json() for decode in self.decodes],
            "batches": [batch.to_json() for batch in self.batches],
            "batches_left_out": [each.to_json() for each in self.left_out],
        }


@dataclass(frozen=True)
class BenchReport:
    """All artifacts and the machine they shared; foreign: what others took of it, per round."""

    artifacts: tuple[Artifact, ...]
    bandwidth: Figures
    foreign: Figures
    discarded_rounds: int
    max_foreign: float

    @property
    def is_disturbed(self) -> bool:
        """Whether rounds count that others disturbed, because there were not enough quiet ones."""
        return max(self.foreign.values, default=0.0) > self.max_foreign

    def to_json(self) -> dict[str, Any]:
        return {
            "read_bandwidth_bytes_per_second": self.bandwidth.median,
            "artifacts": [artifact.to_json() for artifact in self.artifacts],
            "read_bandwidth": self.bandwidth.to_json(),
            "foreign_load": self.foreign.to_json(),
            "max_foreign_load": self.max_foreign,
            "discarded_rounds": self.discarded_rounds,
            "disturbed": self.is_disturbed,
            "machine": platform.machine(),
        }
