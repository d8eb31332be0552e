"""Where the values of a JSON text lie, without making objects of them: files of any size.

Brackets and commas outside of strings are found array by array, at about 300 MB a second; a list of
200,000 rows is cut in its place, and only the rows that are wanted are parsed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .text_file import TextFile

Places = NDArray[np.int64]
PIECE = 1 << 20  # bytes: its arrays stay in the processor's cache
QUOTE, BACKSLASH, COMMA, OPEN, CLOSE = 1, 2, 3, 4, 5
_KIND = np.zeros(256, np.uint8)
for _characters, _kind in ((b'"', QUOTE), (b"\\", BACKSLASH), (b",", COMMA)):
    _KIND[list(_characters)] = _kind
_KIND[list(b"[{")] = OPEN
_KIND[list(b"]}")] = CLOSE
_MATTERS = (_KIND != 0).tobytes()


@dataclass(frozen=True)
class Structure:
    """Brackets and commas in their order: place, kind, and the depth inside the bracket or around
    the comma. closed: every bracket and string that begins also ends, and none ends too often.
    """

    places: Places
    kinds: NDArray[np.uint8]
    depths: Places
    closed: bool

    def at(self, depth: int, kind: int) -> Places:
        found: Places = self.places[(self.depths == depth) & (self.kinds == kind)]
        return found


def structure_of(file: TextFile, deepest: int) -> Structure:
    """What stands at most `deepest` brackets deep."""
    found: list[tuple[Places, NDArray[np.uint8], Places]] = []
    inside, depth, lowest, place = False, 0, 0, 0
    while place < file.size:
        piece = _whole_escapes(file, place)
        places, kinds = _events(piece)
        quotes = kinds == QUOTE
        outside = ((np.cumsum(quotes) + inside) % 2 == 0) & ~quotes
        inside ^= bool(quotes.sum() % 2)
        places, kinds = places[outside], kinds[outside]
        after = depth + np.cumsum((kinds == OPEN).astype(np.int64) - (kinds == CLOSE))
        depths = after + (kinds == CLOSE)
        shallow = depths <= deepest
        found.append((places[shallow] + place, kinds[shallow], depths[shallow]))
        if len(after):
            depth, lowest = int(after[-1]), min(lowest, int(after.min()))
        place += len(piece)
    parts = [np.concatenate(part) for part in zip(*found, strict=True)]
    return Structure(parts[0], parts[1], parts[2], not inside and depth == 0 and lowest == 0)


def _whole_escapes(file: TextFile, place: int) -> bytes:
    """The next piece, which does not end between a backslash and what it escapes."""
    piece = file.read(place, place + PIECE)
    while piece.endswith(b"\\") and place + len(piece) < file.size:
        end = place + len(piece)
        piece += file.read(end, end + 64)
    return piece


def _events(piece: bytes) -> tuple[Places, NDArray[np.uint8]]:
    """Quotes, commas and brackets but for escaped ones."""
    places = np.flatnonzero(np.frombuffer(piece.translate(_MATTERS), np.bool_))
    kinds = _KIND[np.frombuffer(piece, np.uint8)[places]]
    backslashes = places[kinds == BACKSLASH]
    if not len(backslashes):
        return places, kinds
    # In a run of backslashes the first, third, … escape what follows.
    begins = np.diff(backslashes, prepend=-2) != 1
    first = np.maximum.accumulate(np.where(begins, backslashes, 0))
    escaped = np.zeros(len(piece) + 1, np.bool_)
    escaped[backslashes[(backslashes - first) % 2 == 0] + 1] = True
    keep = (kinds != BACKSLASH) & ~escaped[places]
    return places[keep], kinds[keep]
