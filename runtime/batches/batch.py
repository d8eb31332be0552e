"""What every runtime offers for many sequences: some join, some leave, a pass serves them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Want(Enum):
    """After which tokens of a piece logits are computed."""

    NONE = "none"
    LAST = "last"
    EVERY = "every"


@dataclass(frozen=True)
class Piece:
    """Tokens (at least one) that a sequence gets in a pass: of a prompt, or the one chosen last."""

    sequence: int
    tokens: Sequence[int]
    want: Want = Want.LAST


class Batch(Protocol):
    """Sequences in progress, each with a cache that grows at its end and can be cut there.

    A sequence gets the same logits alone and in any company where `independent` says so: bit for
    bit, whatever its tokens were cut into and whoever was beside it.
    """

    @property
    def vocabulary(self) -> int:
        """Width of the logits."""
        ...

    @property
    def context_length(self) -> int:
        """Positions that one sequence may have."""
        ...

    @property
    def independent(self) -> bool: ...

    @property
    def max_sequences(self) -> int:
        """Sequences at once, at most."""
        ...

    @property
    def tokens_per_pass(self) -> int:
        """Tokens of one pass, over all pieces, at most."""
        ...

    @property
    def capacity(self) -> int:
        """Positions that the cache holds when nothing is in it."""
        ...

    def room_for(self, length: int) -> int:
        """Sequences of `length` tokens each, nothing shared, that could be there at once."""
        ...

    @property
    def free_positions(self) -> int:
        """Positions that new sequences could have now, in whole blocks."""
        ...

    def add(self) -> int:
        """A new, empty sequence -> its number. At most `max_sequences` are there at once."""
        ...

    def fork(self, sequence: int, length: int) -> int:
        """A new sequence that begins with the first `length` tokens of another one; what they
        have in common lies in memory once."""
        ...

    def length(self, sequence: int) -> int:
        """Tokens in its cache."""
        ...

    def truncate(self, sequence: int, length: int) -> None:
        """Forget all but its first `length` tokens."""
        ...

    def drop(self, sequence: int) -> None:
        """Forget it; its number may be given again."""
        ...

    def fits(self, pieces: Sequence[Piece]) -> bool:
        """Has the cache room for them now?"""
        ...

    def step(self, pieces: Sequence[Piece]) -> list[NDArray[np.float32] | None]:
        """One pass, at most one piece per sequence and `tokens_per_pass` tokens in all.

        Returns: for each piece, in order: None, logits [vocabulary] after its last token, or
        [tokens, vocabulary] after every one. The next call may reuse the arrays.

        Raises:
            InputError: a token that the model does not have, or a sequence beyond its context.
            MemoryError: `fits` would have said no; nothing has changed.
        """
        ...
