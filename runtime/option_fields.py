"""Fields of what a user may ask for, declared once: options of commands, keys of recipes.

A field of a frozen dataclass has its name, its type and its default; `option` adds the words of
help, the flags where they are not the name's, and what a recipe allows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dsconv.errors import choose

LARGEST = 2.0**53  # beyond it floats leave out integers


@dataclass(frozen=True)
class Limits:
    """Either a list of choices, or a range whose ends are allowed; None is no end."""

    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    cure: Callable[[str], str] | None = None  # the hint for a word that is none of the choices

    def allow(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        low = -float("inf") if self.low is None else self.low
        high = LARGEST if self.high is None else self.high
        return bool(low <= value <= high)  # NaN is in no range

    def hint(self, value: Any) -> str:
        """For a value that is not allowed."""
        if not self.choices:
            return f"use {self}"
        word = str(value)
        return self.cure(word) if self.cure else choose(word, map(str, self.choices))

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(map(str, self.choices))
        if self.high is None:
            return f"{self.low:g} or more"
        return f"{self.low:g} to {self.high:g}"


def limited(
    default: Any,
    *,
    choices: tuple[Any, ...] = (),
    low: float | None = None,
    high: float | None = None,
    cure: Callable[[str], str] | None = None,
) -> Any:
    """A key of a recipe with a default and limits."""
    return field(default=default, metadata={"limits": Limits(choices, low, high, cure)})


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    limits: Limits | None = None,
    after: str | None = None,
) -> Any:
    """An option of a command.

    Args:
        limits: of the key in a recipe; the command line has whoever takes the value check it.
        after: the field after which help lists it; None for the order of the fields.
    """
    found = {"help": help, "flag": flag, "limits": limits, "after": after}
    return field(default=default, metadata=found)


def thread_count(count: int) -> int:
    """What `threads` means: 0 is one per core that this process may use."""
    return count or len(os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else [0, 1])
