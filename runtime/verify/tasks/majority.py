"""The answer that most of a question's samples give (maj@k, self-consistency)."""

from __future__ import annotations

from collections.abc import Sequence

from .answers import equivalent


def majority_of(answers: Sequence[str | None]) -> str | None:
    """The first writing of the answer that is given most often; of several the first seen.

    Answers are one where grading would call them the same. A sample without an answer (its thoughts
    may have been cut) has no vote; None where none has one.
    """
    seen: list[str] = []  # the first writing of each
    votes: list[int] = []
    for answer in answers:
        if answer is None:
            continue
        same = next((i for i, first in enumerate(seen) if equivalent(answer, first)), None)
        if same is None:
            seen.append(answer)
            votes.append(1)
        else:
            votes[same] += 1
    return seen[votes.index(max(votes))] if votes else None
