"""The answer that a text ends up with, and whether it is the right one."""

from __future__ import annotations

import re
import threading
from decimal import Decimal
from importlib.util import find_spec

from .boxes import Box, boxed_answer

# A comma belongs to a number only before three digits: 1,234 is one, 1,2 are two.
DIGITS = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(rf"-?{DIGITS}")
MONEY = r"(?:\\?\$|[£€¥￥])"
# In a text 3/4 is one answer, 3/4/2026 is none. A minus after a letter, a digit or a bracket is
# none of the number's (10-7, Covid-19).
IN_TEXT = re.compile(
    rf"((?<![\w)\]])-{MONEY}?|{MONEY}-?)?((?:\\[dt]?frac\{{{DIGITS}\}}\{{{DIGITS}\}}"
    rf"|(?<![\d/])(?:\d+ )?\d+/\d+(?![\d/]|\.\d)|{DIGITS}(?:[eE][-+]?\d+(?!\w))?))"
)
SCIENTIFIC = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
MIXED = re.compile(r"(-?)(\d+)\s+(\d+)/(\d+)")  # 3 1/2
GROUPS = re.compile(r"(?<=\d)(?:\\[,;:! ]|[\s~])+(?=\d{3}(?!\d))")  # 1 234, 1\,234
# What follows a number and is no unit of it.
NO_UNIT = (
    r"(?!\s*(?:(?:pi|sin|cos|tan|log|ln|sqrt|exp|hundred|thousand|\w+illion|dozen|am|pm)\b"
    r"|[十百千万亿]))"
)
WORDS = r"[a-zA-Z](?:[a-zA-Z ./·]|\^\{?-?\d\}?|[²³])*"
# 18 dollars, 5\text{ cm}^2, 50 km/h, 50元, 90°; 3ab is a product, 4 p.m. a time, 5万 is 50000.
UNIT = re.compile(
    rf"\s*{MONEY}?\s*({NUMBER.pattern})(?:\\?[\s,;!:~])*"
    rf"(?:\\(?:text|mathrm|mbox)\{{{NO_UNIT}\s*(?:{WORDS}|[^\W\d_a-zA-Z]+)\s*\}}"
    rf"|(?<=\s){NO_UNIT}(?=[a-zA-Z ]{{2}}|[a-zA-Z]/){WORDS}|{NO_UNIT}[一-鿿]{{1,6}}|°[CF]?)"
    r"(?:\^\{?\d\}?)?(?:\\?[\s~])*\.?\s*"
)
MARKED = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\{([^{}]*)\}")
MINUS = str.maketrans("−－", "--")  # also typed so
WORD = re.compile(r"[^\W\d_]{2,}")
LETTER = re.compile(r"\(?([A-J])(?:[).:].*)?")  # of a choice, its text perhaps behind it
SENTENCE = 2  # so many words beside a number are a sentence about it
MATHS = "math_verify"  # a package
SECONDS = 5  # for one comparison


def final_answer(text: str, is_cut: bool = False) -> str | None:
    """What a text ends up with: the last \\boxed{…}, or else the last number; None without.

    Args:
        is_cut: the text would have gone on, so a number at its very end may be half of one.
    """
    boxed = boxed_answer(text, is_cut)
    if boxed is Box.CUT:
        return None
    if isinstance(boxed, str):
        return normalized(boxed)
    text = text.translate(MINUS)
    found = [match for match in IN_TEXT.finditer(text) if not (is_cut and match.end() == len(text))]
    if not found:
        return None
    sign = "-" if "-" in (found[-1][1] or "") else ""
    return normalized(f"{sign}{found[-1][2]}")


def right_answer(text: str, is_value: bool) -> str:
    """What a file gives as the answer; empty without.

    Args:
        is_value: a field of answers, whose text is the answer itself (`3x+2`, `[1,2]`), unless it
            is a sentence about a number; otherwise a field of worked solutions, which end up with
            it.
    """
    if is_value and boxed_answer(text) is None:
        is_short = len(WORD.findall(text)) < SENTENCE
        if is_short or "\\" in text or UNIT.fullmatch(text) is not None:
            return normalized(text)
    return final_answer(text) or normalized(text)


def normalized(answer: str) -> str:
    """One way to write a number, without its unit; other answers without spaces, dollars and text
    marks."""
    answer = re.sub(r"^\s*–(?=\s*[\d.])", "-", answer.translate(MINUS))
    whole = MARKED.fullmatch(answer.strip())
    if whole is not None:
        return normalized(whole[1])
    with_unit = UNIT.fullmatch(answer)
    if with_unit is not None:
        return normalized(with_unit[1])
    mixed = MIXED.fullmatch(answer.strip(" $"))
    if mixed is not None:
        sign, units, over, under = mixed.groups()
        return f"{sign}{int(units) * int(under) + int(over)}/{under}"
    plain = GROUPS.sub("", MARKED.sub(r"\1", answer))
    plain = re.sub(r"(?<=\d)\s+(?=\d)", ",", plain.strip())  # several numbers, not one
    plain = re.sub(rf"{MONEY}(?=[-\d.])", "", plain)
    plain = re.sub(r"\\[,;!$%: ]|[\s$~]|\\(?:left|right)(?![a-zA-Z])", "", plain).rstrip(".%")
    plain = re.sub(r"\^(?:\\circ|\{\\circ\})", "", plain).replace("{,}", ",")
    number = plain.replace(",", "") if NUMBER.fullmatch(plain) else plain
    if SCIENTIFIC.fullmatch(number) is None:
        return plain.replace("dfrac", "frac")
    text = f"{Decimal(number).normalize():f}"
    return "0" if text == "-0" else text


def equivalent(given: str | None, right: str) -> bool:
    """The same answer, written alike or, with package math-verify, of the same value."""
    if given is None:
        return False
    if given == right or _as_words(given) == _as_words(right):
        return True
    if LETTER.fullmatch(right) is not None and len(right) == 1:
        chosen = LETTER.fullmatch(given)
        return chosen is not None and chosen[1] == right
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
