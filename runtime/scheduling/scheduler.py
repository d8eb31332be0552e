"""Passes over a batch: requests join when there is room, and leave when they are done.

A pass has the next token of every text in progress, and pieces of prompts up to the tokens that a
pass takes. Prompts begin with what a text before them, or beside them, has in the cache already.
Where the cache is full, kept beginnings go first; then the request that came last gives its memory
back and starts again later from the tokens that it has. In a batch whose sequences are independent
of each other that changes no token.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import DsconvError, InputError, UsageError
from dsconv.runtime.batches.batch import Batch, Piece, Want
from dsconv.runtime.generate.generate import Generation, StopReason
from dsconv.runtime.generate.sampling import Sampler

from .prefixes import LEAST_TOKENS, Prefixes, common_length
from .request import Outcome, Request

OnDone = Callable[[Outcome], None]


class Job:
    """A request on its way."""

    def __init__(self, request: Request, on_done: OnDone) -> None:
        self.request, self.on_done = request, on_done
        self.sampler = Sampler(request.sampling)
        self.sampler.begin(request.tokens, request.stop_ids)
        self.text = list(request.tokens)  # prompt and what was written
        self.done = 0  # tokens of the text in the cache
        self.sequence: int | None = None
        self.reused = 0
        self.told = request.prompt_logits_from  # prompt logits before this were given
        self.prefill_seconds = self.decode_seconds = 0.0
        self.written = 0

    @property
    def pending(self) -> int:
        return len(self.text) - self.done

    @property
    def most_reused(self) -> int:
        """Tokens of a prompt that need not be computed: at most all but the last, whose logits
        are wanted, and none whose logits were asked for."""
        most = len(self.text) - 1
        return min(most, self.told) if self.request.on_prompt else most


class Scheduler:
    """Not safe for threads: one thread submits, cancels and steps."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.prefixes = Prefixes(batch)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []  # in the order in which they came

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
        job = Job(request, on_done)
        self._waiting.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Forget a request; `on_done` is not called. One that has ended is left alone."""
        if job in self._waiting:
            self._waiting.remove(job)
        elif job in self._running:
            self._leave(job)

    def run(self) -> None:
        """Passes until nothing is left."""
        while self.step():
            pass

    def step(self) -> bool:
        """One pass; False where there was nothing to do."""
        self._admit()
        pieces, jobs = self._pieces()
        if not pieces:
            return False
        start = time.perf_counter()
        rows = self.batch.step(pieces)
        seconds = time.perf_counter() - start
        for job, piece, logits in zip(jobs, pieces, rows, strict=True):
            self._take(job, piece, logits, seconds)
        return True

    def _admit(self) -> None:
        while self._waiting:
            job = self._waiting[0]
            if not self._start(job):
                return
            self._waiting.popleft()
            self._running.append(job)

    def _start(self, job: Job) -> bool:
        """Give a job a sequence, with what is known of its beginning; False if it has to wait."""
        kept, length = self.prefixes.best(job.text, job.most_reused)
        beside, shared, promised = self._best_beside(job)
        if promised > max(length, shared) + LEAST_TOKENS:
            return False  # another one is computing what this one needs
        full = len(self._running) + len(self.prefixes) >= self.batch.max_sequences
        if shared > length and beside is not None and not full:
            assert beside.sequence is not None
            job.sequence = self.batch.fork(beside.sequence, shared)
            job.done = job.reused = shared
            return True
        if len(self._running) >= self.batch.max_sequences:
            return False
        rest = len(job.text) - length
        if kept is not None:
            self.prefixes.use(kept)
        while self.batch.free_positions < rest and len(self.prefixes) > (kept is not None):
            self.prefixes.drop_oldest()
        if self._running and self.batch.free_positions < rest:
            return False
        full = len(self._running) + len(self.prefixes) >= self.batch.max_sequences
        if kept is not None and (full or length == len(kept.tokens)):
            job.sequence = self.prefixes.take(kept, length)
        elif kept is not None:
            job.sequence = self.batch.fork(kept.sequence, length)
        else:
            if full:
                self.prefixes.drop_oldest()
            job.sequence, length = self.batch.add(), 0
        job.done = job.reused = length
        return True

    def _best_beside(self, job: Job) -> tuple[Job | None, int, int]:
        """-> (the running job that begins most alike, tokens in its cache that are in common,
        tokens that will be once its prompt is computed)."""
        best: Job | None = None
        shared = promised = 0
        for other in self._running:
            same = common_length(other.text, job.text, job.most_reused)
            if min(same, other.done) > shared:
                best, shared = other, min(same, other.done)
            promised = max(promised, same)
        return (best, shared, promised) if shared >= LEAST_TOKENS else (None, 0, promised)

    def _pieces(self) -> tuple[list[Piece], list[Job]]:
        """The next pass: single tokens first, then prompts, as far as the cache has room."""
        while True:
            pieces, jobs = self._wanted()
            if not pieces or self.batch.fits(pieces):
                return pieces, jobs
            if self.prefixes.drop_oldest():
                continue
            if len(self._running) == 1:
                raise InputError(
                    f"{len(self._running[0].text)} tokens do not fit into the cache, which holds "
                    f"{self.batch.capacity}",
                    "give the cache more memory",
                )
            self._put_back(self._running[-1])

    def _wanted(self) -> tuple[list[Piece], list[Job]]:
        room = self.batch.tokens_per_pass
        pieces: list[Piece] = []
        jobs: list[Job] = []
        for job in sorted(self._running, key=lambda job: job.pending > 1):
            count = min(job.pending, room)
            if count < 1:
                continue
            room -= count
            assert job.sequence is not None
            tokens = job.text[job.done : job.done + count]
            pieces.append(Piece(job.sequence, tokens, _want(job, count)))
            jobs.append(job)
        return pieces, jobs

    def _put_back(self, job: Job) -> None:
        """Its memory is needed: it starts again, with the tokens that it has, as the next one."""
        assert job.sequence is not None
        self.batch.drop(job.sequence)
        self._running.remove(job)
        job.sequence, job.done = None, 0
        self._waiting.appendleft(job)

    def _take(
        self, job: Job, piece: Piece, logits: NDArray[np.float32] | None, seconds: float
    ) -> None:
        """What a pass brought for a job."""
        if job not in self._running:
            return  # cancelled by what another one was told
        first, job.done = job.done, job.done + len(piece.tokens)
        if job.written:
            job.decode_seconds += seconds
        else:
            job.prefill_seconds += seconds
        try:
            reason = self._tell(job, first, piece, logits)
        except DsconvError as error:
            self._leave(job)
            job.on_done(Outcome(None, error, job.reused))
            return
        if reason is not None:
            self._leave(job)
            job.on_done(Outcome(_generation(job, reason), None, job.reused))

    def _tell(
        self, job: Job, first: int, piece: Piece, logits: NDArray[np.float32] | None
    ) -> StopReason | None:
        """Prompt logits, or the next token -> why the text ends, or None."""
        request = job.request
        prompt = len(request.tokens)
        if piece.want is Want.EVERY and request.on_prompt and logits is not None:
            start, end = max(job.told, first), min(job.done, prompt)
            if start < end:
                request.on_prompt(start, logits[start - first : end - first])
                job.told = end
            logits = logits[-1]
        if job.pending or logits is None:
            return None
        if request.max_tokens == 0:
            return "length"
        token = job.sampler.choose(logits)
        if token in request.stop_ids:
            return "eos"
        job.text.append(token)
        job.written += 1
        reason = request.on_token(token, logits)
        if reason is not None:
            return reason
        if job.written == request.max_tokens:
            return "length"
        return "context" if job.done >= self.batch.context_length else None

    def _leave(self, job: Job) -> None:
        """The request is over; what it has in the cache may serve another."""
        self._running.remove(job)
        assert job.sequence is not None
        self.prefixes.keep(job.sequence, job.text[: job.done])
        job.sequence = None


def refuse(request: Request, batch: Batch) -> None:
    """Raises UsageError, InputError: the request can never be served by this batch."""
    count = len(request.tokens)
    if count == 0:
        raise UsageError("the prompt is empty", "use at least one word")
    if request.max_tokens < 0:
        raise UsageError(f"max tokens is {request.max_tokens}", "use a positive number")
    limit = min(batch.context_length, batch.capacity)
    if count > limit:
        raise InputError(
            f"the prompt has {count} tokens, the context {batch.context_length}, the cache "
            f"{batch.capacity}",
            "shorten the prompt; the context is fixed in the model or artifact",
        )
    wrong = next((token for token in request.tokens if not 0 <= token < batch.vocabulary), None)
    if wrong is not None:
        raise InputError(
            f"the prompt holds token {wrong}, the model has {batch.vocabulary}",
            "tokenizer.json belongs to another model",
        )


def _want(job: Job, count: int) -> Want:
    end, request = job.done + count, job.request
    if request.on_prompt is not None and job.told < min(end, len(request.tokens)):
        return Want.EVERY
    return Want.LAST if end == len(job.text) else Want.NONE


def _generation(job: Job, reason: StopReason) -> Generation:
    written = tuple(job.text[len(job.request.tokens) :])
    steps = len(written) if reason == "eos" else max(0, len(written) - 1)
    return Generation(
        written,
        reason,
        len(job.request.tokens),
        steps,
        job.prefill_seconds,
        job.decode_seconds,
    )
