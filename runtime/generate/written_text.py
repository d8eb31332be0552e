"""The text of an answer, made token by token: stop texts, thoughts and answer apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsconv.runtime.text.stop_texts import StopTexts
from dsconv.runtime.text.thinking import OPEN, Kind, ThinkSplitter
from dsconv.runtime.text.tokenizer import StreamDecoder, TextTokenizer

from .generate import StopReason

Emit = Callable[[Kind, str], None]


class WrittenText:
    """Told every token after a prompt, tells pieces of text as they are certain.

    Args:
        stop: texts that end it, and are not part of it.
        inside: the prompt has opened `<think>`.
        split: False tells all of the text as "answer", its tags included.

    Attributes:
        thinking, answer: what was told so far. written: both, with their tags.
        stopped_by: which of the stop texts came.
    """

    def __init__(
        self,
        tokenizer: TextTokenizer,
        prompt: Sequence[int],
        stop: Sequence[str] = (),
        inside: bool = False,
        emit: Emit = lambda kind, text: None,
        split: bool = True,
    ) -> None:
        self._decoder, self._stops = StreamDecoder(tokenizer, prompt), StopTexts(stop)
        self._splitter = ThinkSplitter(inside) if split else None
        self._emit, self._inside = emit, inside
        self.thinking = self.answer = self._text = ""

    @property
    def written(self) -> str:
        return f"{OPEN}\n{self._text}" if self._inside else self._text

    @property
    def stopped_by(self) -> str | None:
        return self._stops.found

    def take(self, token: int) -> StopReason | None:
        """One more token -> "stop" where a stop text came."""
        self._add(self._stops.feed(self._decoder.push(token)))
        return "stop" if self._stops.found is not None else None

    def finish(self) -> None:
        """Tell what was held back."""
        self._add(self._stops.feed(self._decoder.finish()) + self._stops.finish())
        if self._splitter is not None:
            for kind, text in self._splitter.finish():
                self._tell(kind, text)

    def _add(self, piece: str) -> None:
        self._text += piece
        if self._splitter is not None:
            for kind, text in self._splitter.feed(piece):
                self._tell(kind, text)
        elif piece:
            self._tell("answer", piece)

    def _tell(self, kind: Kind, text: str) -> None:
        if kind == "think":
            self.thinking += text
        else:
            self.answer += text
        self._emit(kind, text)


def stop_tokens(tokenizer: TextTokenizer, stop: Sequence[str]) -> list[int]:
    """Of stop texts that are special tokens, which never show in the text."""
    found = (tokenizer.encode(text) for text in stop)
    return [ids[0] for ids in found if len(ids) == 1 and not tokenizer.decode(ids)]
