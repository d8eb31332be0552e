"""Random requests over a batch without a model: each gets what it would get alone, all end, and
nothing is left behind."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray
from scripted_batch import ScriptedBatch, longest_pass

from dsconv.errors import InputError
from dsconv.runtime.generate.generate import StopReason
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.scheduling.job import Job
from dsconv.runtime.scheduling.passes import Limits
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.scheduler import Scheduler

END = 0


@dataclass
class Asked:
    """What a request is told, and what becomes of it."""

    tokens: list[int]
    max_tokens: int
    sampling: Sampling
    rows_from: int | None  # prompt logits are asked for from here
    fails_after: int  # tokens after which a callback raises
    asks_again: bool
    outcomes: list[Outcome] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    rows: list[NDArray[np.float32]] = field(default_factory=list)
    cancelled: bool = False
    job: Job | None = None

    def on_token(self, token: int, logits: NDArray[np.float32]) -> StopReason | None:
        assert np.isfinite(logits).all()
        self.told.append(token)
        if len(self.told) == self.fails_after:
            raise ValueError("a callback that raises")
        return "stop" if len(self.told) > 3 and token == self.told[-2] else None

    def on_prompt(self, first: int, logits: NDArray[np.float32]) -> None:
        assert self.rows_from is not None
        assert first == self.rows_from + len(self.rows)
        self.rows += [row.copy() for row in logits]

    def request(self) -> Request:
        return Request(
            self.tokens,
            self.max_tokens,
            self.sampling,
            (END,),
            self.on_token,
            None if self.rows_from is None else self.on_prompt,
            self.rows_from or 0,
        )


def alone(asked: Asked, batch: ScriptedBatch) -> tuple[list[int], str]:
    """The rule, token by token."""
    sampler = Sampler(asked.sampling)
    sampler.begin(asked.tokens, (END,))
    text: list[int] = []
    limit = min(batch.context_length, batch.capacity)
    if asked.max_tokens == 0:
        return [], "length"
    while True:
        token = sampler.choose(batch.logits_after([*asked.tokens, *text]))
        if token == END:
            return text, "eos"
        text.append(token)
        if len(text) == asked.fails_after:
            return text, "error"
        if len(text) > 3 and token == text[-2]:
            return text, "stop"
        if len(text) == asked.max_tokens:
            return text, "length"
        if len(asked.tokens) + len(text) - 1 >= limit:
            return text, "context"


def some_requests(rng: np.random.Generator, batch: ScriptedBatch) -> list[Asked]:
    """Most begin like others, for any number of tokens."""
    stem = [int(token) for token in rng.integers(1, batch.vocabulary, batch.context_length)]
    most = min(batch.context_length, batch.capacity)
    found = []
    for index in range(int(rng.integers(1, 14))):
        length = int(rng.integers(1, most + 1 if rng.random() < 0.3 else min(40, most) + 1))
        same = int(rng.integers(0, length + 1)) if rng.random() < 0.8 else 0
        own = [int(token) for token in rng.integers(1, batch.vocabulary, length - same)]
        penalty = 1.2 if rng.random() < 0.3 else 1.0
        sampling = Sampling(
            float(rng.choice([0, 0.7])), top_p=0.9, seed=index, repetition_penalty=penalty
        )
        rows_from = int(rng.integers(0, length)) if rng.random() < 0.3 else None
        fails = int(rng.integers(1, 5)) if rng.random() < 0.1 else -1
        tokens = int(rng.integers(0, 60))
        again = bool(rng.random() < 0.2)
        found.append(Asked([*stem[:same], *own], tokens, sampling, rows_from, fails, again))
    return found


def ask(scheduler: Scheduler, coming: list[Asked]) -> None:
    """The next one; some ask again as soon as they have their answer, as clients do."""
    asked = coming.pop()

    def take(outcome: Outcome) -> None:
        asked.outcomes.append(outcome)
        if coming and asked.asks_again:
            ask(scheduler, coming)

    asked.job = scheduler.submit(asked.request(), take)


def run_schedule(seed: int) -> None:
    rng = np.random.default_rng(seed)
    block = int(rng.choice([1, 4, 8]))
    batch = ScriptedBatch(
        blocks=int(rng.integers(3, 40)) * 8 // block,
        block=block,
        sequences=int(rng.integers(1, 7)),
        tokens_per_pass=int(rng.integers(7, 40)),
        context=int(rng.integers(20, 120)),
        shares=bool(rng.random() < 0.8),
    )
    limits = Limits(
        prompt_beside=int(rng.integers(1, 20)),
        growth=int(rng.integers(0, 30)),
        kept=int(rng.integers(0, 6)),
        row_bytes=int(rng.integers(1, 2000)),
        worth_waiting=int(rng.integers(1, 80)),
    )
    scheduler = Scheduler(batch, limits)
    requests = some_requests(rng, batch)
    coming = list(requests)
    for _ in range(20_000):
        while coming and rng.random() < 0.4:
            ask(scheduler, coming)
        started = [asked for asked in requests if asked.job is not None]
        if started and rng.random() < 0.01:
            gone = started[int(rng.integers(len(started)))]
            gone.cancelled = not gone.outcomes
            assert gone.job is not None
            scheduler.cancel(gone.job)
        if not scheduler.step() and not coming:
            break
    assert (scheduler.running, scheduler.waiting) == (0, 0), "it does not end"
    assert len(scheduler.cache) == len(batch.there) <= limits.kept
    # Who reads along does not wait for long prompts.
    assert longest_pass(batch) <= batch.max_sequences + limits.prompt_beside
    for asked in requests:
        check(asked, batch)
    scheduler.close()
    assert not batch.there
    assert batch.free_positions == batch.capacity


def check(asked: Asked, batch: ScriptedBatch) -> None:
    assert len(asked.outcomes) == (0 if asked.cancelled else 1)
    tokens, reason = alone(asked, batch)
    assert asked.told == (tokens[: len(asked.told)] if asked.cancelled else tokens)
    for outcome in asked.outcomes:
        if reason == "error":
            assert isinstance(outcome.error, ValueError)
            continue
        assert outcome.error is None
        assert outcome.generation is not None
        assert list(outcome.generation.tokens) == tokens
        assert outcome.generation.stop_reason == reason
        assert outcome.generation.prompt_tokens == len(asked.tokens)
        wanted = range(
            len(asked.tokens) if asked.rows_from is None else asked.rows_from, len(asked.tokens)
        )
        rows = [batch.logits_after(asked.tokens[: index + 1]) for index in wanted]
        np.testing.assert_array_equal(asked.rows, rows)


@pytest.mark.parametrize("first", range(0, 250, 50))
def test_each_gets_what_it_would_get_alone(first: int) -> None:
    for seed in range(first, first + 50):
        run_schedule(seed)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(250, 10_250, 1_000))
def test_ten_thousand_schedules(first: int) -> None:
    for seed in range(first, first + 1_000):
        run_schedule(seed)


def test_a_prompt_that_the_cache_cannot_hold_is_refused() -> None:
    with pytest.raises(InputError, match="the cache for keys and values holds 24"):
        Scheduler(ScriptedBatch(3)).submit(Request([1] * 25, 1))


def test_many_that_begin_alike_compute_it_once() -> None:
    batch = ScriptedBatch(400, sequences=32, tokens_per_pass=64, context=200)
    scheduler = Scheduler(batch)
    start = [int(token) for token in np.random.default_rng(0).integers(0, batch.vocabulary, 128)]
    for number in range(20):
        scheduler.submit(Request([*start, number], 1))
    scheduler.run()
    assert batch.computed < 128 + 20 * 18
