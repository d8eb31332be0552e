"""A request on its way: its text so far, what of it is in the cache, and what it was told."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.batches.batch import Piece, Want
from dsconv.runtime.generate.generate import Generation, StopReason
from dsconv.runtime.generate.sampling import Sampler

from .beginnings import SPAN, Held
from .request import Outcome, Request

OnDone = Callable[[Outcome], None]


class Job:
    """number: in the order in which requests came. held: its sequence while it runs. awaits: who
    computes what this one needs, and up to where."""

    def __init__(self, number: int, request: Request, on_done: OnDone) -> None:
        self.number, self.request, self.on_done = number, request, on_done
        self.text = list(request.tokens)  # prompt and what was written
        self.held: Held | None = None
        self.awaits: tuple[Held, int] | None = None
        self.reused = 0
        self.served = 0  # the last pass that had a piece of it
        self.over = False
        self._sampler = Sampler(request.sampling)
        self._sampler.begin(request.tokens, request.stop_ids)
        self._told = request.prompt_logits_from  # prompt logits before this were given
        self._prefill_seconds = self._decode_seconds = 0.0

    @property
    def prompt(self) -> int:
        return len(self.request.tokens)

    @property
    def written(self) -> int:
        return len(self.text) - self.prompt

    @property
    def done(self) -> int:
        """Tokens of the text in the cache."""
        return self.held.done if self.held else 0

    @property
    def pending(self) -> int:
        return len(self.text) - self.done

    @property
    def most_reused(self) -> int:
        """Tokens that need not be computed: at most all but the last, whose logits are wanted, and
        none whose logits were asked for and have not been given."""
        most = len(self.text) - 1
        return min(most, self._told) if self._wants_rows(self.prompt) else most

    def growth(self, most: int) -> int:
        """Tokens that it may still write, `most` at most."""
        return min(most, self.request.max_tokens - self.written)

    def next_count(self, most: int, rows: int) -> int:
        """How many of `most` tokens go well together: not many whose logits are of no use beside
        those that are wanted (others with the same context have it then before this one goes on),
        and of those `rows` at most."""
        count = min(self.pending, most)
        if not self._wants_rows(self.done + count):
            return count
        before = self._told - self.done
        return before if before >= min(SPAN, rows + 1) else min(count, max(before, 0) + rows)

    def piece(self, count: int) -> Piece:
        assert self.held is not None
        end = self.done + count
        want = Want.LAST if end == len(self.text) else Want.NONE
        if self._wants_rows(end):
            want = Want.EVERY
        return Piece(self.held.sequence, self.text[self.done : end], want)

    def tell(
        self, count: int, logits: NDArray[np.float32] | None, seconds: float, context: int
    ) -> StopReason | None:
        """What a pass of its last `count` tokens brought -> why the text ends, or None.

        Raises:
            InputError: logits that are not finite; anything that a callback raises.
        """
        start = time.perf_counter()
        was_written = self.written
        try:
            return self._tell(self.done - count, logits, context)
        finally:
            seconds += time.perf_counter() - start
            if was_written:
                self._decode_seconds += seconds
            else:
                self._prefill_seconds += seconds

    def _tell(
        self, first: int, logits: NDArray[np.float32] | None, context: int
    ) -> StopReason | None:
        request = self.request
        if logits is None:
            return None
        if logits.ndim == 2:
            self._give_rows(first, logits)
            logits = logits[-1]
        if self.over or self.pending:  # cancelled by what it was told, or there is more to read
            return None
        if request.max_tokens == 0:
            return "length"
        token = self._sampler.choose(logits)
        if token in request.stop_ids:
            if request.on_end is not None:
                request.on_end(token, logits)
            return "eos"
        self.text.append(token)
        reason = request.on_token(token, logits)
        if reason is not None:
            return reason
        if self.written == request.max_tokens:
            return "length"
        return "context" if self.done >= context else None

    def _give_rows(self, first: int, logits: NDArray[np.float32]) -> None:
        assert self.request.on_prompt is not None
        start, end = max(self._told, first), min(self.done, self.prompt)
        self._told = end
        self.request.on_prompt(start, logits[start - first : end - first])

    def _wants_rows(self, end: int) -> bool:
        """Logits of prompt tokens before `end`."""
        return self.request.on_prompt is not None and self._told < min(end, self.prompt)

    def outcome(self, reason: StopReason) -> Outcome:
        written = tuple(self.text[self.prompt :])
        steps = len(written) if reason == "eos" else max(0, len(written) - 1)
        found = Generation(
            written, reason, self.prompt, steps, self._prefill_seconds, self._decode_seconds
        )
        return Outcome(found, None, self.reused)
