"""What `bench` found: figures with their spread, as JSON and as a table for people."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsconv.runtime.console import quantity, size_text

BARS = "▁▂▃▄▅▆▇█"


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
    def sparkline(self) -> str:
        """A bar per round: how it stands between the smallest (at the bottom) and the largest."""
        low, high = min(self.values, default=0.0), max(self.values, default=0.0)
        step = (high - low) / (len(BARS) - 1) or 1.0
        return "".join(BARS[round((value - low) / step)] for value in self.values)


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
class Artifact:
    """One column of the comparison. Rates are tokens per second, times seconds.

    placement: which nodes run where, as in JSON (see placement.py); empty on the CPU.
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
        }


@dataclass(frozen=True)
class Report:
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

    def show(self) -> None:
        from rich.console import Console
        from rich.table import Table

        table = Table(title="median, quartiles, and the rounds", title_justify="left")
        table.add_column("")
        for artifact in self.artifacts:
            name = f"{artifact.path}\n{artifact.runtime}, {artifact.threads} threads"
            table.add_column(name, justify="right", overflow="fold")
        for title, cells in self._rows():
            table.add_row(title, *cells)
        Console().print(table)
        low, high = (quantity(value) for value in self.bandwidth.quartiles)
        print(
            f"read bandwidth {quantity(self.bandwidth.median)}B/s, quartiles {low}B/s to {high}B/s"
        )
        if self.foreign.values:
            print(
                f"others used {self.foreign.median:.0%} of the machine (at most "
                f"{max(self.foreign.values):.0%}); {self.discarded_rounds} rounds thrown away"
            )
        if self.is_disturbed:
            print(
                f"warning: too few rounds with less than {self.max_foreign:.0%}; compare the "
                "columns with each other, not with other runs"
            )

    def _rows(self) -> Iterable[tuple[str, list[str]]]:
        every = self.artifacts
        tokens = every[0].prefill_tokens
        yield "load, s", [_cell(a.load_seconds, "{:.3g}") for a in every]
        yield f"first of {tokens}, s", [_cell(a.first_token_seconds, "{:.3g}") for a in every]
        yield f"prefill {tokens}, first, tokens/s", [_cell(a.cold_prefill) for a in every]
        yield f"prefill {tokens}, tokens/s", [_cell(a.prefill) for a in every]
        for context in sorted({d.context for a in every for d in a.decodes}):
            found = [next((d for d in a.decodes if d.context == context), None) for a in every]
            yield (
                f"decode at {context}, tokens/s",
                [_cell(d.rate) if d else "-" for d in found],
            )
            yield (
                "  of the bandwidth",
                [f"{d.fraction.median:.0%}" if d else "-" for d in found],
            )
        yield "weights per token", [size_text(a.weight_bytes_per_token) for a in every]
        yield "peak memory", [size_text(a.peak_rss_bytes) for a in every]
        if any(a.placement for a in every):
            yield "nodes (of the time)", ["\n".join(map(_share, a.placement)) for a in every]


def _share(share: Mapping[str, Any]) -> str:
    time = "" if share["time_share"] is None else f" ({share['time_share']:.0%})"
    return f"{share['provider'].removesuffix('ExecutionProvider')} {share['node_share']:.0%}{time}"


def _cell(figures: Figures, form: str = "{:.1f}") -> str:
    return f"{form.format(figures.median)}\n{_spread(figures, form)}"


def _spread(figures: Figures, form: str = "{:.3g}") -> str:
    low, high = (form.format(value) for value in figures.quartiles)
    return f"{low}–{high} {figures.sparkline}"
