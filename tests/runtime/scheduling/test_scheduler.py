"""Many requests over one batch: each gets what it would get alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from native_models import some_tokens
from small_models import VOCABULARY, write_checkpoint

from dsconv.errors import InputError, UsageError
from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.generate.generate import complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.scheduling.scheduler import Scheduler
from dsconv.runtime.sessions.load import Loaded, load


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    write_checkpoint(folder)
    return load(str(folder))


def requests(count: int) -> list[Request]:
    start = some_tokens(24)
    return [
        Request([*start, 3 + index], 4 + index, Sampling(temperature=0.8, seed=index))
        for index in range(count)
    ]


def test_each_gets_what_it_would_get_alone(loaded: Loaded) -> None:
    asked = requests(5)
    found = run_all(open_batch(loaded), asked)
    for request, generation in zip(asked, found, strict=True):
        loaded.session.reset()
        sampler = Sampler(request.sampling)
        alone = complete(loaded.session, request.tokens, sampler, (), request.max_tokens)
        assert generation.tokens == alone.tokens
        assert generation.stop_reason == alone.stop_reason


def test_a_beginning_that_is_known_is_not_computed_again(loaded: Loaded) -> None:
    reused = []
    run_all(open_batch(loaded), requests(3), lambda index, outcome: reused.append(outcome.reused))
    assert reused == [0, 24, 24]


def test_logits_of_a_prompt_are_those_of_the_session(loaded: Loaded) -> None:
    tokens, rows = some_tokens(30), {}
    request = Request(
        tokens,
        0,
        on_prompt=lambda first, logits: rows.update(
            {first + i: row.copy() for i, row in enumerate(logits)}
        ),
        prompt_logits_from=20,
    )
    run_all(open_batch(loaded), [Request(tokens, 1), request])
    expected = loaded.session.score(tokens)
    assert sorted(rows) == list(range(20, 30))
    for index, row in rows.items():
        np.testing.assert_allclose(row, expected[index], rtol=0, atol=1e-4)


def test_what_can_never_be_served_is_refused(loaded: Loaded) -> None:
    scheduler = Scheduler(open_batch(loaded))
    with pytest.raises(UsageError, match="empty"):
        scheduler.submit(Request([], 1))
    with pytest.raises(InputError, match=f"token {VOCABULARY}"):
        scheduler.submit(Request([VOCABULARY], 1))
    with pytest.raises(InputError, match="the context"):
        scheduler.submit(Request([1] * 100_000, 1))
    assert not scheduler.step()


def test_a_request_that_is_cancelled_is_not_told(loaded: Loaded) -> None:
    scheduler = Scheduler(open_batch(loaded))
    told: list[str] = []
    first, second = requests(2)
    job = scheduler.submit(first, lambda outcome: told.append("first"))
    scheduler.submit(second, lambda outcome: told.append("second"))
    scheduler.step()
    scheduler.cancel(job)
    scheduler.run()
    assert told == ["second"]
