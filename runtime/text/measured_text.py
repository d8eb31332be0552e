"""The beginning of a file by its content, for models to be compared on.

As much is read as the tokens wanted take: of prose the beginning, of rows the first, of which
conversations are as the chat template renders them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dsconv.runtime.console import say

from .documents import Skipped, documents, first_is_known
from .row_rendering import RowRenderer
from .rows import Rows, rows_of
from .text_file import TextFile, open_text
from .tokenizer import TextTokenizer

LEAST_BYTES = 2 << 20  # of prose, are read whatever is wanted
TOKEN_BYTES = 32  # and for every token wanted: far more than one has
TOKEN_CHARACTERS = 8  # of rows, for every token wanted


@dataclass(frozen=True)
class MeasuredText:
    """rows: None for prose."""

    file: TextFile
    rows: Rows | None

    def text(self, side_files: Mapping[str, bytes], tokenizer: TextTokenizer, tokens: int) -> str:
        """At least so many tokens of it, or all that there is.

        Raises:
            InputError: not UTF-8, or too many rows cannot be used.
        """
        if self.rows is None:
            return self.file.beginning(max(LEAST_BYTES, TOKEN_BYTES * tokens))
        renderer = RowRenderer.of_model(side_files, tokenizer)
        return _joined(self.rows, renderer, TOKEN_CHARACTERS * tokens)


@contextmanager
def open_measured_text(path: Path | None) -> Iterator[MeasuredText | None]:
    """The user's text; None where there is none.

    Raises:
        InputError: the file cannot be read, is empty, or holds rows of no known form.
    """
    if path is None:
        yield None
        return
    with open_text(path, pipe=True) as file:
        rows = rows_of(file)
        if rows is not None:
            first_is_known(rows)
        yield MeasuredText(file, rows)


def _joined(rows: Rows, renderer: RowRenderer, characters: int) -> str:
    """Documents one after another, each from the beginning of a line."""
    skipped = Skipped(rows)
    parts: list[str] = []
    for found in documents(rows, range(len(rows)), renderer, skipped):
        parts.append(found.text if found.text.endswith("\n") else f"{found.text}\n")
        characters -= len(parts[-1])
        if characters <= 0:
            break
    skipped.finish(say)
    return "".join(parts)
