"""Questions with answers to choose from: MMLU, C-Eval, CMMLU, ARC, HellaSwag and their like.

A model chooses the answer that it finds likeliest. Where answers have letters, the letter after
`Answer:` is compared, as lm-evaluation-harness does for MMLU; endings of a text are compared
themselves, per byte.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import InputError
from dsconv.runtime.text.rows import Unusable
from dsconv.runtime.text.text_file import read_text_file

LETTERS = "ABCDEFGHIJ"
FEWEST = 2
QUESTIONS = ("question", "question_stem", "query", "prompt", "problem", "ctx", "input")
LISTS = ("choices", "options", "endings")
ANSWERS = ("answer", "answerkey", "label", "gold", "target", "correct", "answer_index")
PASSAGES = ("passage", "article", "context")
KEPT_BACK = "no answer: a test set whose answers are kept back cannot be scored; use its val set"
PLAIN_MMLU = 6  # columns of a table without a header: question, A, B, C, D, answer


class CountsFromOne(Unusable):
    """The answers of the whole file do: others of it would be read as the next choice."""


@dataclass(frozen=True)
class Choice:
    """right: index of the right one. is_ending: the texts go on with the question."""

    question: str
    texts: tuple[str, ...]
    right: int
    is_ending: bool = False

    @property
    def answer_word(self) -> str:
        """In the language of the question."""
        return "答案：" if any("一" <= letter <= "鿿" for letter in self.question) else "Answer:"

    @property
    def context(self) -> str:
        """What stands before what is compared."""
        if self.is_ending:
            return self.question
        lines = [
            self.question,
            *(f"{letter}. {text}" for letter, text in zip(LETTERS, self.texts, strict=False)),
        ]
        return "\n".join([*lines, self.answer_word])

    @property
    def continuations(self) -> tuple[str, ...]:
        if self.is_ending:
            return tuple(f" {text}" for text in self.texts)
        return tuple(f" {letter}" for letter in LETTERS[: len(self.texts)])

    @property
    def worked(self) -> str:
        """With its answer, as an example."""
        return self.context + self.continuations[self.right]


def has_choices(row: Mapping[str, Any]) -> bool:
    return any(row.get(key) for key in LISTS) or {"a", "b"} <= set(row)


def read_choice(row: Mapping[str, Any]) -> Choice:
    """Raises Unusable: no question, fewer than two answers, or none that is right."""
    question = next((row[key] for key in QUESTIONS if isinstance(row.get(key), str)), "").strip()
    if not question:
        raise Unusable(f"no question beside the choices ({', '.join(QUESTIONS)})", form=True)
    texts, labels = _texts(row)
    if not FEWEST <= len(texts) <= len(LETTERS):
        raise Unusable(f"{len(texts)} choices, supported: {FEWEST} to {len(LETTERS)}")
    told = next((row[key] for key in ANSWERS if row.get(key) not in (None, "")), None)
    if told is None:
        raise Unusable(KEPT_BACK, form=True)
    about = passage_of(row)
    question = f"{about}\n\n{question}" if about else question
    right, second = _index(told, texts, labels), row.get("answer_index")
    if second not in (None, "") and _index(second, texts, labels) != right:
        raise Unusable(f"the answer is {told!r}, its index {second!r}: they differ")
    return Choice(question, texts, right, bool(row.get("endings")))


def passage_of(row: Mapping[str, Any]) -> str:
    """What a question is about."""
    return next((row[key].strip() for key in PASSAGES if isinstance(row.get(key), str)), "")


def _texts(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...] | None]:
    """-> (texts, labels where the row has its own)."""
    found = next((row[key] for key in LISTS if row.get(key)), None)
    if isinstance(found, str) and found.startswith("["):  # in a table
        found = _parsed(found)
    if isinstance(found, list) and all(isinstance(each, Mapping) for each in found):
        found = {key: [each.get(key) for each in found] for key in ("text", "label")}
    if isinstance(found, Mapping):  # ARC: {"text": [...], "label": [...]}; or {"A": text, ...}
        texts, labels = found.get("text"), found.get("label")
        if texts is None:
            labels, texts = list(found), list(found.values())
    elif found is not None:
        texts, labels = found, None
    else:
        labels = [letter for letter in LETTERS if row.get(letter.lower()) not in (None, "")]
        texts = [row[letter.lower()] for letter in labels]
    if not isinstance(texts, list) or not all(isinstance(t, str | int | float) for t in texts):
        raise Unusable("choices are no list of texts", form=True)
    names = tuple(map(str, labels)) if isinstance(labels, list) else None
    return tuple(str(text).strip() for text in texts), names


def _parsed(cell: str) -> object:
    try:
        return json.loads(cell)
    except ValueError as error:
        raise Unusable("choices in one column are no JSON list", form=True) from error


def _index(told: object, texts: Sequence[str], labels: Sequence[str] | None) -> int:
    """A label, a letter, a number from 0, or the text itself.

    Raises:
        Unusable: none of these, or two of them that are not the same.
        CountsFromOne: a number that only a count from 1 has.
    """
    word = str(told).strip()
    if labels and word in labels:
        return labels.index(word)
    if len(word) == 1 and word.upper() in LETTERS[: len(texts)]:
        return LETTERS.index(word.upper())
    number = int(word) if word.isascii() and word.isdigit() else None
    if number is not None and number < len(texts):
        if not isinstance(told, int) and word in texts and texts.index(word) != number:
            raise Unusable(f"the answer {word!r} is a choice, and another's number: use letters")
        return number
    if word in texts:
        return texts.index(word)
    if number == len(texts):
        raise CountsFromOne(
            f"the answer {number} of {len(texts)} choices: answers are counted from 0; "
            "use letters, or subtract 1"
        )
    raise Unusable(f"the answer {word[:40]!r} is none of the choices")


@dataclass(frozen=True)
class Table:
    """header: names of the columns, in small letters. rows: their lines, and their cells."""

    header: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def row(self, cells: Sequence[str]) -> dict[str, str]:
        """Raises Unusable: there are more cells than columns, as after a comma without quotes."""
        if len(cells) > len(self.header):
            raise Unusable(
                f"{len(cells)} cells, the table has {len(self.header)} columns: quote texts that "
                "hold the separator"
            )
        return dict(zip(self.header, cells, strict=False))


def read_table(path: Path) -> Table:
    """A table with a header or, as MMLU's own files, without.

    Raises:
        InputError: it cannot be read, or its columns have no names and are not MMLU's.
    """
    text = read_text_file(path)
    delimiter = _delimiter(path, text.partition("\n")[0])
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        lines = [(reader.line_num, tuple(cells)) for cells in reader if cells]
    except csv.Error as error:
        raise InputError(f"{path}: no table: {error}", "use a CSV file, or JSON lines") from error
    if not lines:
        raise InputError(f"{path}: an empty table", "use a file with questions")
    first = lines[0][1]
    if _is_header(first):
        return Table(tuple(name.strip().lower() for name in first), tuple(lines[1:]))
    if len(first) != PLAIN_MMLU:
        raise InputError(
            f"{path}: a table without a header that names a question and an answer, with "
            f"{len(first)} columns",
            "name the columns question, A, B, C, D, answer",
        )
    return Table(("question", "a", "b", "c", "d", "answer"), tuple(lines))


def _delimiter(path: Path, first: str) -> str:
    """A comma, unless the ending or the header says otherwise."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return next((mark for mark in ",;\t" if _is_header(first.split(mark))), ",")


def _is_header(cells: Sequence[str]) -> bool:
    names = {cell.strip().strip('"').lower() for cell in cells}
    answers = {*ANSWERS, "final_answer", "solution", "response", *LISTS}
    return bool(names & {*QUESTIONS}) and (bool(names & answers) or {"a", "b"} <= names)
