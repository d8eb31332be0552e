"""The answer that a text ends up with, and whether it is the right one."""

from __future__ import annotations

import re
import threading
from decimal import Decimal, InvalidOperation
from importlib.util import find_spec

# A comma belongs to a number only before three digits: 1,234 is one, 1,2 are two.
NUMBER = re.compile(r"-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
# In a text 3/4 is one answer; 3/4/2026 is none.
FRACTION = re.compile(rf"(?<![\d/])-?\d+/\d+(?![\d/]|\.\d)|{NUMBER.pattern}")
MIXED = re.compile(r"(-?)(\d+)\s+(\d+)/(\d+)")  # 3 1/2
MINUS = str.maketrans("−－", "--")  # as typesetters have it
# What follows a number and is no unit of it.
NO_UNIT = r"(?!\s*(?:pi|sin|cos|tan|log|ln|sqrt|exp|hundred|thousand|\w+illion|dozen|am|pm)\b)"
# 18 dollars, 5\text{ cm}^2; 3ab is a product, 4 p.m. a time.
UNIT = re.compile(
    rf"\s*\\?\$?\s*({NUMBER.pattern})(?:\\?\s)*"
    rf"(?:\\(?:text|mathrm|mbox)\{{{NO_UNIT}[a-zA-Z ]*\}}|(?<=\s){NO_UNIT}[a-zA-Z ]{{2,}})"
    r"(?:\^\{?\d\}?)?\s*\.?\s*"
)
WORD = re.compile(r"[^\W\d_]{2,}")
SENTENCE = 2  # so many words beside a number are a sentence about it
MATHS = "math_verify"  # a package
SECONDS = 5  # for one comparison


def final_answer(text: str) -> str | None:
    """What a text ends up with: the last \\boxed{…}, or else the last number; None without."""
    text = text.translate(MINUS)
    boxed = _last_boxed(text)
    if boxed is not None:
        return normalized(boxed)
    numbers = FRACTION.findall(text)
    return normalized(numbers[-1]) if numbers else None


def right_answer(text: str, is_value: bool) -> str:
    """What a file gives as the answer; empty without.

    Args:
        is_value: a field of answers, whose text is the answer itself (`3x+2`, `[1,2]`), unless it
            is a sentence about a number; otherwise a field of worked solutions, which end up with
            it.
    """
    if is_value and _last_boxed(text) is None:
        is_short = len(WORD.findall(text)) < SENTENCE
        if is_short or "\\" in text or UNIT.fullmatch(text) is not None:
            return normalized(text)
    return final_answer(text) or normalized(text)


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
    """One way to write a number, without its unit; other answers without spaces, dollars and text
    marks."""
    answer = answer.translate(MINUS)
    mixed = MIXED.fullmatch(answer.strip().strip("$"))
    if mixed is not None:
        sign, whole, over, under = mixed.groups()
        return f"{sign}{int(whole) * int(under) + int(over)}/{under}"
    with_unit = UNIT.fullmatch(answer)
    if with_unit is not None:
        return normalized(with_unit[1])
    plain = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", answer)
    plain = re.sub(r"\\[,!;$%]|[\s$]|\\(?:left|right)(?![a-zA-Z])", "", plain).rstrip(".%")
    plain = re.sub(r"\^(?:\\circ|\{\\circ\})|°", "", plain).replace("{,}", ",")
    try:
        number = Decimal(plain.replace(",", "") if NUMBER.fullmatch(plain) else plain)
    except InvalidOperation:
        return plain.replace("dfrac", "frac")
    return f"{number.normalize():f}" if number.is_finite() else plain


def equivalent(given: str | None, right: str) -> bool:
    """The same answer, written alike or, with package math-verify, of the same value."""
    if given is None:
        return False
    if given == right or _as_words(given) == _as_words(right):
        return True
    return can_compare_values() and _same_value(given, right)


def _as_words(answer: str) -> str:
    """Words in any case; a letter in brackets, as choices have it, without them. One letter alone
    keeps its case: it may be a variable."""
    if re.fullmatch(r"\([a-zA-Z]\)", answer):
        return answer[1]
    return answer.casefold() if answer.isalpha() and len(answer) > 1 else answer


def can_compare_values() -> bool:
    """Is math-verify installed?"""
    return find_spec(MATHS) is not None


def _same_value(given: str, right: str) -> bool:
    """Fractions, roots, intervals, sets: by math-verify, which calls SymPy.

    Its time limit is a signal, which only the main thread may set; elsewhere it would call every
    answer wrong, so there is none.
    """
    seconds = SECONDS if threading.current_thread() is threading.main_thread() else None
    from math_verify import parse, verify

    try:
        mine, theirs = (
            parse(f"\\boxed{{{text}}}", parsing_timeout=seconds) for text in (given, right)
        )
        return bool(verify(theirs, mine, timeout_seconds=seconds))
    except Exception:  # of a parser fed with what a model wrote; no class is promised
        return False
