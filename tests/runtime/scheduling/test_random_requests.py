"""Random requests in random order over a small batch: each gets exactly what it would get alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_batch import VOCABULARY, FakeBatch, logits_after

from dsconv.errors import DsconvError
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.scheduler import Scheduler


def alone(request: Request, context: int) -> list[int]:
    sampler, text = Sampler(request.sampling), list(request.tokens)
    sampler.begin(request.tokens, request.stop_ids)
    written: list[int] = []
    while len(written) < request.max_tokens:
        token = sampler.choose(logits_after(text))
        if token in request.stop_ids:
            break
        written.append(token)
        text.append(token)
        if len(text) > context:
            break
    return written


class Run:
    """One schedule: requests come, are cancelled, fail in callbacks."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        blocks, sequences = (int(x) for x in self.rng.integers((6, 1), (40, 9)))
        self.batch = FakeBatch(blocks, sequences, int(self.rng.integers(2, 40)))
        self.scheduler = Scheduler(self.batch)
        self.starts = [self._tokens(60) for _ in range(2)]
        self.ended: dict[int, Outcome] = {}
        self.asked: dict[int, Request] = {}
        self.jobs: dict[int, Any] = {}
        self.rows: dict[int, dict[int, Any]] = {}

    def _tokens(self, count: int) -> list[int]:
        return [int(token) for token in self.rng.integers(0, VOCABULARY, count)]

    def go(self) -> None:
        for number in range(int(self.rng.integers(2, 14))):
            self._submit(number)
            for _ in range(int(self.rng.integers(0, 6))):
                self.scheduler.step()
            if self.jobs and self.rng.random() < 0.1:
                gone = int(self.rng.choice(list(self.jobs)))
                if gone not in self.ended:
                    self.scheduler.cancel(self.jobs.pop(gone))
                    del self.asked[gone]
        for _ in range(5000):
            if not self.scheduler.step():
                return
        raise AssertionError("it does not end")

    def _submit(self, number: int) -> None:
        start = self.starts[int(self.rng.integers(2))]
        shared = int(self.rng.integers(0, 50))
        tokens = [*start[:shared], *self._tokens(int(self.rng.integers(1, 30)))]
        rows: dict[int, Any] = {}
        told: Any = None
        if self.rng.random() < 0.3:

            def told(first: int, logits: Any) -> None:
                rows.update({first + i: row.copy() for i, row in enumerate(logits)})

        breaks = self.rng.random() < 0.1

        def on_token(token: int, logits: Any) -> None:
            if breaks:
                raise ValueError("a callback's own")

        request = Request(
            tokens,
            int(self.rng.integers(0, 30)),
            Sampling(float(self.rng.choice([0.0, 0.8])), seed=number),
            (int(self.rng.integers(VOCABULARY)),),
            on_token,
            told,
            int(self.rng.integers(0, len(tokens))),
        )
        try:
            self.jobs[number] = self.scheduler.submit(
                request, lambda outcome: self.ended.__setitem__(number, outcome)
            )
        except DsconvError:
            assert len(tokens) > self.batch.capacity
            return
        self.asked[number], self.rows[number] = request, rows

    def check(self) -> None:
        assert set(self.asked) <= set(self.ended)
        assert (self.scheduler.running, self.scheduler.waiting) == (0, 0)
        for number, request in self.asked.items():
            outcome = self.ended[number]
            if outcome.error is not None:
                assert isinstance(outcome.error, ValueError | DsconvError)
                continue
            assert outcome.generation is not None
            wanted = alone(request, self.batch.context_length)
            got = list(outcome.generation.tokens)
            # One that fills the cache by itself ends there.
            assert got == wanted[: len(got)]
            if outcome.generation.stop_reason != "context":
                assert got == wanted
            if request.on_prompt is not None:
                first = request.prompt_logits_from
                assert sorted(self.rows[number]) == list(range(first, len(request.tokens)))
                for index, row in self.rows[number].items():
                    np.testing.assert_array_equal(row, logits_after(request.tokens[: index + 1]))
        self.scheduler.close()
        assert self.batch.there == {}


@pytest.mark.parametrize("seed", range(200))
def test_each_gets_what_it_would_get_alone(seed: int) -> None:
    run = Run(seed)
    run.go()
    run.check()


@pytest.mark.slow
@pytest.mark.parametrize("first", range(200, 10_200, 500))
def test_ten_thousand(first: int) -> None:
    for seed in range(first, first + 500):
        run = Run(seed)
        run.go()
        run.check()


def test_many_that_begin_alike_compute_it_once() -> None:
    batch = FakeBatch(400, 32, tokens=64)
    scheduler = Scheduler(batch)
    start = [int(token) for token in np.random.default_rng(0).integers(0, VOCABULARY, 128)]
    for number in range(20):
        scheduler.submit(Request([*start, number % VOCABULARY], 1))
    scheduler.run()
    assert batch.computed < 128 + 20 * 18
