"""Tell a reasoning model's thoughts from its answer while the text streams in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

Kind = Literal["think", "answer"]
OPEN, CLOSE = "<think>", "</think>"


def opens_thinking(prompt: str) -> bool:
    """Whether a rendered prompt ends inside `<think>`, as current R1 templates do."""
    return prompt.rstrip().endswith(OPEN)


def _held_back(text: str, tag: str) -> int:
    """How many characters at the end of text may be the beginning of tag."""
    longest = min(len(text), len(tag) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(tag[:size])), 0)


class ThinkSplitter:
    """Fed pieces of text, yields (kind, text) with the tags taken out and nothing else changed.

    One block of thoughts is recognised; tags after it are text, for an answer may well talk
    about them. `inside`: the prompt has opened the block, so the text starts with thoughts.
    """

    def __init__(self, inside: bool) -> None:
        self._kind: Kind = "think" if inside else "answer"
        self._tag: str | None = CLOSE if inside else OPEN
        # Some models open the block again although the prompt has done so.
        self._may_reopen = inside
        self._buffer = ""

    def feed(self, piece: str) -> Iterator[tuple[Kind, str]]:
        """Take a piece; yield what is certain by now. Consume the iterator before the next call."""
        self._buffer += piece
        if self._may_reopen and not self._skip_second_opening():
            return
        while self._tag is not None and self._tag in self._buffer:
            before, _, self._buffer = self._buffer.partition(self._tag)
            if before:
                yield self._kind, before
            self._kind, self._tag = ("think", CLOSE) if self._tag == OPEN else ("answer", None)
        held = _held_back(self._buffer, self._tag) if self._tag is not None else 0
        cut = len(self._buffer) - held
        ready, self._buffer = self._buffer[:cut], self._buffer[cut:]
        if ready:
            yield self._kind, ready

    def finish(self) -> Iterator[tuple[Kind, str]]:
        """Yield what was held back as the possible start of a tag."""
        if self._buffer:
            yield self._kind, self._buffer
        self._buffer = ""

    def _skip_second_opening(self) -> bool:
        """Drop `<think>` at the very start; False while that cannot be decided yet."""
        start = self._buffer.lstrip()
        if len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self._may_reopen = False
        self._buffer = start[len(OPEN) :] if start.startswith(OPEN) else self._buffer
        return True


def split_thinking(text: str, inside: bool) -> tuple[str, str]:
    """(thoughts, answer) of a whole text, which may hold `</think>` without `<think>`."""
    opened = inside or (CLOSE in text and OPEN not in text.partition(CLOSE)[0])
    splitter = ThinkSplitter(opened)
    pieces = [*splitter.feed(text), *splitter.finish()]
    thoughts = "".join(piece for kind, piece in pieces if kind == "think")
    return thoughts, "".join(piece for kind, piece in pieces if kind == "answer")
