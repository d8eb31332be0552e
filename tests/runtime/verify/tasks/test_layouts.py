"""Files of questions as people have them: read rightly, or refused with what cures it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dsconv.errors import InputError
from dsconv.runtime.verify.tasks.ask import TaskOptions
from dsconv.runtime.verify.tasks.choices import Choice
from dsconv.runtime.verify.tasks.questions import read_task
from dsconv.runtime.verify.tasks.run import questions_of


def lines(*rows: dict[str, Any]) -> str:
    return "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)


def written(folder: Path, name: str, content: str) -> Path:
    (folder / name).write_bytes(content.encode("utf-8"))
    return folder / name


QUESTION: dict[str, Any] = {"question": "q", "choices": ["w", "x", "y", "z"]}
FOUR = "question,A,B,C,D,answer\n"


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        (
            "gsm8k.jsonl",
            lines(
                {"question": "q", "answer": "2 - 3 = <<2-3=-1>>-1\n#### -1,234"},
                {"question": "r", "answer": "a\n#### $18.50"},
            ),
            ["-1234", "18.5"],
        ),
        ("gsm8k.csv", 'question,answer\n"q, x","long\n#### 18"\nr,#### 7\n', ["18", "7"]),
        (
            "aime.jsonl",
            lines(*({"problem": "p", "answer": told} for told in ("033", 0, "000", 999.0))),
            ["33", "0", "0", "999"],
        ),
        (
            "math.jsonl",
            lines({"problem": "p", "solution": "s", "answer": r"\frac{14}{3}", "level": 2}),
            [r"\frac{14}{3}"],
        ),
    ],
)
def test_answers_that_are_written(
    name: str, content: str, answers: list[str], tmp_path: Path
) -> None:
    assert [q.answer for q in read_task(written(tmp_path, name, content), 9)] == answers


ROWS: list[tuple[str, str, tuple[str, ...], int]] = [
    ("mmlu.csv", "q,w,x,y,z,C\n", ("w", "x", "y", "z"), 2),
    ("ceval.csv", "﻿id,question,A,B,C,D,answer,explanation\r\n0,q,1,2,3,4,C,e\r\n", (*"1234",), 2),
    ("cmmlu.csv", ",Question,A,B,C,D,Answer\n0,q,甲,乙,丙,丁,C\n", (*"甲乙丙丁",), 2),
    ("semicolons.csv", "question;A;B;C;D;answer\nq;1,5;2;3;4;B\n", ("1,5", "2", "3", "4"), 1),
    ("tabs.csv", "question\tA\tB\tanswer\nq\t1\t2\tB\n", ("1", "2"), 1),
    ("line.csv", FOUR + "q,a\u2028b,2,3,4,B\n", ("a\u2028b", "2", "3", "4"), 1),
    ("cell.csv", 'question,choices,answer\nq,"[""w"", ""x""]",1\n', ("w", "x"), 1),
    (
        "arc.jsonl",
        lines(
            {
                "question": {
                    "stem": "q",
                    "choices": [{"text": "w", "label": "1"}, {"text": "x", "label": "2"}],
                },
                "answerKey": "1",
            }
        ),
        ("w", "x"),
        0,
    ),
    (
        "numbers.jsonl",
        lines(
            {"question": "q", "choices": {"text": ["w", "x"], "label": ["1", "2"]}, "answerKey": 2}
        ),
        ("w", "x"),
        1,
    ),
    (
        "openbook.jsonl",
        lines(
            {
                "question_stem": "q",
                "choices": {"text": ["w", "x"], "label": ["A", "B"]},
                "answerKey": "B",
            }
        ),
        ("w", "x"),
        1,
    ),
    (
        "pro.jsonl",
        lines({"question": "q", "options": [*"abcdefghij"], "answer": "I", "answer_index": 8}),
        (*"abcdefghij",),
        8,
    ),
]


@pytest.mark.parametrize(("name", "content", "texts", "right"), ROWS)
def test_choices(
    name: str, content: str, texts: tuple[str, ...], right: int, tmp_path: Path
) -> None:
    (question,) = read_task(written(tmp_path, name, content), 9)
    assert question.choice == Choice("q", texts, right)


def test_endings(tmp_path: Path) -> None:
    row = {"ctx_a": "A man", "ctx": "A man he", "endings": [*"abcd"], "label": "3"}
    (question,) = read_task(written(tmp_path, "t.jsonl", lines(row)), 9)
    assert question.choice == Choice("A man he", (*"abcd",), 3, is_ending=True)


@pytest.mark.parametrize(
    ("name", "content", "what", "cure"),
    [
        ("ceval.csv", "id,question,A,B,C,D\n0,q,1,2,3,4\n", "kept back", "answer"),
        ("empty.csv", FOUR + "q,1,2,3,4,\n", "kept back", "answer"),
        ("t.parquet", "PAR1\0\0", "Parquet", "read_parquet"),
        ("ones.jsonl", lines(*(QUESTION | {"answer": n} for n in (1, 4, 2))), "from 0", "letters"),
        ("ones.csv", FOUR + "q,w,x,y,z,1\nr,w,x,y,z,4\ns,w,x,y,z,2\n", "from 0", "letters"),
        ("commas.csv", FOUR + "What, then?,1,2,3,4,B\n", "7 cells.*quote", ""),
        ("either.csv", FOUR + "q,1,2,3,4,2\n", "another's number", ""),
        (
            "two.jsonl",
            lines(QUESTION | {"answer": "A", "answer_index": 1}),
            "they differ",
            "fix",
        ),
        ("repr.csv", "question,choices,answer\nq,['w' 'x'],1\n", "no JSON list", ""),
    ],
)
def test_refused(name: str, content: str, what: str, cure: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as refused:
        read_task(written(tmp_path, name, content), 9)
    assert cure in (refused.value.hint or "")


def test_examples_are_not_the_question_written_otherwise(tmp_path: Path) -> None:
    rows = [QUESTION | {"question": text, "answer": 0} for text in ("Why  so?", "why so?", "How?")]
    rows[1]["choices"] = ["z", "y", "x", "w"]
    file = written(tmp_path, "t.jsonl", lines(*rows))
    asked, examples = questions_of(file, TaskOptions(shots=1))
    assert [q.choice and q.choice.question for q in asked] == ["How?"]
    assert [[e.choice and e.choice.question for e in each] for each in examples] == [["Why  so?"]]
    other = written(tmp_path, "dev.jsonl", lines(rows[1], rows[2]))
    _, examples = questions_of(file, TaskOptions(questions=1, shots=1), other)
    assert [[e.choice and e.choice.question for e in each] for each in examples] == [["How?"]]
