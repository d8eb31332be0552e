"""The generation loop on a session that counts: after token t it prefers t + 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from dsconv.errors import DsconvError, InputError, UsageError
from dsconv.runtime.generate.generate import Generation, complete, generate
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.sessions.session import Session


class CountingSession:
    """A model whose greedy continuation of t is t + 1."""

    def __init__(self, vocabulary: int = 100, context_length: int = 20) -> None:
        self.vocabulary = vocabulary
        self.context_length = context_length
        self.cache: list[int] = []

    @property
    def position(self) -> int:
        return len(self.cache)

    def reset(self) -> None:
        self.cache.clear()

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.cache.extend(tokens)
        assert tokens
        assert len(self.cache) <= self.context_length
        return np.eye(self.vocabulary, dtype=np.float32)[(tokens[-1] + 1) % self.vocabulary]

    def decode(self, token: int) -> NDArray[np.float32]:
        return self.prefill([token])

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.reset()
        return np.stack([self.decode(token) for token in tokens])


def run(
    session: Session, tokens: Sequence[int], stop_ids: Sequence[int] = (), max_tokens: int = 100
) -> Generation:
    return complete(session, tokens, Sampler(Sampling()), stop_ids, max_tokens)


def test_stops_at_any_eos_without_yielding_it() -> None:
    session = CountingSession()
    generation = run(session, [1, 2, 3], stop_ids=[50, 7])
    assert generation.tokens == (4, 5, 6)
    assert (generation.stop_reason, generation.prompt_tokens) == ("eos", 3)
    assert session.cache == [1, 2, 3, 4, 5, 6]
    assert generation.decode_steps == 3


def test_eos_at_once() -> None:
    generation = run(CountingSession(), [6], stop_ids=[7])
    assert (generation.tokens, generation.stop_reason) == ((), "eos")
    assert generation.decode_tokens_per_second == 0.0


def test_stops_at_max_tokens_without_a_step_too_many() -> None:
    session = CountingSession()
    generation = run(session, [1], max_tokens=4)
    assert (generation.tokens, generation.stop_reason) == ((2, 3, 4, 5), "length")
    assert session.cache == [1, 2, 3, 4]


@pytest.mark.parametrize("prompt", [1, 19, 20])
def test_stops_when_the_context_is_full(prompt: int) -> None:
    session = CountingSession()
    generation = run(session, list(range(prompt)))
    # The last token needs no place of its own.
    assert generation.tokens == tuple(range(prompt, 21))
    assert generation.stop_reason == "context"
    assert session.position == 20


def test_tokens_come_one_by_one() -> None:
    session = CountingSession()
    steps = generate(session, [1], Sampler(Sampling()), (), 10)
    assert session.position == 0
    assert next(steps) == 2
    assert session.cache == [1]
    assert next(steps) == 3
    assert session.cache == [1, 2]
    seen: list[int] = []
    complete(CountingSession(), [1], Sampler(Sampling()), (), 3, seen.append)
    assert seen == [2, 3, 4]


def test_continues_where_the_session_stands() -> None:
    session = CountingSession()
    run(session, [1, 2], max_tokens=2)
    run(session, [9], max_tokens=1)
    assert session.cache == [1, 2, 3, 9]
    with pytest.raises(InputError, match="17 tokens, the context 20, 4 of them taken"):
        run(session, [0] * 17)


@pytest.mark.parametrize(
    ("tokens", "max_tokens", "kind", "message"),
    [
        ([], 10, UsageError, "prompt is empty"),
        ([0] * 21, 10, InputError, "21 tokens, the context 20$"),
        ([5, 100], 10, InputError, "token 100, the model has 100"),
        ([1], 0, UsageError, "max tokens is 0"),
    ],
)
def test_refused_before_anything_runs(
    tokens: list[int], max_tokens: int, kind: type[DsconvError], message: str
) -> None:
    session = CountingSession()
    with pytest.raises(kind, match=message) as caught:
        generate(session, tokens, Sampler(Sampling()), (), max_tokens)
    assert caught.value.hint
    assert session.position == 0


def test_rates() -> None:
    generation = Generation((1, 2), "length", 10, 1, 0.5, 0.25)
    assert generation.prefill_tokens_per_second == 20.0
    assert generation.decode_tokens_per_second == 4.0
    timed = run(CountingSession(), [1, 2], max_tokens=5)
    assert timed.prefill_seconds > 0
    assert timed.decode_seconds > 0
