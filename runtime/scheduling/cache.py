"""Sequences of a batch, given to requests with what they begin with, and kept for others."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from dsconv.runtime.batches.batch import Batch

from .beginnings import SPAN, Beginnings, Found, Held
from .job import Job
from .passes import Limits


class SharedCache:
    """Nothing else adds sequences to the batch, or drops them."""

    def __init__(self, batch: Batch, limits: Limits) -> None:
        self._batch, self._limits = batch, limits
        self._beginnings = Beginnings()
        self._kept: OrderedDict[Held, None] = OrderedDict()  # the one used last at the end

    def __len__(self) -> int:
        """Beginnings that are kept."""
        return len(self._kept)

    def give(self, job: Job, running: Sequence[Job]) -> bool:
        """Give the job a sequence, with what is known of its beginning; False: it has to wait, for
        memory, or for the one that it awaits."""
        if job.awaits is not None and _still_comes(*job.awaits):
            return False
        found = self._beginnings.find(job.text, job.most_reused)
        job.awaits = None
        worth = found.length + self._limits.worth_waiting
        if found.promised is not None and found.later >= worth:
            job.awaits = (found.promised, found.later)
            return False
        if not self._has_room(job, found, running):
            return False
        sequence = self._sequence(found, len(running))
        job.held = Held(sequence, job.text, found.length)
        self._beginnings.update(job.held)
        return True

    def take_back(self, job: Job, keep: bool) -> None:
        """The job goes; what it has in the cache may serve another."""
        held = job.held
        assert held is not None
        job.held = None
        if not keep or held.done < SPAN or not self._limits.kept:
            self._drop(held)
            return
        held.tokens, held.kept = held.tokens[: held.done], True
        self._beginnings.update(held)
        longer, shorter = self._beginnings.related(held)
        if longer is not None:
            self._kept.move_to_end(longer)
            self._drop(held)
            return
        for other in shorter:
            del self._kept[other]
            self._drop(other)
        self._kept[held] = None
        if len(self._kept) > self._limits.kept:
            self.drop_oldest()

    def drop_oldest(self) -> bool:
        """Give the memory of the beginning back that was not used for longest; False if there is
        none."""
        if not self._kept:
            return False
        self._drop(self._kept.popitem(last=False)[0])
        return True

    def _has_room(self, job: Job, found: Found, running: Sequence[Job]) -> bool:
        """Make some, at the cost of other beginnings."""
        if len(running) >= self._batch.max_sequences:
            return False
        kept = found.ready if found.ready is not None and found.ready.kept else None
        if kept is not None:
            self._kept.move_to_end(kept)
        if not running:
            return True  # there is no more to be had; a pass drops what is in its way
        growth = self._limits.growth
        needed = len(job.text) - found.length + job.growth(growth)
        needed += sum(other.pending + other.growth(growth) for other in running)
        while self._batch.free_positions < needed:
            if len(self._kept) == (kept is not None):
                return False
            self.drop_oldest()
        return True

    def _sequence(self, found: Found, running: int) -> int:
        """A new one, or a kept one that is of no more use to others."""
        ready, length = found.ready, found.length
        full = running + len(self._kept) >= self._batch.max_sequences
        is_last = full and len(self._kept) == 1
        if ready is not None and ready.kept and (length == ready.done or is_last):
            return self._take(ready, length)
        if full:  # the one that is used now was moved to the end
            self.drop_oldest()
        return self._batch.add() if ready is None else self._batch.fork(ready.sequence, length)

    def _take(self, kept: Held, length: int) -> int:
        del self._kept[kept]
        self._beginnings.remove(kept)
        if length < kept.done:
            self._batch.truncate(kept.sequence, length)
        return kept.sequence

    def _drop(self, held: Held) -> None:
        self._beginnings.remove(held)
        self._batch.drop(held.sequence)


def _still_comes(held: Held, length: int) -> bool:
    return not held.gone and not held.kept and held.done < length
