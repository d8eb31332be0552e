"""What `bench` can time: a prompt, and tokens one by one after some context.

A runner lives in a process of its own (`worker.py`). The peers' are in `peers/`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from dsconv.runtime.batches.batch import Batch, Piece, Want
from dsconv.runtime.sessions.session import Session

from .sampling import Sampler, Sampling


class Runner(Protocol):
    """A loaded model. Times are seconds and hold the choice of every token."""

    @property
    def context_length(self) -> int: ...

    def prefill(self, tokens: Sequence[int]) -> float:
        """From an empty cache to the first token after `tokens`."""
        ...

    def decode(self, context: Sequence[int], count: int) -> float:
        """`count` tokens after `context`, whose own time is left out."""
        ...


@runtime_checkable
class BatchRunner(Protocol):
    """A runner that can serve many sequences at once."""

    def batch_limit(self, positions: int) -> int:
        """Sequences of so many tokens that it can serve at once, at most."""
        ...

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        """`count` tokens of each of `batch` sequences after a context of so many tokens each,
        whose own time is left out."""
        ...


class SteppingRunner(ABC):
    """A runner of a runtime that can be asked for one token at a time."""

    def __init__(self) -> None:
        self._held = 0  # tokens of the context in the cache, from which decoding starts

    @property
    @abstractmethod
    def context_length(self) -> int: ...

    @abstractmethod
    def start(self, tokens: Sequence[int], room: int) -> None:
        """Append `tokens` to an empty cache of at least `room` positions; choose the next."""

    @abstractmethod
    def step(self) -> None:
        """Append the token chosen last; choose the next."""

    @abstractmethod
    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens in the cache."""

    def prefill(self, tokens: Sequence[int]) -> float:
        self._held = 0
        start = time.perf_counter()
        self.start(tokens, len(tokens) + 1)
        return time.perf_counter() - start

    def decode(self, context: Sequence[int], count: int) -> float:
        if self._held == len(context):
            self.rewind(self._held)
        else:
            self.start(context, len(context) + count)
            self._held = len(context)
        start = time.perf_counter()
        for _ in range(count):
            self.step()
        return time.perf_counter() - start


class SessionRunner(SteppingRunner):
    """Any session of ours, with the sampler that `run` uses."""

    def __init__(self, session: Session, open_batch: Callable[[], Batch] | None = None) -> None:
        super().__init__()
        self._session, self._sampler = session, Sampler(Sampling())
        self._token = 0
        self._open_batch = open_batch
        self._batch: Batch | None = None
        self._sequences: list[int] = []  # each with a context of its own in the cache
        self._context = 0  # its tokens

    @property
    def context_length(self) -> int:
        return self._session.context_length

    def start(self, tokens: Sequence[int], room: int) -> None:
        self._session.reset()
        self._token = self._sampler.choose(self._session.prefill(tokens))

    def step(self) -> None:
        self._token = self._sampler.choose(self._session.decode(self._token))

    def rewind(self, length: int) -> None:
        self._session.truncate(length)

    def batch_limit(self, positions: int) -> int:
        return self._many().room_for(positions)

    def decode_many(self, context: Sequence[int], batch: int, count: int) -> float:
        many = self._many()
        self._held = 0  # where the batch is of one sequence, it is that of the session
        self._fill(many, context, batch)
        chosen = self._sequences[:batch]
        for sequence in chosen:
            many.truncate(sequence, len(context))
        tokens = [context[-1]] * batch
        start = time.perf_counter()
        for _ in range(count):
            pieces = [Piece(*pair) for pair in zip(chosen, zip(tokens, strict=True), strict=True)]
            rows = many.step(pieces)
            tokens = [self._sampler.choose(row) for row in rows if row is not None]
        return time.perf_counter() - start

    def _many(self) -> Batch:
        if self._batch is None:
            assert self._open_batch is not None
            self._batch = self._open_batch()
        return self._batch

    def _fill(self, many: Batch, context: Sequence[int], batch: int) -> None:
        """Contexts differ, so that nothing of the cache is shared."""
        if self._context != len(context):
            for sequence in self._sequences:
                many.drop(sequence)
            self._sequences, self._context = [], len(context)
        while len(self._sequences) < batch:
            first = len(self._sequences) % len(context)
            tokens = [*context[first:], *context[:first]]
            sequence = many.add()
            for start in range(0, len(tokens), many.tokens_per_pass):
                part = tokens[start : start + many.tokens_per_pass]
                many.step([Piece(sequence, part, Want.NONE)])
            self._sequences.append(sequence)
