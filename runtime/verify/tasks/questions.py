"""Questions with one right answer, in the rows that people have.

{"question", "answer"} as in GSM8K, whose answer ends in `#### 18`; {"problem", "solution"} as in
MATH; {"prompt", "answer"}, whose prompt is given as it is. Choices: as MMLU, C-Eval, CMMLU and ARC
have them (`choices.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dsconv.errors import InputError
from dsconv.runtime.console import say
from dsconv.runtime.text.documents import Skipped
from dsconv.runtime.text.row_forms import MEDIA
from dsconv.runtime.text.rows import Unusable, rows_of
from dsconv.runtime.text.text_file import open_text

from .answers import right_answer
from .choices import (
    KEPT_BACK,
    Choice,
    CountsFromOne,
    has_choices,
    passage_of,
    read_choice,
    read_table,
)

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
MARK = "####"
ASKED = ("prompt", "question", "problem", "query", "instruction", "input")
TOLD = ("answer", "final_answer", "solution", "target", "output", "response", "completion")
VALUES = ("answer", "final_answer", "target")  # of these, the text is the answer itself
SUBJECTS = ("subject", "category", "type")
CSV = (".csv", ".tsv")
FORMS = "question, problem or prompt, and answer or solution; or choices beside them"


@dataclass(frozen=True)
class Question:
    """answer: as `final_answer` gives it; worked: as the file has it. choice: where the right one
    of several is asked for; then the other fields are empty."""

    prompt: str
    answer: str
    worked: str = ""
    choice: Choice | None = None
    subject: str = ""


def read_task(path: Path, limit: int) -> tuple[Question, ...]:
    """The first `limit` questions of a file; rows that hold none are skipped and named.

    Raises:
        InputError: it cannot be read, or too many of its rows are no questions.
    """
    found: list[Question] = []
    if path.suffix.lower() in CSV:
        return tuple(_read_csv(path, limit))
    with open_text(path) as file:
        rows = rows_of(file)
        if rows is None:
            raise InputError(f"{path}: line 1: no question, but plain text", f"rows hold {FORMS}")
        skipped = Skipped(rows, known=FORMS)
        for index in range(len(rows)):
            try:
                value = rows.value(index)
                if value is not None:
                    found.append(read_question(value))
                    skipped.use()
            except Unusable as error:
                _refuse_count_from_one(path, rows.where(index), error)
                skipped.skip(index, error)
            if len(found) == limit:
                break
        skipped.finish(say)
    return tuple(found)


def read_question(value: Any) -> Question:
    """Raises Unusable: no question, or none with an answer of its own."""
    if not isinstance(value, dict):
        raise Unusable("not an object", form=True)
    row = {key.lower(): item for key, item in value.items()} | value
    if isinstance(row.get("row"), dict):  # as the hub's viewer has it
        return read_question(row["row"])
    row = _flat(row)
    for name in MEDIA:
        if row.get(name):
            raise Unusable(f"belongs to {name!r}, which a text model does not see")
    if has_choices(row):
        choice = read_choice(row)
        return Question("", "", choice=choice, subject=subject_of(row))
    asked = next((key for key in ASKED if row.get(key) is not None), None)
    told = next((key for key in TOLD if row.get(key) is not None), None)
    if asked is not None and told is None and any(key in row for key in TOLD):
        raise Unusable(KEPT_BACK, form=True)
    if asked is None or told is None:
        keys = ", ".join(map(repr, list(value)[:12])) or "none"
        raise Unusable(f"its keys are {keys}: no question with an answer", form=True)
    question, answer = row[asked], row[told]
    if not isinstance(question, str) or not question.strip():
        raise Unusable(f"{asked} is no text, or empty")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise Unusable(f"{told} is neither text nor a number")
    about = passage_of(row)
    question = f"{about}\n\n{question}" if about else question
    right = right_answer(str(answer).rpartition(MARK)[2], told in VALUES or MARK in str(answer))
    if not right:
        raise Unusable(f"{told} is empty")
    prompt = question if asked == "prompt" else question + INSTRUCTION
    return Question(prompt, right, f"Question: {question}\nAnswer: {answer}", None, subject_of(row))


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    """With the question's own text and choices, which lie one level deeper in ARC's files."""
    question = row.get("question")
    if not isinstance(question, dict) or not isinstance(question.get("stem"), str):
        return dict(row)
    choices = question.get("choices")
    if not isinstance(choices, list) or not all(isinstance(each, dict) for each in choices):
        raise Unusable("choices are no list of texts", form=True)
    lists = {name: [each.get(name) for each in choices] for name in ("text", "label")}
    return {**row, "question": question["stem"], "choices": lists}


def _refuse_count_from_one(path: Path, where: str, error: Unusable) -> None:
    if isinstance(error, CountsFromOne):
        raise InputError(f"{path}: {where}: {error}", "write the answers as letters") from error


def subject_of(row: Mapping[str, Any]) -> str:
    found = next((row[key] for key in SUBJECTS if isinstance(row.get(key), str)), "")
    return found.strip()


def _read_csv(path: Path, limit: int) -> list[Question]:
    """Rows of a table; one without a header is MMLU's own."""
    found: list[Question] = []
    problems: list[str] = []
    table = read_table(path)
    for number, cells in table.rows:
        try:
            question = read_question(table.row(cells))
        except Unusable as error:
            _refuse_count_from_one(path, f"line {number}", error)
            problems.append(f"line {number}: {error}")
            continue
        # MMLU keeps a file per subject, which rows do not name.
        found.append(replace(question, subject=question.subject or _stem(path)))
        if len(found) == limit:
            break
    if problems and len(problems) > len(found):
        raise InputError(f"{path}: {problems[0]}", f"rows hold {FORMS}")
    if problems:
        say(f"warning: {path}: {len(problems)} rows skipped: {problems[0]}")
    if not found:
        raise InputError(f"{path}: no question", f"rows hold {FORMS}")
    return found


def _stem(path: Path) -> str:
    stem = path.stem
    for ending in ("_test", "_val", "_dev"):
        stem = stem.removesuffix(ending)
    return stem
