"""Beginnings of texts whose keys and values are kept: the next prompt may begin like one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dsconv.runtime.batches.batch import Batch

LEAST_TOKENS = 16  # a shorter beginning is not worth a copy


@dataclass(frozen=True)
class Kept:
    """A sequence and the tokens in its cache."""

    sequence: int
    tokens: tuple[int, ...]


class Prefixes:
    """Sequences that nobody works on, the one used last at the end."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._kept: list[Kept] = []

    def __len__(self) -> int:
        return len(self._kept)

    def keep(self, sequence: int, tokens: Sequence[int]) -> None:
        """From now on the sequence is of this store, to be used again or dropped."""
        self._kept.append(Kept(sequence, tuple(tokens)))

    def drop_oldest(self) -> bool:
        """Give the memory of the one back that was not used for longest; False if there is none."""
        if not self._kept:
            return False
        self._batch.drop(self._kept.pop(0).sequence)
        return True

    def best(self, tokens: Sequence[int], most: int) -> tuple[Kept | None, int]:
        """-> (the one that begins most alike, tokens in common up to `most`)."""
        found: Kept | None = None
        length = 0
        for kept in reversed(self._kept):
            same = common_length(kept.tokens, tokens, most)
            if same > length:
                found, length = kept, same
        return (found, length) if length >= LEAST_TOKENS else (None, 0)

    def use(self, kept: Kept) -> None:
        """It goes to the end."""
        self._kept.remove(kept)
        self._kept.append(kept)

    def take(self, kept: Kept, length: int) -> int:
        """The sequence itself, cut to its first `length` tokens; it leaves the store."""
        self._kept.remove(kept)
        self._batch.truncate(kept.sequence, length)
        return kept.sequence


def common_length(a: Sequence[int], b: Sequence[int], most: int) -> int:
    """Tokens at the beginning that are the same, `most` at most."""
    pairs = enumerate(zip(a[:most], b[:most], strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b), most))
