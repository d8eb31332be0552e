"""The tokens of a calibration file: of all of it, or, where it is large, of parts all over it.

A large file costs by the tokens that are wanted: rows are picked evenly by their place in the file
until there are enough, and only those are parsed, rendered and tokenized.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from dsconv.errors import InputError
from dsconv.progress import Advance
from dsconv.runtime.console import progress, say
from dsconv.runtime.text.documents import Document, Skipped, documents
from dsconv.runtime.text.row_rendering import RowRenderer
from dsconv.runtime.text.rows import Rows, rows_of, spread_order
from dsconv.runtime.text.text_file import TextFile, open_text
from dsconv.runtime.text.tokenizer import TextTokenizer

WHOLE_BYTES = 2 << 20  # files up to this size are used whole
TOKEN_BYTES = 16  # or up to this for every token wanted: far more than a token has
SPARE = 2  # tokens read for every token wanted: windows may begin where documents do
DOCUMENT_BYTES = 16  # of a document, at least, for every token of a window
FEW_BYTES = 4  # of a token: as many rows are read at first as this promises


@dataclass(frozen=True)
class FileText:
    """The tokens of a file, and where its documents begin. sampled: it has more."""

    tokens: list[int]
    borders: list[int]
    sampled: bool = False


@dataclass(frozen=True)
class Reader:
    """The model that texts are for. size: tokens of a window."""

    tokenizer: TextTokenizer
    renderer: RowRenderer
    vocabulary: int
    size: int

    def read(self, path: Path, count: int) -> FileText:
        """Text for `count` windows, where the file has so much.

        Raises:
            InputError: it cannot be read, has less than a window, too many rows that cannot be
                used, or a token that the model lacks.
        """
        wanted = count * self.size
        with open_text(path) as file, progress(f"read {path.name}", wanted, "tokens") as advance:
            advance(0)
            rows = rows_of(file)
            sampled = is_sampled(file.size, wanted)
            if rows is None:
                found = self._sections(file, count) if sampled else self._prose(file)
            else:
                found = self._rows(rows, wanted if sampled else None, advance)
        if len(found.tokens) < self.size:
            raise InputError(
                f"{path}: {len(found.tokens)} tokens, at least {self.size} are needed",
                "use more calibration text",
            )
        return found

    def _prose(self, file: TextFile) -> FileText:
        return FileText(self._encode(file, "", file.text(0, file.size)), [0])

    def _sections(self, file: TextFile, count: int) -> FileText:
        """Of a large text: as many sections as windows, each from the beginning of a line."""
        tokens: list[int] = []
        borders = []
        step = file.size / count
        most = min(int(step), DOCUMENT_BYTES * self.size)
        for index in range(count):
            start = _line_after(file, int(index * step))
            end = _whole_characters(file, min(start + most, int((index + 1) * step)))
            if end > start:
                borders.append(len(tokens))
                tokens += self._encode(file, f"byte {start}: ", file.text(start, end))
        return FileText(tokens, borders, True)

    def _rows(self, rows: Rows, wanted: int | None, advance: Advance) -> FileText:
        skipped = Skipped(rows)
        if wanted is None:
            found = documents(rows, range(len(rows)), self.renderer, skipped)
            parts = [(one.index, self._document(rows, one, None)) for one in found]
        else:
            parts = sorted(self._picked(rows, wanted, skipped, advance))
        skipped.finish(say)
        tokens: list[int] = []
        borders = []
        for _, part in parts:
            borders.append(len(tokens))
            tokens += part
        return FileText(tokens, borders, wanted is not None)

    def _picked(
        self, rows: Rows, wanted: int, skipped: Skipped, advance: Advance
    ) -> Iterator[tuple[int, list[int]]]:
        """Rows all over the file until their tokens and their number are enough."""
        order = spread_order(len(rows))
        mean = rows.file.size / len(rows)
        least = SPARE * wanted // self.size
        longest = max(DOCUMENT_BYTES * self.size, TOKEN_BYTES * SPARE * wanted // len(rows))
        have = number = 0
        while have < SPARE * wanted or number < least:
            missing = max((SPARE * wanted - have) * FEW_BYTES / min(mean, longest), least - number)
            batch = list(islice(order, max(1, int(missing))))
            if not batch:
                return
            for found in documents(rows, batch, self.renderer, skipped):
                part = self._document(rows, found, longest)
                have += len(part)
                number += 1
                advance(len(part))
                yield found.index, part

    def _document(self, rows: Rows, found: Document, longest: int | None) -> list[int]:
        return self._encode(rows.file, f"{found.place}: ", found.text[:longest])

    def _encode(self, file: TextFile, place: str, text: str) -> list[int]:
        tokens = self.tokenizer.encode_chat(text)
        if tokens and max(tokens) >= self.vocabulary:
            token = max(tokens)
            name = self.tokenizer.decode([token], skip_special=False)
            raise InputError(
                f"{file.path}: {place}holds token {token} ({name!r}), the model has "
                f"{self.vocabulary}",
                "tokenizer.json belongs to another model, or its embedding was not resized",
            )
        return tokens


def is_sampled(size: int, wanted: int) -> bool:
    """Whether a file of `size` bytes is too large to be used whole for `wanted` tokens."""
    return size > max(WHOLE_BYTES, TOKEN_BYTES * wanted)


def _line_after(file: TextFile, place: int) -> int:
    """Where a line begins, soon after `place`; else where a character does."""
    if place == 0:
        return 0
    piece = file.read(place, place + 4096)
    line = piece.find(b"\n")
    return place + line + 1 if line >= 0 else _whole_characters(file, place)


def _whole_characters(file: TextFile, place: int) -> int:
    """The first place from here on that is not inside a character."""
    piece = file.read(place, place + 4)
    inside = 0
    while inside < len(piece) and piece[inside] & 0xC0 == 0x80:
        inside += 1
    return place + inside
