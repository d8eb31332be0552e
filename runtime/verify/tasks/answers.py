"""The answer that a text ends up with, and whether it is the right one."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from importlib.util import find_spec

NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
MATHS = "math_verify"  # a package
SECONDS = 5  # for one comparison


def final_answer(text: str) -> str | None:
    """What a text ends up with: the last \\boxed{…}, or else the last number; None without."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return normalized(boxed)
    numbers = NUMBER.findall(text)
    return normalized(numbers[-1]) if numbers else None


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return None


def normalized(answer: str) -> str:
    """One way to write a number; other answers without spaces, dollars and text marks."""
    plain = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", answer)
    plain = re.sub(r"\\[,!;$%]|[\s$]|\\(?:left|right)", "", plain).rstrip(".%")
    try:
        number = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return plain.replace("dfrac", "frac")
    return f"{number.normalize():f}" if number.is_finite() else plain


def equivalent(given: str | None, right: str) -> bool:
    """The same answer, written alike or, with package math-verify, of the same value."""
    if given is None:
        return False
    if given == right:
        return True
    return can_compare_values() and _same_value(given, right)


def can_compare_values() -> bool:
    """Is math-verify installed?"""
    return find_spec(MATHS) is not None


def _same_value(given: str, right: str) -> bool:
    """Fractions, roots, intervals, sets: by math-verify, which calls SymPy."""
    from math_verify import parse, verify

    try:
        mine, theirs = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=SECONDS) for text in (given, right)
        )
        return bool(verify(theirs, mine, timeout_seconds=SECONDS))
    except Exception:  # of a parser fed with what a model wrote; no class is promised
        return False
