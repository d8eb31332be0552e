"""How long work says how far it is: what a caller hands in, whatever it shows."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Advance = Callable[[int], None]  # told what has been done since it was told last
Progress = Callable[[str, int, str], AbstractContextManager[Advance]]  # title, total, unit


def no_progress(title: str, total: int, unit: str) -> AbstractContextManager[Advance]:
    return nullcontext(lambda count: None)
