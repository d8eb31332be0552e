"""End a text at words that the user names, wherever tokens cut them."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Fed pieces of text, gives those in front of the first of `texts`.

    found: which of them came; None so far.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._held = ""  # may be the beginning of one
        self.found: str | None = None

    def feed(self, piece: str) -> str:
        """Take a piece; the text that is certain by now."""
        if self.found is not None:
            return ""
        text = self._held + piece
        places = [(text.find(stop), -len(stop), stop) for stop in self._texts if stop in text]
        if places:
            place, _, self.found = min(places)
            self._held = ""
            return text[:place]
        held = max((_overlap(text, stop) for stop in self._texts), default=0)
        cut = len(text) - held
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """What was held back as a possible beginning."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of text may be the beginning of stop."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
