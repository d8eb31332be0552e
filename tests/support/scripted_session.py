"""A session that says what a test wants it to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from small_models import EOS, VOCABULARY

from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.tokenizer import TextTokenizer


class Script:
    """A session that writes given texts, one per prompt, whatever it is asked."""

    vocabulary = VOCABULARY
    context_length = 2048

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts = iter(texts)
        self.position = 0
        self.prompts: list[list[int]] = []
        self._prompt: list[int] = []
        self._is_new = True  # the next tokens are (the rest of) a prompt

    def reset(self) -> None:
        self.truncate(0)

    def truncate(self, length: int) -> None:
        self.position, self._is_new = length, True

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._prompt = [*self._prompt[: self.position], *tokens]
        self.prompts.append(self._prompt)
        self.position, self._is_new = len(self._prompt), False
        self._rest = iter(next(self._texts))
        return self._next()

    def decode(self, token: int) -> NDArray[np.float32]:
        if self._is_new:
            return self.prefill([token])
        self.position += 1
        return self._next()

    def _next(self) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[next(self._rest, EOS)] = 1
        return logits


def tokenizer_of(loaded: Loaded) -> TextTokenizer:
    return TextTokenizer(loaded.side_files, loaded.config)


def scripted(loaded: Loaded, texts: Sequence[str]) -> tuple[Script, Loaded]:
    tokenizer = tokenizer_of(loaded)
    session = Script([tokenizer.encode(text) for text in texts])
    return session, replace(loaded, session=session)  # type: ignore[arg-type]
