"""A session whose logits come from a table."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


class PairSession:
    """Logits depend on the last two tokens by a table, so they are the same however asked for."""

    def __init__(self, vocabulary: int, context_length: int = 400, sharpness: float = 1.5) -> None:
        self.vocabulary, self.context_length = vocabulary, context_length
        shape = (vocabulary, vocabulary, vocabulary)
        table = np.random.default_rng(0).standard_normal(shape, np.float32)
        self.table = sharpness * table
        self.cache: list[int] = []
        self.passes = 0

    @property
    def position(self) -> int:
        return len(self.cache)

    def reset(self) -> None:
        self.cache.clear()

    def truncate(self, length: int) -> None:
        assert 0 <= length <= len(self.cache)
        del self.cache[length:]

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        assert tokens
        self.passes += 1
        rows = []
        for token in tokens:
            before = self.cache[-1] if self.cache else 0
            self.cache.append(token)
            rows.append(self.table[before, token])
        assert len(self.cache) <= self.context_length
        return np.stack(rows)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        return self.extend(tokens)[-1]

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.extend([token])[0]

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self.extend(tokens)
