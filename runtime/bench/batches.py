"""Many sequences at once: which artifact can do which size, and the rounds of those that can."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsconv.errors import UnsupportedError

from .report import LeftOut


@dataclass(frozen=True)
class Room:
    """What one subject offers: positions of a sequence, sequences of the asked length at once."""

    path: str
    context_length: int
    limit: int


@dataclass(frozen=True)
class BatchPlan:
    """Subjects by size of the batch, in rising order; what each of the subjects leaves out."""

    sizes: tuple[tuple[int, tuple[int, ...]], ...]
    left_out: tuple[tuple[LeftOut, ...], ...]


def plan_batches(
    rooms: Sequence[Room], sizes: Sequence[int], context: int, count: int
) -> BatchPlan:
    """Who takes part with `count` tokens of each sequence after `context`.

    Raises:
        UnsupportedError: nobody can do any of the sizes.
    """
    wanted = sorted(set(sizes))
    left_out: list[list[LeftOut]] = [[] for _ in rooms]
    chosen: dict[int, list[int]] = {size: [] for size in wanted}
    for index, room in enumerate(rooms):
        for size in wanted:
            reason = _reason(room, size, context, count)
            if reason:
                left_out[index].append(LeftOut(size, context, reason))
            else:
                chosen[size].append(index)
    if wanted and not any(chosen.values()):
        raise _refusal(rooms, wanted, context, count)
    return BatchPlan(
        tuple((size, tuple(indices)) for size, indices in chosen.items()),
        tuple(map(tuple, left_out)),
    )


def _reason(room: Room, size: int, context: int, count: int) -> str:
    """Why it cannot; empty: it can."""
    if context + count > room.context_length:
        return f"{context} tokens and {count} more are beyond its context of {room.context_length}"
    if size <= room.limit:
        return ""
    if room.limit == 0:
        return f"it has no room for a sequence of {context + count} tokens"
    plural = "" if room.limit == 1 else "s"
    return f"it holds {room.limit} sequence{plural} of {context + count} tokens at once"


def _refusal(
    rooms: Sequence[Room], wanted: Sequence[int], context: int, count: int
) -> UnsupportedError:
    longest = max(room.context_length for room in rooms)
    most = max(room.limit for room in rooms)
    message = (
        f"{rooms[0].path}: {wanted[0]} at once: {_reason(rooms[0], wanted[0], context, count)}"
    )
    if context + count > longest:
        fewer = longest - count
        cure = f"--context {fewer}" if fewer > 0 else f"--context 1 --decode {longest - 1}"
        return UnsupportedError(message, f"use {cure}, or less")
    if most == 0:
        return UnsupportedError(message, "give more --cache-memory, or use a shorter --context")
    larger = ", or more --cache-memory" if most > 1 else ", or export a .dsq"
    return UnsupportedError(message, f"use --batch {most}{larger}")
