"""One thread that owns the scheduler and the batch; the event loop only sends it messages."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from dsconv.runtime.batches.batch import Batch
from dsconv.runtime.scheduling.request import Outcome
from dsconv.runtime.scheduling.scheduler import Scheduler
from dsconv.runtime.text.tokenizer import TextTokenizer

from .choice import Choice, End, Event, Failure, Plan, PromptLogs, Step
from .mailbox import Mailbox
from .metrics import Metrics

UNREAD = 16_384  # events that wait for a reader; one who leaves more does not read


class QueueFull(Exception):
    """More texts wait than may."""


class SlowReader(Exception):
    """Nobody reads what is written."""


@dataclass(eq=False)
class Ticket:
    """The texts of one request, until all have ended or nobody wants them.

    cancels: of those on their way. left: those that have not ended. All but the first two fields
    are the engine's thread's alone.
    """

    plans: Sequence[Plan]
    mailbox: Mailbox[Event]
    left: int
    submitted: float
    cancels: dict[int, Callable[[], None]] = field(default_factory=dict)
    first: float | None = None
    over: bool = False


class Engine:
    """Args: queue_limit: texts that may wait while the batch is full."""

    def __init__(
        self, batch: Batch, tokenizer: TextTokenizer, queue_limit: int, metrics: Metrics
    ) -> None:
        self.batch, self._tokenizer, self._metrics = batch, tokenizer, metrics
        self.limit = batch.max_sequences + queue_limit
        self._scheduler = Scheduler(batch)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._tickets: dict[Ticket, None] = {}
        self._lock = threading.Lock()
        self._open = 0  # texts that were accepted and have not ended
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)

    @property
    def open(self) -> int:
        return self._open

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def running(self) -> int:
        return self._scheduler.running

    def start(self) -> None:
        self._thread.start()

    def stop(self, seconds: float) -> None:
        """End the thread after its pass."""
        self._inbox.put(self._end)
        self._thread.join(seconds)

    def submit(self, plans: Sequence[Plan]) -> Ticket:
        """From the event loop. Raises QueueFull."""
        with self._lock:
            if self._open + len(plans) > self.limit:
                raise QueueFull
            self._open += len(plans)
        ticket = Ticket(plans, Mailbox(), len(plans), time.monotonic())
        self._inbox.put(lambda: self._begin(ticket))
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """From any thread: nobody waits for these texts any more."""
        self._inbox.put(lambda: self._close(ticket))

    def _work(self) -> None:
        busy = False
        while not self._stopping:
            self._read(wait=not busy)
            if not self._stopping:
                busy = self._step()

    def _read(self, wait: bool) -> None:
        try:
            self._inbox.get(block=wait)()
            while True:
                self._inbox.get_nowait()()
        except queue.Empty:
            return

    def _step(self) -> bool:
        try:
            return self._scheduler.step()
        # One pass that fails must not end the server. Nobody knows what the cache holds after it:
        # those who were in it are told, and the rest begins anew.
        except Exception as error:
            self._scheduler = self._renewed()
            for ticket in list(self._tickets):
                ticket.cancels.clear()  # of a scheduler that is no more
                self._fail(ticket, error)
            return False

    def _renewed(self) -> Scheduler:
        """Over the same batch, emptied as far as the old one can still tell what is in it."""
        with suppress(Exception):
            self._scheduler.close()
        return Scheduler(self.batch)

    def _begin(self, ticket: Ticket) -> None:
        if ticket.over:
            return
        self._tickets[ticket] = None
        for index, plan in enumerate(ticket.plans):
            choice = Choice(index, plan, self._tokenizer, partial(self._tell, ticket))
            try:
                job = self._scheduler.submit(choice.request(), partial(self._done, ticket, choice))
            except Exception as error:
                self._fail(ticket, error)
                return
            ticket.cancels[index] = partial(self._scheduler.cancel, job)

    def _tell(self, ticket: Ticket, event: Event) -> None:
        now = time.monotonic()
        if isinstance(event, (Step, End)) and ticket.first is None:
            ticket.first = now
            self._metrics.first_token.observe(now - ticket.submitted)
        if isinstance(event, End):
            self._metrics.ended(event)
        if isinstance(event, (Step, PromptLogs)) and len(ticket.mailbox) > UNREAD:
            self.cancel(ticket)
            ticket.mailbox.put(Failure(SlowReader()))
            return
        ticket.mailbox.put(event)

    def _done(self, ticket: Ticket, choice: Choice, outcome: Outcome) -> None:
        if ticket.over:
            return
        ticket.cancels.pop(choice.index, None)
        ticket.left -= 1
        self._count_down(1)
        try:
            choice.done(outcome)
        except Exception as error:
            self._fail(ticket, error)
            return
        if outcome.error is not None:
            self._close(ticket)
        elif not ticket.left:
            ticket.over = True
            self._tickets.pop(ticket, None)

    def _fail(self, ticket: Ticket, error: Exception) -> None:
        self._close(ticket)
        ticket.mailbox.put(Failure(error))

    def _close(self, ticket: Ticket) -> None:
        """Forget what is left of it."""
        if ticket.over:
            return
        ticket.over = True
        self._tickets.pop(ticket, None)
        self._count_down(ticket.left)
        for cancel in ticket.cancels.values():
            cancel()

    def _count_down(self, count: int) -> None:
        with self._lock:
            self._open -= count

    def _end(self) -> None:
        self._stopping = True
