"""Passes over a batch: requests join when there is room, and leave when they are done.

A pass has the next token of every text in progress, and pieces of prompts (`passes.py`). Prompts
begin with what a text before them, or beside them, has in the cache already; one that begins like
another which is being read waits for that. Where the cache is full, kept beginnings go first, then
the request that came last gives its memory back: it starts again from the tokens that it has, when
another one has left. In a batch whose sequences are independent of each other that changes no
token.
"""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Batch, Piece

from .cache import SharedCache
from .job import Job, OnDone
from .passes import Grant, Limits, plan_pass
from .request import Outcome, Request, refuse, too_large

Call = Callable[[], None]
LOGIT_BYTES = 4


@runtime_checkable
class LooksAhead(Protocol):
    """A batch that may have logits before they are asked for."""

    def known(self, piece: Piece) -> bool: ...


class Scheduler:
    """Not safe for threads: one thread submits, cancels and steps. Callbacks may submit, cancel."""

    def __init__(self, batch: Batch, limits: Limits | None = None) -> None:
        self.batch, self.limits = batch, limits or Limits()
        self.cache = SharedCache(batch, self.limits)
        # Both in the order in which they came.
        self._waiting: list[Job] = []
        self._running: list[Job] = []
        self._crowded = False  # somebody gave memory back, and nobody has left since
        self._submitted = self._passes = 0
        self._within = False
        self._ends: list[Call] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def submit(self, request: Request, on_done: OnDone = lambda outcome: None) -> Job:
        """Queue a request; `on_done` is called by the pass that ends it.

        Raises:
            UsageError, InputError: it can never be served; nothing was queued.
        """
        refuse(request, self.batch)
        job = Job(self._submitted, request, on_done)
        self._submitted += 1
        self._waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request; `on_done` is not called. One that has ended is left alone."""
        if job.over:
            return
        if job.held is not None:
            self._leave(job)
        else:
            job.over = True
            self._waiting.remove(job)

    def run(self) -> None:
        """Passes until nothing is left."""
        while self.step():
            pass

    def close(self) -> None:
        """Cancel everything, and leave the batch empty."""
        for job in (*self._waiting, *self._running):
            self.cancel(job)
        while self.cache.drop_oldest():
            pass

    def step(self) -> bool:
        """One pass; False where there was nothing to do.

        Raises:
            The first error of an `on_done`, when everybody has been told.
        """
        if self._within:
            raise RuntimeError("a pass within a pass: callbacks may submit and cancel, not step")
        self._within = True
        try:
            self._admit()
            grants = self._affordable()
            if grants:
                self._pass(self._known(grants) or grants)
            ends, self._ends = self._ends, []
            _call_all(ends)
            return bool(grants or ends)
        finally:
            self._within = False

    def _admit(self) -> None:
        """First come, first served; one that waits for a beginning lets others pass."""
        for job in self._waiting[: self.batch.max_sequences - len(self._running)]:
            if self._crowded and self._running:
                return
            if self.cache.give(job, self._running):
                job.reused = job.reused or job.done
                self._waiting.remove(job)
                insort(self._running, job, key=_number)
            elif job.awaits is None:
                return

    def _affordable(self) -> list[Grant]:
        """The next pass, after others have given up what it needs of the cache."""
        vocabulary, room = self.batch.vocabulary, self.batch.tokens_per_pass
        rows = max(1, self.limits.row_bytes // (LOGIT_BYTES * vocabulary))
        while True:
            grants = plan_pass(self._running, room, rows, self.limits)
            if not grants or self.batch.fits([grant.piece() for grant in grants]):
                return grants
            if self.cache.drop_oldest():
                continue
            if len(self._running) > 1:
                self._put_back(self._running[-1])
                continue
            self._end_of_cache(self._running[0])
            return []

    def _known(self, grants: list[Grant]) -> list[Grant]:
        """Those that need no pass: they go first, so that the next one serves all together."""
        if not isinstance(self.batch, LooksAhead):
            return []
        return [grant for grant in grants if self.batch.known(grant.piece())]

    def _put_back(self, job: Job) -> None:
        """Its memory is needed."""
        self._running.remove(job)
        self.cache.take_back(job, keep=False)
        insort(self._waiting, job, key=_number)
        self._crowded = True

    def _end_of_cache(self, job: Job) -> None:
        """It is alone, and there is no room for more of it."""
        if job.written:
            self._finish(job, job.outcome("context"))
        else:
            self._fail(job, too_large(job.prompt, self.batch))

    def _pass(self, grants: list[Grant]) -> None:
        start = time.perf_counter()
        try:
            rows = self.batch.step([grant.piece() for grant in grants])
        except Exception as error:  # whose fault it is nobody can tell
            for grant in grants:
                self._fail(grant.job, error, of_pass=True)
            return
        seconds = time.perf_counter() - start
        self._passes += 1
        for grant in grants:  # all of them, before any callback may cancel one
            assert grant.job.held is not None
            grant.job.held.done += grant.count
            grant.job.served = self._passes
        for grant, logits in zip(grants, rows, strict=True):
            if not grant.job.over:
                self._tell(grant, logits, seconds)

    def _tell(self, grant: Grant, logits: NDArray[np.float32] | None, seconds: float) -> None:
        """What a pass brought for a job."""
        job = grant.job
        try:
            reason = job.tell(grant.count, logits, seconds, self.batch.context_length)
        except Exception as error:
            self._fail(job, error)
            return
        if reason is not None and not job.over:
            self._finish(job, job.outcome(reason))

    def _fail(self, job: Job, error: Exception, of_pass: bool = False) -> None:
        if not job.over:  # else it was cancelled by what raised this
            self._leave(job, keep=False)
            self._ends.append(lambda: job.on_done(Outcome(None, error, job.reused, of_pass)))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        self._leave(job)
        self._ends.append(lambda: job.on_done(outcome))

    def _leave(self, job: Job, keep: bool = True) -> None:
        job.over, self._crowded = True, False
        self._running.remove(job)
        self.cache.take_back(job, keep)


def _number(job: Job) -> int:
    return job.number


def _call_all(calls: list[Call]) -> None:
    """Raises the first error, after the last call."""
    errors: list[Exception] = []
    for call in calls:
        try:
            call()
        except Exception as error:
            errors.append(error)
    if errors:
        raise errors[0]
