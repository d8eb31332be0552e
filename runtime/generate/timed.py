"""What `bench` can time: a prompt, and tokens one by one after some context.

A runner lives in a process of its own (`worker.py`). The peers' are in `peers/`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

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

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session, self._sampler = session, Sampler(Sampling())
        self._token = 0

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
