"""Bits per matrix under a budget: a multiple-choice knapsack.

Every item (matrices that must be equal) has options of different size and loss; losses add up.
On each item's lower convex hull, steps to a larger option have falling returns, so taking steps by
return (loss saved per byte) over all items is optimal for every budget that it uses up exactly;
what is left of the budget then goes to the steps that still fit.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store an item: bytes, and the loss it costs in any unit that adds up."""

    size: int
    loss: float


def allocate(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """-> index of the chosen option per item, or None when not even the smallest fit."""
    hulls = [_hull(options) for options in items]
    places = [0] * len(items)
    used = sum(items[i][hull[0]].size for i, hull in enumerate(hulls))
    if used > budget:
        return None
    steps = [_step(items[i], hull, 0, i) for i, hull in enumerate(hulls) if len(hull) > 1]
    heapq.heapify(steps)
    while steps:
        _, item, size = heapq.heappop(steps)
        if used + size > budget:
            continue  # a smaller step of another item may still fit
        used += size
        places[item] += 1
        if places[item] + 1 < len(hulls[item]):
            heapq.heappush(steps, _step(items[item], hulls[item], places[item], item))
    return [hull[place] for hull, place in zip(hulls, places, strict=True)]


def smallest_within(
    items: Sequence[Sequence[Option]], max_loss: float, floor: int = 0
) -> list[int] | None:
    """-> the cheapest choice (by the same steps) whose losses sum to at most `max_loss`."""
    low = max(floor, sum(min(option.size for option in options) for options in items))
    high = sum(max(option.size for option in options) for options in items)

    def loss(choice: Sequence[int]) -> float:
        return sum(options[index].loss for options, index in zip(items, choice, strict=True))

    best = allocate(items, high)
    if best is None or loss(best) > max_loss:
        return None
    while low < high:  # the loss falls as the budget grows
        middle = (low + high) // 2
        choice = allocate(items, middle)
        if choice is not None and loss(choice) <= max_loss:
            best, high = choice, middle
        else:
            low = middle + 1
    return best


def _step(
    options: Sequence[Option], hull: Sequence[int], place: int, item: int
) -> tuple[float, int, int]:
    """(minus the loss saved per byte, item, bytes): smaller comes first."""
    now, then = options[hull[place]], options[hull[place + 1]]
    size = then.size - now.size
    return -(now.loss - then.loss) / size, item, size


def _hull(options: Sequence[Option]) -> list[int]:
    """Indices on the lower convex hull of loss over size, smallest first."""
    order = sorted(range(len(options)), key=lambda i: (options[i].size, options[i].loss))
    hull: list[int] = []
    for index in order:
        new = options[index]
        if hull and new.loss >= options[hull[-1]].loss:
            continue
        while len(hull) > 1 and _is_above(options[hull[-2]], options[hull[-1]], new):
            hull.pop()
        hull.append(index)
    return hull


def _is_above(first: Option, middle: Option, last: Option) -> bool:
    """Does `middle` lie on or above the line from `first` to `last`?"""
    return (first.loss - middle.loss) * (last.size - first.size) <= (first.loss - last.loss) * (
        middle.size - first.size
    )
