"""The documents of a file that has rows; rows that give none are skipped, counted and named."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from dsconv.errors import InputError

from .chat_template import HINT
from .row_forms import KNOWN, Conversation, PlainText, read_row
from .row_rendering import RowRenderer
from .rows import Rows, Unusable

BATCH = 256  # rows that are rendered together
NAMED = 3  # skipped rows that are told one by one
ENOUGH = 32  # rows after which most must have been usable
Say = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """place: as `Rows.where` gives it."""

    index: int
    place: str
    text: str


@dataclass
class Skipped:
    """What happened to the rows that were looked at.

    More than half of them unusable stops the work, as soon as `ENOUGH` were looked at; empty rows
    are not counted for that.
    """

    rows: Rows
    known: str = KNOWN
    seen: int = 0
    blank: int = 0
    reasons: list[tuple[int, str]] = field(default_factory=list)
    forms: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def use(self, note: str = "") -> None:
        self.seen += 1
        if note:
            self.notes[note] = self.notes.get(note, 0) + 1

    def skip(self, index: int, error: Unusable) -> None:
        if error.blank:
            self.blank += 1
            return
        self.seen += 1
        self.forms += error.form
        self.reasons.append((index, str(error)))
        if self.seen >= ENOUGH:
            self.refuse_most()

    def refuse_most(self) -> None:
        """Raises InputError: more rows were unusable than not."""
        if 2 * len(self.reasons) <= self.seen:
            return
        index, reason = self.reasons[0]
        many = f" ({len(self.reasons)} of {self.seen} rows cannot be used)"
        raise InputError(
            f"{self.rows.file.path}: {self.rows.where(index)}: {reason}"
            f"{many if self.seen > 1 else ''}",
            f"rows may hold: {self.known}" if self.forms else "fix these rows, or use another file",
        )

    def finish(self, say: Say) -> None:
        """Tell what was skipped.

        Raises:
            InputError: more rows were unusable than not, or all are empty.
        """
        self.refuse_most()
        path = self.rows.file.path
        if not self.seen:
            raise InputError(f"{path}: all {self.blank} rows are empty", "use a file with text")
        if self.rows.note:
            say(f"note: {path}: {self.rows.note}")
        if self.reasons:
            shown = sorted(self.reasons)[:NAMED]
            named = "; ".join(f"{self.rows.where(index)}: {reason}" for index, reason in shown)
            more = "; …" if len(self.reasons) > NAMED else ""
            say(f"warning: {path}: {len(self.reasons)} of {self.seen} rows skipped: {named}{more}")
        for note, count in self.notes.items():
            say(f"note: {path}: {count} of {self.seen} rows: {note}")


def parsed(rows: Rows, order: Iterable[int], skipped: Skipped) -> Iterator[tuple[int, Any]]:
    """(index, what it says) of the usable ones."""
    for index in order:
        try:
            value = rows.value(index)
            if value is not None:
                yield index, read_row(value)
        except Unusable as error:
            skipped.skip(index, error)


def documents(
    rows: Rows, order: Iterable[int], renderer: RowRenderer, skipped: Skipped
) -> Iterator[Document]:
    """In the order asked for, as far as somebody asks.

    Raises:
        InputError: too many rows cannot be used, or the template exceeds its limits.
    """
    usable = parsed(rows, order, skipped)
    while batch := list(islice(usable, BATCH)):
        yield from _rendered(rows, batch, renderer, skipped)


def _rendered(
    rows: Rows,
    batch: list[tuple[int, PlainText | Conversation]],
    renderer: RowRenderer,
    skipped: Skipped,
) -> Iterator[Document]:
    found = renderer.render([row for _, row in batch])
    for (index, row), rendered in zip(batch, found, strict=False):
        if rendered.limit:
            place = f"{rows.file.path}: {rows.where(index)}"
            raise InputError(f"{place}: {rendered.reason}", HINT)
        if rendered.reason:
            skipped.skip(index, Unusable(rendered.reason))
            continue
        note = row.note if isinstance(row, Conversation) else ""
        if rendered.left_out:
            roles = " and ".join(rendered.left_out)
            note = f"the chat template leaves out what {roles} says"
        skipped.use(note)
        yield Document(index, rows.where(index), rendered.text)


def first_is_known(rows: Rows) -> None:
    """Before anything is loaded: does one of the first rows hold something?

    Raises:
        InputError: none of them.
    """
    skipped = Skipped(rows)
    for _ in parsed(rows, range(min(len(rows), ENOUGH)), skipped):
        skipped.use()
    skipped.refuse_most()
