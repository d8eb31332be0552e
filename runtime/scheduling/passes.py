"""Who gets how many tokens of a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsconv.runtime.batches.batch import Piece

from .beginnings import SPAN
from .job import Job


@dataclass(frozen=True)
class Limits:
    """How a scheduler weighs one request against another.

    prompt_beside: tokens of prompts in a pass that also has the next token of a text: a text that
    is read by somebody does not halt for a long prompt. growth: positions that are left free for
    every text when another one is taken in. kept: beginnings that nobody works on, at most.
    row_bytes: of a prompt's logits in one pass. worth_waiting: tokens that somebody else is
    computing; fewer are computed twice.
    """

    prompt_beside: int = 64
    growth: int = 256
    kept: int = 64
    row_bytes: int = 64 << 20
    worth_waiting: int = 4 * SPAN


@dataclass(frozen=True)
class Grant:
    """The next `count` tokens of a job."""

    job: Job
    count: int

    def piece(self) -> Piece:
        return self.job.piece(self.count)


def plan_pass(running: Sequence[Job], room: int, rows: int, limits: Limits) -> list[Grant]:
    """The next tokens of all texts, and in what is left of `room` pieces of prompts.

    Half of that is for the prompt that came first, so none waits for ever; the rest for those
    that are nearly read, so that a short one does not wait for a long one.

    Args:
        running: in the order in which they came.
        rows: of a prompt's logits, at most.
    """
    single = sorted((job for job in running if job.pending == 1), key=lambda job: job.served)[:room]
    found = [Grant(job, 1) for job in single]
    prompts = [job for job in running if job.pending > 1]
    left = room - len(single)
    if single:
        left = min(left, limits.prompt_beside)
    if not prompts or not left:
        return found
    first, *others = prompts
    counts = {first: first.next_count(-(-left // 2), rows)}
    left -= counts[first]
    for job in sorted(others, key=lambda job: job.pending):
        counts[job] = job.next_count(left, rows)
        left -= counts[job]
    counts[first] = first.next_count(counts[first] + left, rows)
    return found + [Grant(job, count) for job, count in counts.items() if count > 0]
