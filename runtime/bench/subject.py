"""What is measured, and what its process answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dsconv.runtime.sessions.load import DEFAULT_CACHE

OURS = "dsconv"
BANDWIDTH = "bandwidth"


@dataclass(frozen=True)
class Subject:
    """What is measured: an artifact (runtime `dsconv`), or a peer's model.

    cache_bytes: of a batch's keys and values; 0 is its default. python: the interpreter of an
    environment with dsconv and the peer, where that is not this one.
    """

    path: str
    threads: int
    runtime: str = OURS
    provider: str = "cpu"
    kv: str = DEFAULT_CACHE
    allow_fallback: bool = False
    cache_bytes: int = 0
    python: str = ""


@dataclass(frozen=True)
class Opened:
    """What is known of a model once it is loaded; load_seconds holds its runtime's import.

    placement: which nodes run where, as in JSON; empty on the CPU.
    """

    runtime: str
    provider: str
    context_length: int
    load_seconds: float
    config: Mapping[str, Any]
    placement: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True)
class Timed:
    """An answer: the figure, the peak memory, and the processor seconds of the whole process."""

    value: float
    peak_rss_bytes: int
    cpu_seconds: float
