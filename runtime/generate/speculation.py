"""Prompt-lookup speculation: guess what follows by looking where the text stood like this before.

A guess of several tokens is scored in one pass, which reads the weights once. The caller draws its
next token from the logits of each position as if there were no guess. While it draws what was
guessed, the following logits are there already; the first time it draws something else, the rest
is rolled back. For a guess that is certain (all of its probability on one token) this is the rule
of speculative sampling (Leviathan et al. 2023, Chen et al. 2023): token x is accepted with the
probability p(x) that the model gives it, and what replaces it is drawn from p without x. So the
distribution is that of the model, and the same seed gives the same tokens, where `extend` and
`decode` of the session give the same logits. Where they differ by rounding, as in a runtime with
other kernels for one token than for several, a near tie can go the other way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import UsageError
from dsconv.runtime.sessions.session import Session

NGRAM_SIZES = (4, 3, 2)  # tokens of context that must agree; the longest match is taken
MAX_CANDIDATES = 64
FIRST_WIDTH = 2  # tokens of the first guess


class PromptLookup:
    """The text so far, and where each of its n-grams ended last. That is made when it is asked for:
    it takes ten times the memory of the text."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._entered = 0  # tokens with what ends before them in `_ends`

    def __len__(self) -> int:
        return len(self._tokens)

    def append(self, tokens: Sequence[int]) -> None:
        self._tokens.extend(tokens)

    def truncate(self, length: int) -> None:
        if length < len(self._tokens):
            del self._tokens[length:]
            self.forget_ends()

    def forget_ends(self) -> None:
        """Their memory is free until somebody asks again."""
        self._ends, self._entered = {}, 0

    @property
    def tokens(self) -> Sequence[int]:
        return self._tokens

    def agree(self) -> int:
        """Tokens of the end that stood somewhere before, of NGRAM_SIZES the most; 0: none."""
        self._enter()
        known = (size for size in NGRAM_SIZES if tuple(self._tokens[-size:]) in self._ends)
        return next(known, 0)

    def _enter(self) -> None:
        # The last n-gram is not: the end of the text must not find itself.
        for end in range(self._entered, len(self._tokens)):
            for size in NGRAM_SIZES:
                if size <= end:
                    self._ends[tuple(self._tokens[end - size : end])] = end
        self._entered = len(self._tokens)

    def candidates(self, count: int) -> list[int]:
        """`count` tokens that followed the last occurrence of the longest known end; or none.

        A copy that reaches the end of the text goes on with itself, as in a repeated pattern.
        """
        size = self.agree()
        if not size:
            return []
        start = self._ends[tuple(self._tokens[-size:])]
        period = len(self._tokens) - start
        return [self._tokens[start + i % period] for i in range(count)]


class SpeculativeSession:
    """A session whose `decode` looks ahead: the same protocol, the same logits, fewer passes.

    A guess has at most `candidates` tokens: two at first, twice as many after one that was right
    to its end, half as many after one that was not. So a text that does not repeat itself pays
    for few tokens in vain.

    `proposed` and `accepted` count the guessed tokens. The session inside may have seen more than
    `position` tells; it is rolled back before the next pass, and by `truncate(position)`.

    Raises:
        UsageError: a number of candidates outside 1..MAX_CANDIDATES.
    """

    def __init__(self, session: Session, candidates: int) -> None:
        if not 1 <= candidates <= MAX_CANDIDATES:
            raise UsageError(
                f"{candidates} tokens of speculation are outside 1..{MAX_CANDIDATES}",
                "use --speculate 4, or 0 to switch it off",
            )
        self._session, self._most = session, candidates
        self._width = min(FIRST_WIDTH, candidates)
        self._position = session.position
        self._lookup = PromptLookup()
        self._ahead: deque[tuple[int, NDArray[np.float32]]] = deque()
        self.proposed = self.accepted = 0

    @property
    def vocabulary(self) -> int:
        return self._session.vocabulary

    @property
    def context_length(self) -> int:
        return self._session.context_length

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        self._session.reset()
        self._ahead.clear()
        self._lookup, self._position = PromptLookup(), 0
        self._width = min(FIRST_WIDTH, self._most)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._append(tokens)
        return self._session.prefill(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self._append(tokens)
        return self._session.extend(tokens)

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return self.extend(tokens)

    def truncate(self, length: int) -> None:
        before = self._position - len(self._lookup)  # tokens that this class has not seen
        self._lookup.truncate(max(0, length - before))
        self._position = min(self._position, length)
        self._roll_back()

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token; logits [vocabulary], made together with those of what may follow."""
        if self._ahead and self._ahead[0][0] == token:
            logits = self._ahead.popleft()[1]
            self.accepted += 1
            self._lookup.append([token])
            self._position += 1
            if not self._ahead:
                self._width = min(2 * self._width, self._most)
            return logits
        if self._ahead:
            self._width = max(1, self._width // 2)
        self._append([token])
        room = self.context_length - self._position
        guess = self._lookup.candidates(min(self._width, room))
        if not guess:
            return self._session.decode(token)
        rows = self._session.extend([token, *guess])
        self.proposed += len(guess)
        self._ahead.extend(zip(guess, rows[1:], strict=True))
        first: NDArray[np.float32] = rows[0]
        return first

    def _append(self, tokens: Sequence[int]) -> None:
        self._roll_back()
        self._lookup.append(tokens)
        self._position += len(tokens)

    def _roll_back(self) -> None:
        self._ahead.clear()
        if self._session.position > self._position:
            self._session.truncate(self._position)
