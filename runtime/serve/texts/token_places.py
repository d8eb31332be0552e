"""Where in a text its tokens begin, counted in characters.

A token that begins within a character, or is no text (a beginning, an end), has the place of what
stands there: its own character, or the next one.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsconv.runtime.text.tokenizer import REPLACEMENT, StreamDecoder, TextTokenizer


class TokenPlaces(StreamDecoder):
    """Fed the tokens of a text, tells their places as its characters are certain.

    Args:
        context: the tokens before the first.
        skip_special: special tokens are no part of the text.
    """

    def __init__(
        self, tokenizer: TextTokenizer, context: Sequence[int] = (), skip_special: bool = True
    ) -> None:
        super().__init__(tokenizer, context, skip_special)
        self._length = 0
        self._found: list[int] = []

    def place(self, token: int) -> list[int]:
        """Take a token -> the places of those that are certain by now, in their order: none while
        a character is incomplete, then of all that it was made of."""
        self.push(token)
        return self._taken()

    def rest(self) -> list[int]:
        """The places of those that are left at the end."""
        self.finish()
        return self._taken()

    def _taken(self) -> list[int]:
        found, self._found = self._found, []
        return found

    def _release(self, piece: str) -> str:
        texts = ["", *(self._text_of(count) for count in range(1, len(self._pending))), piece]
        for token, before, after in zip(self._pending, texts, texts[1:], strict=False):
            is_text = len(self._pending) > 1 and self._tokenizer.decode([token], self._skip_special)
            place = _place(before, after if is_text else None, piece)
            self._found.append(self._length + place)
        self._length += len(piece)
        return super()._release(piece)


def _place(before: str, after: str | None, whole: str) -> int:
    """Of the token that turns `before` into `after`, on the way to `whole`; None: it has no text.

    What an incomplete character was shown as is not in `whole`; where it stays incomplete, or was
    none from the beginning, it is, and a token that adds nothing to it is a part of it.
    """
    same = next(
        (i for i, (a, b) in enumerate(zip(before, whole, strict=False)) if a != b),
        min(len(before), len(whole)),
    )
    inside = same == len(before) and before == after and before.endswith(REPLACEMENT)
    return same - 1 if inside else same


def places_of(tokenizer: TextTokenizer, tokens: Sequence[int]) -> list[int]:
    """Of all tokens of a text, in `decode(tokens, skip_special=False)`."""
    places = TokenPlaces(tokenizer, skip_special=False)
    return [place for token in tokens for place in places.place(token)] + places.rest()
