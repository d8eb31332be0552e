"""The batch of a loaded model."""

from __future__ import annotations

from dataclasses import dataclass

from dsconv.runtime.sessions.load import Loaded

from .batch import Batch
from .one_by_one import OneByOne


@dataclass(frozen=True)
class BatchOptions:
    """What a batch may take.

    sequences: at once, at most; 0 leaves the choice to the runtime. cache_bytes: memory for keys
    and values; 0 is a share of what is free.
    """

    sequences: int = 0
    cache_bytes: int = 0


def open_batch(loaded: Loaded, options: BatchOptions | None = None) -> Batch:
    """Many sequences where the runtime can, else one after the other.

    Its sequences and those of `loaded.session` may share the cache: use one of the two at a time.
    """
    return OneByOne(loaded.session)
