"""Counters in Prometheus' text form.

By hand: it is one function for a format that has not changed for years, and prometheus-client
would keep its registry in a global of the process.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from .choice import End

BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)  # seconds


@dataclass
class Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS) + 1))
    total: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def observe(self, seconds: float) -> None:
        with self._lock:
            self.counts[bisect_left(BOUNDS, seconds)] += 1
            self.total += seconds

    def lines(self, name: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self.counts, strict=True):
            below += count
            yield f'{name}_bucket{{le="{bound}"}} {below}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {below}"


@dataclass
class Metrics:
    """Filled by the engine's thread and by the event loop, each its own."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)  # (path, status)
    tokens: Counter[str] = field(default_factory=Counter)  # prompt, cached, generated
    ends: Counter[str] = field(default_factory=Counter)
    first_token: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)

    def ended(self, end: End) -> None:
        self.tokens["prompt"] += end.prompt_tokens
        self.tokens["cached"] += end.reused
        self.tokens["generated"] += end.generated
        self.ends[end.reason] += 1

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """gauges: name -> (what it is, value now)."""
        return "\n".join([*self._counters(), *self._gauges(gauges), *self._histograms()]) + "\n"

    def _counters(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "answers by path and status")
        for (path, status), count in sorted(self.requests.items()):
            yield f'dsconv_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("tokens_total", "counter", "tokens of prompts, of them cached; generated")
        for kind in ("prompt", "cached", "generated"):
            yield f'dsconv_tokens_total{{kind="{kind}"}} {self.tokens[kind]}'
        yield from _head("texts_total", "counter", "texts that ended, by reason")
        for reason, count in sorted(self.ends.items()):
            yield f'dsconv_texts_total{{reason="{reason}"}} {count}'

    def _gauges(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        for name, (words, value) in gauges.items():
            yield from _head(name, "gauge", words)
            yield f"dsconv_{name} {value:.15g}"

    def _histograms(self) -> Iterator[str]:
        yield from _head("first_token_seconds", "histogram", "from request to first token")
        yield from self.first_token.lines("dsconv_first_token_seconds")
        yield from _head("request_seconds", "histogram", "from request to end of its answer")
        yield from self.duration.lines("dsconv_request_seconds")


def _head(name: str, kind: str, words: str) -> tuple[str, str]:
    return f"# HELP dsconv_{name} {words}", f"# TYPE dsconv_{name} {kind}"
