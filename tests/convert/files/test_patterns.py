"""Patterns that could run for ever are refused, those in use are not."""

from __future__ import annotations

import random
import re
import time
from typing import Any

import pytest

from dsconv.convert.checkpoint.module_patterns import CLASS, NAME, PATTERN, read_patterns
from dsconv.convert.files import limits
from dsconv.convert.files.patterns import slow_pattern
from dsconv.errors import InputError

IN_USE = [
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}]*[\p{Ll}\p{Lm}]+(?i:'s|'t|'re)?|\p{N}{1,3}|\s+(?!\S)|\s+",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}||\s++$",
    r" ?[^(\s|[.,!?…。，、।۔،])]+",
    r"[\p{Han}]+|[\p{Lu}&&[^\p{Han}]]*[\p{Ll}&&[^\p{Han}]]+(?i:'s|'t)?",
    r"model\.layers\.\d+\.mlp\.(gate|up)_proj$",
    r".*self_attn.*",
    r"^(?!.*lm_head).*$",
    r"lm_head|embed_tokens",
    "",
    "{}",
    "a{,}",
    "[]a]+",
    "[^]a]+",
    "a{1000}",
]
SLOW = [
    *("(a+)+$", "(a|a)*b", "(?:a*)*", "(a*)?{3}", "(a{1,9}){9}", "(a)**", "a**", "(?:.*)+?x"),
    *("a*a*a*a*b", "a*a*(|)a*a*", "(a*|b)a*(c|a*)a*", "a{1,}b{2,}c{3,}d{4,}", "a{1,99}" * 4),
    *(r"(a+)\1", r"(?<n>a)", r"(?P<n>a)(?P=n)", r"\k<n>", r"\g<0>", "(?x) (a+) +", "(?#(a)+)"),
    *("a{1001}", "a{1,99999}", "[[a]b]*(c)*", r"\p{L}*(x)+", r"[\]](a)+", "(a)?+", "a{2}{3}"),
]


@pytest.mark.parametrize("pattern", IN_USE)
def test_patterns_in_use(pattern: str) -> None:
    assert slow_pattern(pattern, 1000) is None


@pytest.mark.parametrize("pattern", SLOW)
def test_slow_patterns(pattern: str) -> None:
    assert slow_pattern(pattern, 1000)


def test_length_at_the_limit_and_above() -> None:
    assert slow_pattern("a" * 50, 50) is None
    assert slow_pattern("a" * 51, 50) == "51 characters, limit 50"


def test_no_pattern_that_is_let_through_is_slow() -> None:
    """Random patterns of all that makes them slow, on the texts that make them slow."""
    rng = random.Random(5)
    pieces = ["a", "b", ".", "[ab]", "(", ")", "(?:", "*", "+", "?", "|", "{1,9}", "a*", "(a|b)"]
    names = ["a" * 60 + "c", "ab" * 30, "aaab" * 15 + "!"]
    accepted = 0
    for _ in range(20_000):
        pattern = "".join(rng.choices(pieces, k=rng.randint(1, 12)))
        if slow_pattern(pattern, 1000) is not None:
            continue
        try:
            compiled = re.compile(pattern)
        except re.error:
            continue
        accepted += 1
        start = time.perf_counter()
        for name in names:
            compiled.match(name)
            compiled.fullmatch(name)
        assert time.perf_counter() - start < 0.5, pattern
    assert accepted > 1000


# ---------------------------------------------------------------- modules


def test_ranks() -> None:
    entries = ["lm_head", r"re:^model\.a\.b$", r"re:.*\.c", "Linear"]
    patterns = read_patterns(entries, "x")
    assert patterns.rank("lm_head", "Linear") == NAME
    assert patterns.rank("model.a.b", "Linear") == PATTERN
    assert patterns.rank("model.c", "Embedding") == PATTERN
    assert patterns.rank("modelxaxb", "Embedding") == 0
    assert patterns.rank("other", "Linear") == CLASS
    assert patterns.rank("other", "Embedding") == 0
    assert len(patterns.patterns) == 1  # the other one is looked up


@pytest.mark.parametrize("name", ["a.b", "a-b", "a+b", "model.layers.0.x", "a b", r"a\b", "^a$"])
def test_exact_patterns_are_what_re_makes_of_them(name: str) -> None:
    pattern = f"^{re.escape(name)}$"
    found = read_patterns([f"re:{pattern}"], "x")
    assert not found.patterns
    for module in (name, name + "x", "x" + name, re.escape(name)):
        expected = PATTERN if re.match(pattern, module) else 0
        assert found.rank(module, "Linear") == expected


@pytest.mark.parametrize("entry", ["re:(a+)+$", "re:[", "re:a{2,1}", "re:" + "a" * 4097])
def test_patterns_that_are_refused(entry: str) -> None:
    with pytest.raises(InputError, match=r"config: .*pattern"):
        read_patterns([entry], "config")


def test_count_at_the_limit_and_above() -> None:
    entries: list[Any] = [f"re:.*{number}" for number in range(limits.PATTERNS)]
    read_patterns(entries, "x")
    with pytest.raises(InputError, match="257 patterns, limit 256"):
        read_patterns([*entries, "re:.*one more"], "x")


def test_thousands_of_names_are_looked_up() -> None:
    entries = [rf"re:^model\.layers\.{number}$" for number in range(20_000)]
    patterns = read_patterns(entries, "x")
    start = time.perf_counter()
    assert all(patterns.rank(f"model.layers.{n}", "Linear") == PATTERN for n in range(20_000))
    assert time.perf_counter() - start < 1
