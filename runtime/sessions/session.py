"""What every runtime offers: a model with a key-value cache, tokens in, logits out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError


def refuse_unknown_tokens(tokens: Sequence[int], vocabulary: int) -> None:
    """Some runtimes would read whatever lies behind the embedding.

    Raises:
        InputError: a token without a row.
    """
    if tokens and not (min(tokens) >= 0 and max(tokens) < vocabulary):
        wrong = next(token for token in tokens if not 0 <= token < vocabulary)
        raise InputError(
            f"token {wrong} is beyond the embedding, which has {vocabulary} rows",
            "the tokenizer belongs to another model, or the embedding was not resized to it",
        )


class Session(Protocol):
    """One sequence in progress: a cache of tokens that grows at its end and can be cut there."""

    @property
    def vocabulary(self) -> int:
        """Width of the logits; may exceed the tokenizer's, whose table is often padded."""
        ...

    @property
    def context_length(self) -> int:
        """Positions that fit into the cache."""
        ...

    @property
    def position(self) -> int:
        """Tokens in the cache."""
        ...

    def reset(self) -> None:
        """Forget the cache."""
        ...

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens (at least one); logits [vocabulary] after the last."""
        ...

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [vocabulary], in an array that the next call may reuse."""
        ...

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens (at least one) in one pass; logits [tokens, vocabulary] after every one.

        Equal to `decode` token by token but for rounding: a runtime whose products do not depend
        on the number of tokens gives the same bits. The array may be reused by the next call.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens, at most `position`; what follows is appended
        there as if the others had never been."""
        ...

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Logits [tokens, vocabulary] after every token, from an empty cache."""
        ...
