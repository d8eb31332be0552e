"""Which modules do the `targets` and the `ignore` list of a quantization_config name?

An entry is a module's name, `re:` and a pattern, or a class of modules. Checkpoints with a scheme
per matrix have thousands of `re:^exactly\\.this$`, which are looked up like names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from dsconv.convert.files import limits
from dsconv.convert.files.patterns import slow_pattern
from dsconv.errors import InputError

PREFIX = "re:"
NAME, PATTERN, CLASS = 1, 2, 3  # what beats what


@dataclass(frozen=True)
class ModulePatterns:
    """Entries, sorted by how they are looked up."""

    names: frozenset[str]
    exact: frozenset[str]  # patterns that only one name matches
    patterns: tuple[re.Pattern[str], ...]

    def rank(self, module: str, kind: str) -> int:
        """0 for no match, else what matches: NAME, PATTERN or CLASS. `kind`: the torch class."""
        if module in self.names:
            return NAME
        if module in self.exact or any(pattern.match(module) for pattern in self.patterns):
            return PATTERN
        return CLASS if kind in self.names else 0


def read_patterns(entries: Iterable[str], where: str) -> ModulePatterns:
    """Sort and compile the entries.

    Raises:
        InputError: a pattern is none, or might run for ever.
    """
    texts = list(entries)
    names = frozenset(text for text in texts if not text.startswith(PREFIX))
    exact, patterns = set(), []
    for text in dict.fromkeys(texts):
        if not text.startswith(PREFIX):
            continue
        pattern = text.removeprefix(PREFIX)
        literal = re.sub(r"\\(.)", r"\1", pattern.removeprefix("^").removesuffix("$"))
        if pattern == f"^{re.escape(literal)}$":
            exact.add(literal)
        else:
            patterns.append(compiled_pattern(pattern, where))
    if len(patterns) > limits.PATTERNS:
        raise InputError(
            f"{where}: {len(patterns)} patterns, limit {limits.PATTERNS}",
            "name the modules, or start from the unquantized checkpoint",
        )
    return ModulePatterns(names, frozenset(exact), tuple(patterns))


def compiled_pattern(pattern: str, where: str) -> re.Pattern[str]:
    problem = slow_pattern(pattern, limits.PATTERN_CHARACTERS)
    if problem is not None:
        raise InputError(
            f"{where}: pattern {pattern!r} might run for ever: {problem}",
            "name the modules instead",
        )
    try:
        return re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise InputError(
            f"{where}: {PREFIX + pattern!r} is not a pattern: {error}",
            "compare with the model's original file",
        ) from error
