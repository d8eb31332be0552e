"""Is a regular expression from a file safe to run? One that backtracks can take years for a line.

Time grows exponentially only where a group that repeats can match in several ways, so groups may
not repeat; otherwise it grows with a power of the text's length, the number of unbounded
repetitions in a row. References to earlier matches and recursion are refused too.
"""

from __future__ import annotations

import re

from . import limits

# `(?:`, `(?i:`, `(?=`, `(?!`, `(?<=`, `(?<!`, `(?>`, and flags for the rest of a group
_OPENERS = re.compile(r"\((?:\?(?:[ims-]*:|[=!>]|<[=!]|[ims-]+\)))?")
_REPEAT = re.compile(r"[*+][?+]?|\{(\d*)(?:,(\d*))?\}\??")
_BACKWARD = re.compile(r"\\(?:[1-9kgR]|K)")


def slow_pattern(pattern: str, limit: int) -> str | None:
    """Why the pattern is refused; None when it may be used. `limit`: of its characters."""
    if len(pattern) > limit:
        return f"{len(pattern)} characters, limit {limit}"
    loops, place, depth, after_group = 0, 0, 0, False
    while place < len(pattern):
        rest = pattern[place]
        repeat = _REPEAT.match(pattern, place)
        if repeat and not (rest == "{" and not (repeat[1] or repeat[2])):
            if after_group:
                return "a group that repeats"
            largest = max(int(number or 0) for number in (repeat[1], repeat[2]))
            if largest > limits.PATTERN_REPEATS:
                return f"{largest} repetitions, limit {limits.PATTERN_REPEATS}"
            bounded = rest == "{" and (repeat[2] or "," not in repeat[0])
            loops += not bounded or largest > 64
            if loops > limits.PATTERN_LOOPS:
                return f"{loops} repetitions in a row, limit {limits.PATTERN_LOOPS}"
            place, after_group = repeat.end(), True  # a repetition may not be repeated either
            continue
        if after_group and rest == "?":
            place += 1
            continue
        after_group = False
        if rest == "\\":
            if _BACKWARD.match(pattern, place):
                return f"{pattern[place : place + 2]!r}"
            place += 2
            if pattern[place - 1 : place + 1] in ("p{", "P{", "x{"):
                place = pattern.find("}", place) + 1 or len(pattern)
        elif rest == "[":
            place = _class_end(pattern, place)
        elif rest == "(":
            opener = _OPENERS.match(pattern, place)
            assert opener is not None
            if pattern.startswith("(?", place) and opener.end() == place + 1:
                return f"{pattern[place : place + 3]!r}"
            depth += not opener[0].endswith(")")
            place = opener.end()
        else:
            after_group = rest == ")"
            depth -= after_group
            loops = 0 if rest == "|" and depth <= 0 else loops
            place += 1
    return None


def _class_end(pattern: str, start: int) -> int:
    """Behind a character class, which may have others in it."""
    depth, place = 0, start
    while place < len(pattern):
        mark = pattern[place]
        if mark == "\\":
            place += 2
            continue
        depth += {"[": 1, "]": -1}.get(mark, 0)
        place += 1
        if mark == "[" and pattern[place : place + 1] == "^":
            place += 1
        if mark == "[" and pattern[place : place + 1] == "]":  # the first in a class is itself
            place += 1
        if depth == 0:
            return place
    return place
