"""Questions with answers to choose from: MMLU, C-Eval, CMMLU, ARC, HellaSwag and their like.

A model chooses the answer that it finds likeliest. Where answers have letters, the letter after
`Answer:` is compared, as lm-evaluation-harness does for MMLU; endings of a text are compared
themselves, per byte.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.errors import InputError
from dsconv.runtime.text.rows import Unusable
from dsconv.runtime.text.text_file import read_text_file

LETTERS = "ABCDEFGHIJ"
FEWEST = 2
QUESTIONS = ("question", "query", "prompt", "problem", "ctx", "input")
LISTS = ("choices", "options", "endings")
ANSWERS = ("answer", "answerkey", "label", "gold", "target", "correct", "answer_index")
PLAIN_MMLU = 6  # columns of a table without a header: question, A, B, C, D, answer


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
        raise Unusable(
            "no answer: a test set whose answers are kept back cannot be scored", form=True
        )
    return Choice(question, texts, _index(told, texts, labels), bool(row.get("endings")))


def _texts(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """-> (texts, labels)."""
    found = next((row[key] for key in LISTS if row.get(key)), None)
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
    labels = labels if isinstance(labels, list) else LETTERS[: len(texts)]
    return tuple(str(text).strip() for text in texts), tuple(map(str, labels))


def _index(told: object, texts: Sequence[str], labels: Sequence[str]) -> int:
    """A letter, a label, a number from 0, or the text itself."""
    word = str(told).strip()
    if isinstance(told, int) and not isinstance(told, bool) and 0 <= told < len(texts):
        return told
    if word in labels:
        return labels.index(word)
    if len(word) == 1 and word.upper() in LETTERS[: len(texts)]:
        return LETTERS.index(word.upper())
    if word in texts:
        return texts.index(word)
    if word.isdigit() and int(word) < len(texts):
        return int(word)
    raise Unusable(f"the answer {word[:40]!r} is none of the choices")


def rows_of_csv(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line and row of a table, with a header or, as MMLU's own files, without."""
    text = read_text_file(path)
    dialect = "excel-tab" if path.suffix.lower() == ".tsv" else "excel"
    try:
        lines = [row for row in csv.reader(text.splitlines(keepends=True), dialect) if row]
    except csv.Error as error:
        raise InputError(f"{path}: no table: {error}", "use a CSV file, or JSON lines") from error
    if not lines:
        raise InputError(f"{path}: an empty table", "use a file with questions")
    header = [name.strip().lower() for name in lines[0]]
    start = 1
    if not set(header) & {*QUESTIONS, *ANSWERS}:
        if len(lines[0]) != PLAIN_MMLU:
            raise InputError(
                f"{path}: a table without a header, with {len(lines[0])} columns",
                "name the columns question, A, B, C, D, answer",
            )
        header, start = ["question", "a", "b", "c", "d", "answer"], 0
    for number, row in enumerate(lines[start:], start + 1):
        yield number, dict(zip(header, row, strict=False))
