"""What stands in the last \boxed{…} of a text."""

from __future__ import annotations

import re
from enum import Enum

BEGIN = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
# Between boxes that are one answer of several parts: \boxed{3} and \boxed{5}.
GAP = r"[\s$]*"
BETWEEN = re.compile(
    rf"{GAP}(?:\\[)\]])?{GAP}(?:[,;、]|,?\s*\b(?:and|or)\b|和|或){GAP}(?:\\[(\[])?{GAP}"
)


class Box(Enum):
    """CUT: the only ones are not closed, for the text ends there."""

    CUT = "cut"


def boxed_answer(text: str, is_cut: bool = False) -> str | Box | None:
    """The last one with something in it, with those before it that belong to one list.

    None without any, or where the last one was never closed.

    Args:
        is_cut: the text would have gone on; a box that is open at its end says nothing yet.
    """
    boxes = [(match.start(), *_inside(text, match.end())) for match in BEGIN.finditer(text)]
    closed = [(start, inside, end) for start, inside, end in boxes if inside is not None]
    if len(closed) < len(boxes):
        if not is_cut:
            return None
        if not closed:
            return Box.CUT
    full = [(start, inside, end) for start, inside, end in closed if inside and inside.strip()]
    if not full:
        return None
    start, answer, _ = full[-1]
    parts = [answer]
    for before_start, before, end in reversed(full[:-1]):
        if end > start or not BETWEEN.fullmatch(text[end:start]) or before in parts:
            break
        parts.insert(0, before)
        start = before_start
    return ",".join(parts)


def _inside(text: str, begin: int) -> tuple[str | None, int]:
    """-> (what stands there up to the brace that closes it, the place after that)."""
    depth, index = 1, begin
    while index < len(text):
        if text[index] == "\\":  # \{ is no brace
            index += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        index += 1
        if depth == 0:
            return text[begin : index - 1], index
    return None, len(text)
