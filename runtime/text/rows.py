"""What a text file is by its content, and where its rows lie: nothing but the head is parsed here.

Rows are lines of JSON (a line ends at LF or CRLF: U+2028 and its like are text), the entries of a
JSON array, those of a list in one JSON object (`{"data": […]}`), or objects one after another.
What is none of that is plain text.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.convert.files.json_file import parse_json
from dsconv.errors import InputError

from .json_structure import CLOSE, COMMA, OPEN, Places, structure_of
from .text_file import NOTHING, TextFile

HEAD = 1 << 20  # bytes that decide what a file is
SAMPLE = 32  # lines of them
ROW_BYTES = 64 << 20
# Where one object holds several lists: the first of these counts.
LISTS = ("train", "data", "rows", "instances", "examples", "samples", "items", "conversations")
KEY_BYTES = 512
_STRING = rb'"(?:[^"\\\n]|\\.)*"'
_OBJECT = re.compile(rb"\{\s*" + _STRING + rb"\s*:")
_ARRAY_OF_OBJECTS = re.compile(rb"\[\s*" + _OBJECT.pattern)
_KEY_BEFORE = re.compile(rb"(" + _STRING + rb")\s*:\s*$", re.DOTALL)
_PYTHON_OBJECT = re.compile(rb"\[?\s*\{\s*'[^'\n]*'\s*:")
_COLUMNS = re.compile(r'"?\w+"?(?:[,;\t]"?[\w .]+"?)+')
COLUMN_NAMES = frozenset(
    ("text", "content", "prompt", "completion", "question", "answer", "instruction", "output")
)


class Unusable(Exception):
    """Why a row gives no text. form: it looks like nothing known; else it is merely damaged.

    blank: nothing stands in it.
    """

    def __init__(self, reason: str, form: bool = False, blank: bool = False) -> None:
        super().__init__(reason)
        self.form, self.blank = form, blank


@dataclass(frozen=True)
class Rows:
    """Row i is at starts[i] to ends[i]. word: what a row is; note: which list was taken."""

    file: TextFile
    starts: Places
    ends: Places
    word: str
    note: str = ""

    def __len__(self) -> int:
        return len(self.starts)

    def where(self, index: int) -> str:
        return f"{self.word} {index + 1}"

    def value(self, index: int) -> Any:
        """What a row says; None for a blank one.

        Raises:
            Unusable: not JSON, or too large.
        """
        start, end = int(self.starts[index]), int(self.ends[index])
        if end - start > ROW_BYTES:
            raise Unusable(f"{end - start} bytes, limit {ROW_BYTES}")
        data = self.file.read(start, end).strip(NOTHING).removeprefix(codecs.BOM_UTF8)
        if not data:
            return None
        try:
            return parse_json(data.decode("utf-8"), "row")
        except UnicodeDecodeError as error:
            raise Unusable(f"not UTF-8: {error.reason}") from error
        except InputError as error:
            raise Unusable(error.message.removeprefix("row: ")) from error


def rows_of(file: TextFile) -> Rows | None:
    """The rows of a file, None for plain text.

    Raises:
        InputError: it begins as rows do, and is none or is cut short.
    """
    head = file.read(0, HEAD)
    start = len(head) - len(head.lstrip(NOTHING))
    first = head[start : start + 1]
    lines = _first_lines(head, file.size)
    if _are_rows(lines, first):
        if len(lines) == 1 and file.size <= HEAD:
            return _single_value(file, start, lines[0])
        return _lines(file)
    _refuse_other_writing(file.path, head[start:], lines)
    if first == b"[" and _begins_array(head[start:]):
        return _array(file, start)
    if first == b"{" and _OBJECT.match(head, start):
        return _objects(file)
    return None


def _first_lines(head: bytes, size: int) -> list[bytes]:
    """Lines that are whole and not blank."""
    lines = head.split(b"\n")
    if size > len(head):
        lines.pop()
    return [line for line in lines if line.strip(NOTHING)][:SAMPLE]


def _are_rows(lines: Sequence[bytes], first: bytes) -> bool:
    """The first line is a JSON object, or most lines are JSON that could be rows."""
    values = [_parsed(line) for line in lines]
    if not values:
        return False
    if first == b"{" and isinstance(values[0], dict):
        return True
    if first == b'"':
        return len(values) > 1 and all(isinstance(value, str) for value in values)
    could_be = sum(isinstance(value, dict | list) for value in values)
    return 2 * could_be > len(values)


def _parsed(line: bytes) -> Any:
    try:
        return json.loads(line.strip(NOTHING).removeprefix(codecs.BOM_UTF8))
    except (ValueError, RecursionError):
        return None


def _begins_array(head: bytes) -> bool:
    """`[1] Smith et al.` and `[Chapter 1]` begin like one, and are text."""
    if _ARRAY_OF_OBJECTS.match(head):
        return True
    text = head[1:].decode("utf-8", "replace").lstrip(" \t\r\n")
    try:
        value, end = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return text == "]"
    after = text[end:].lstrip(" \t\r\n")[:1]
    return isinstance(value, str | list | dict) and after in (",", "]")


def _lines(file: TextFile) -> Rows:
    ends = [
        np.flatnonzero(np.frombuffer(piece, np.uint8) == ord("\n")) + place
        for place, piece in file.pieces()
    ]
    found = np.concatenate([*ends, np.array([file.size])]).astype(np.int64)
    starts = np.concatenate([[0], found[:-1] + 1]).astype(np.int64)
    if starts[-1] >= file.size:
        starts, found = starts[:-1], found[:-1]
    return Rows(file, starts, found, "line")


def _single_value(file: TextFile, start: int, line: bytes) -> Rows:
    """One line of JSON: an array of rows, an object that holds a list of them, or one row."""
    value = _parsed(line)
    if isinstance(value, list):
        return _array(file, start)
    if any(_is_list_of_rows(value.get(name)) for name in LISTS if name != "conversations"):
        return _objects(file)
    return _lines(file)


def _is_list_of_rows(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return isinstance(value[0], dict) and not _is_turn(value[0])


def _array(file: TextFile, start: int) -> Rows:
    structure = structure_of(file, 1)
    ends = structure.at(1, CLOSE)
    if not structure.closed or len(ends) != 1:
        raise _cut_short(file.path, "array", len(structure.at(1, COMMA)))
    if file.read(int(ends[0]) + 1, file.size).strip(NOTHING):
        raise InputError(
            f"{file.path}: there is more after the end of its JSON array, at byte {ends[0] + 1}",
            "keep one array, or write one row per line",
        )
    rows = _between(file, start, structure.at(1, COMMA), int(ends[0]))
    if _is_turn(_parsed(file.read(int(rows.starts[0]), int(rows.ends[0])))):  # one conversation
        return Rows(file, np.array([start]), ends + 1, "array")
    return rows


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & set(value))


def _between(file: TextFile, opens: int, commas: Places, end: int, note: str = "") -> Rows:
    """Entries of a list; none where nothing stands in it."""
    starts = np.concatenate([[opens], commas]).astype(np.int64) + 1
    ends = np.concatenate([commas, [end]]).astype(np.int64)
    if len(starts) == 1 and not file.read(int(starts[0]), end).strip(NOTHING):
        raise InputError(f"{file.path}: its list of rows is empty{note}", "use a file with some")
    return Rows(file, starts, ends, "entry", note)


def _objects(file: TextFile) -> Rows:
    """One object with a list of rows, or objects one after another, over several lines each."""
    structure = structure_of(file, 2)
    opens, closes = structure.at(1, OPEN), structure.at(1, CLOSE)
    if not structure.closed:
        raise _cut_short(file.path, "object", max(0, len(opens) - 1))
    if len(opens) > 1 or _has_text(file, int(closes[0]) + 1, file.size):
        _refuse_text_between(file, opens, closes)
        return Rows(file, opens, closes + 1, "object")
    lists = {
        _key_before(file, int(start)): (int(start), int(end))
        for start, end in zip(structure.at(2, OPEN), structure.at(2, CLOSE), strict=True)
        if file.read(int(start), int(start) + 1) == b"["
    }
    name = next((name for name in LISTS if name in lists), next(iter(lists), ""))
    if not lists or (name not in LISTS and len(lists) > 1) or not _holds_rows(file, lists[name]):
        return Rows(file, opens, closes + 1, "object")
    others = ", ".join(repr(key) for key in lists if key != name and _holds_rows(file, lists[key]))
    note = f"the list {name!r} is read" + (f", not {others}" if others else "")
    start, end = lists[name]
    commas = structure.at(2, COMMA)
    return _between(file, start, commas[(commas > start) & (commas < end)], end, note)


def _refuse_text_between(file: TextFile, opens: Places, closes: Places) -> None:
    """A comma may stand there, as in an array without its brackets."""
    begins, ends = closes + 1, np.append(opens[1:], file.size)
    for begin, end in zip(begins, ends, strict=True):
        if end - begin > 2 and _has_text(file, int(begin), int(end)):
            raise InputError(
                f"{file.path}: begins with a JSON object, and has other text after byte {begin}",
                "write one row per line; prose may not begin with a JSON object",
            )


def _has_text(file: TextFile, start: int, end: int) -> bool:
    return bool(file.read(start, end).strip(NOTHING + b","))


def _key_before(file: TextFile, place: int) -> str:
    found = _KEY_BEFORE.search(file.read(max(0, place - KEY_BYTES), place))
    key = _parsed(found[1]) if found else None
    return key if isinstance(key, str) else ""


def _holds_rows(file: TextFile, span: tuple[int, int]) -> bool:
    """Texts, lists, or objects that are no turns of one conversation."""
    head = file.read(span[0] + 1, min(span[1], span[0] + HEAD)).lstrip(NOTHING)
    if not head.startswith(b"{"):
        return head.startswith((b'"', b"["))
    try:
        value, _ = json.JSONDecoder().raw_decode(head.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return bool(_OBJECT.match(head))
    return not _is_turn(value)


def _cut_short(path: Path, what: str, entries: int) -> InputError:
    return InputError(
        f"{path}: a JSON {what} that does not end as it begins, after {entries} whole entries",
        "download or write the file again; it may be cut short",
    )


def _refuse_other_writing(path: Path, head: bytes, lines: Sequence[bytes]) -> None:
    """What looks like prose to a reader of JSON, and is none."""
    if _PYTHON_OBJECT.match(head):
        raise InputError(
            f"{path}: Python's writing of rows (single quotes), not JSON",
            'write it as JSON: python -c "import ast, json, sys; [print(json.dumps('
            'ast.literal_eval(line))) for line in sys.stdin if line.strip()]" < FILE > FILE.jsonl',
        )
    title = lines[0].decode("utf-8", "replace").strip() if lines else ""
    columns = [name.strip('"').lower() for name in re.split(r"[,;\t]", title)]
    if _COLUMNS.fullmatch(title) and COLUMN_NAMES & set(columns):
        separator = repr(next(sign for sign in ",;\t" if sign in title))
        raise InputError(
            f"{path}: a table with the columns {title!r}, not text",
            'write its rows as JSON: python -c "import csv, json, sys; csv.field_size_limit('
            f"2**30); [print(json.dumps(row)) for row in csv.DictReader(sys.stdin, delimiter="
            f'{separator})]" < FILE > FILE.jsonl',
        )


def in_order(rows: Rows) -> Iterator[int]:
    return iter(range(len(rows)))


def spread_order(count: int) -> Iterator[int]:
    """Every index once; any first few of them are spread evenly (bits in reverse order)."""
    bits = max(1, (count - 1).bit_length())
    for step in range(1 << bits):
        index = int(f"{step:0{bits}b}"[::-1], 2)
        if index < count:
            yield index
