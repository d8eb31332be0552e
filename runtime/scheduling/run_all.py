"""Serve some requests to their end, and give back what came of each, in their order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.generate.generate import Generation

from .beginnings import SPAN
from .passes import Limits
from .request import Outcome, Request
from .scheduler import Scheduler


def unattended(batch: Batch) -> Limits:
    """Nobody reads along, so prompts need not make room for texts, and may wait for each other."""
    return Limits(prompt_beside=batch.tokens_per_pass, worth_waiting=SPAN)


def run_all(
    batch: Batch,
    requests: Sequence[Request],
    on_done: Callable[[int, Outcome], None] = lambda index, outcome: None,
) -> list[Generation]:
    """As many at once as the batch takes; it is left empty, as it was.

    Args:
        on_done: told of every request as it ends: its index, and what came of it.

    Raises:
        The first error that a request ended with, once no request is left; what on_done raised.
    """
    scheduler = Scheduler(batch, unattended(batch))
    outcomes: dict[int, Outcome] = {}

    def take(index: int, outcome: Outcome) -> None:
        outcomes[index] = outcome
        on_done(index, outcome)

    try:
        for index, request in enumerate(requests):
            scheduler.submit(request, partial(take, index))
        scheduler.run()
    finally:
        scheduler.close()
    return [_generation(outcomes[index]) for index in range(len(requests))]


def _generation(outcome: Outcome) -> Generation:
    if outcome.error is not None:
        raise outcome.error
    assert outcome.generation is not None
    return outcome.generation
