"""Task files, the answer that a text ends up with, and scores with their standard error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_refused, call_main
from native_models import exported
from places import SHARED_DATA, needs_shared_data
from scripted_session import scripted
from small_models import write_checkpoint

from dsconv.errors import InputError, UsageError
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.verify.tasks import answers
from dsconv.runtime.verify.tasks.answers import final_answer
from dsconv.runtime.verify.tasks.ask import TaskOptions
from dsconv.runtime.verify.tasks.questions import read_task
from dsconv.runtime.verify.tasks.run import run_task
from dsconv.runtime.verify.tasks.statistics import share_right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("18", "18"),
        ("The answer is 18.", "18"),
        ("2 apples, then 3 more: 5 apples", "5"),
        ("$1,234.50 in all", "1234.5"),
        ("it is -7", "-7"),
        ("0.50", "0.5"),
        ("10", "10"),  # not 1E+1
        (".5", "0.5"),
        (r"so \boxed{42}. I checked 3 times", "42"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        (r"\boxed{\dfrac{3}{4}}", r"\frac{3}{4}"),
        (r"\boxed{ 1{,}000 }", "1000"),
        (r"\boxed{\$1,000}", "1000"),
        (r"\boxed{18\text{ dollars}}", "18"),
        (r"\boxed{50\%}", "50"),
        (r"\boxed{(\text{B})}", "(B)"),
        (r"never closed \boxed{5", "5"),
        ("the roots are 1,2", "2"),
        (r"\boxed{1,2}", "1,2"),  # a list, not twelve
        (r"\boxed{70,\!000}", "70000"),
        (r"\boxed{90^\circ}", "90"),
        (r"\boxed{3ab}", "3ab"),
        (r"\boxed{2 pi}", "2pi"),
        (r"\boxed{5 million}", "5million"),
        (r"\boxed{4\text{ pm}}", "4pm"),
        (r"\boxed{12\text{ cm}^2}", "12"),
        (r"\boxed{90°}", "90"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{3 1/2}", "7/2"),
        (r"\boxed{-1 1/4}", "-5/4"),
        (r"\boxed{073}", "73"),
        ("It costs −7", "-7"),
        ("so 3/4", "3/4"),
        ("18/2 = 9", "9"),
        ("on 3/4/2026", "2026"),
        ("no digits", None),
        ("", None),
    ],
)
def test_final_answer(text: str, answer: str | None) -> None:
    assert final_answer(text) == answer


def write_task(path: Path, *entries: dict[str, Any]) -> Path:
    lines = [json.dumps(entry, ensure_ascii=False) for entry in entries]
    path.write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    return path


def test_both_forms_of_a_task_file(tmp_path: Path) -> None:
    file = write_task(
        tmp_path / "t.jsonl",
        {"question": "How many?", "answer": "1 + 1 = <<1+1=2>>2\n#### 1,002"},
        {"prompt": "As it is", "answer": r"\boxed{x+1}"},
        {"prompt": "Number", "answer": 7},
        {"prompt": "Word", "answer": "yes"},
    )
    first, *others = read_task(file, 10)
    assert first.prompt.startswith("How many?\n")
    assert "\\boxed{}" in first.prompt
    assert first.answer == "1002"
    assert [(q.prompt, q.answer) for q in others] == [
        ("As it is", "x+1"),
        ("Number", "7"),
        ("Word", "yes"),
    ]
    assert len(read_task(file, 2)) == 2


WRONG = (
    "{",
    "[]",
    '{"question": "a"}',
    '{"answer": "#### 1"}',
    '{"prompt": "a", "answer": ""}',
    '{"prompt": "a", "answer": true}',
    '{"question": "a", "choices": ["1"], "answer": 0}',
    '{"question": "a", "A": "1", "B": "2", "C": "3", "D": "4", "answer": ""}',
    '{"question": "a", "A": "1", "B": "2", "answer": "Z"}',
)


@pytest.mark.parametrize("line", WRONG)
def test_a_broken_line_is_skipped_and_named(
    tmp_path: Path, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "a", "answer": "1"}\n' + line + "\n", encoding="utf-8")
    assert len(read_task(file, 5)) == 1
    assert "1 of 2 rows skipped: line 2: " in capsys.readouterr().err


@pytest.mark.parametrize("line", WRONG)
def test_too_many_broken_lines_stop_it(tmp_path: Path, line: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(f'{{"prompt": "a", "answer": "1"}}\n{line}\n{line}\n', encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: .*2 of 3 rows"):
        read_task(file, 5)


def test_published_sets(tmp_path: Path) -> None:
    """MATH has a solution, MATH-500 an answer beside it, AIME capital letters, Olympiad a list."""
    rows = [
        {"problem": "p", "level": "Level 5", "solution": r"Thus 1 + 2 = \boxed{3}."},
        {"problem": "p", "solution": "long, 17", "answer": "4"},
        {"ID": "2024-I-1", "Problem": "p", "Solution": "s", "Answer": 5},
        {"question": "p", "final_answer": ["6"]},
    ]
    file = tmp_path / "array.json"
    file.write_text(json.dumps({"test": 1, "data": rows}, indent=1), encoding="utf-8")
    questions = read_task(file, 9)
    assert [question.answer for question in questions] == ["3", "4", "5", "6"]
    assert all(question.prompt.startswith("p\n") for question in questions)


@pytest.mark.parametrize(
    ("told", "right"),
    [
        ("3x+2", "3x+2"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3,\frac{\pi}{2})"),
        (r"x \in [-2,7]", r"x\in[-2,7]"),
        (r"11\sqrt2", r"11\sqrt2"),
        ("6 - 5i", "6-5i"),
        ("-1/2", "-1/2"),
        (r"\{1,2\}", r"\{1,2\}"),
        (r"5.4 \text{ cents}", "5.4"),
        ("12 apples", "12"),
        ("The answer is 18.", "18"),
        (r"so \boxed{7}, not 8", "7"),
        (r"\text{Evelyn}", "Evelyn"),
        ("033", "33"),
    ],
)
def test_an_answer_is_more_than_its_last_number(tmp_path: Path, told: str, right: str) -> None:
    file = write_task(tmp_path / "t.jsonl", {"problem": "p", "solution": "s", "answer": told})
    (question,) = read_task(file, 1)
    assert question.answer == right


@needs_shared_data
def test_solutions_of_math_end_with_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "can_compare_values", lambda: False)
    file = SHARED_DATA / "text" / "math" / "MATH_first50.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    questions = read_task(file, len(rows))
    differ = [
        row["answer"]
        for row, question in zip(rows, questions, strict=True)
        if not answers.equivalent(final_answer(row["solution"]), question.answer)
    ]
    assert differ == ["4:30p.."]  # whose solution says 4:30 p.m.


def test_a_task_of_prose_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text("How many?\n", encoding="utf-8")
    with pytest.raises(InputError, match="plain text"):
        read_task(file, 5)


@needs_shared_data
def test_every_question_of_gsm8k_has_a_number() -> None:
    questions = read_task(SHARED_DATA / "text" / "gsm8k" / "test_0000_0199.jsonl", 200)
    assert len(questions) == 200
    assert questions[0].answer == "18"
    assert all(float(question.answer) == float(question.answer) for question in questions)


@pytest.mark.parametrize(
    ("right", "share", "error"),
    [
        ([[True, True], [False, False]], 0.5, 0.5),  # seeds that agree count once
        ([[True, False], [True, False]], 0.5, 0.0),
        ([[True], [True], [False]], 2 / 3, float(np.std([1, 1, 0], ddof=1) / np.sqrt(3))),
        ([[True, False]], 0.5, 0.5),
    ],
)
def test_standard_error_over_questions(right: list[list[bool]], share: float, error: float) -> None:
    assert share_right(right) == pytest.approx((share, error))


COLD = TaskOptions(questions=5, seeds=2, max_tokens=60, temperature=0.0)


def test_only_what_follows_the_thoughts_counts(tmp_path: Path, loaded: Loaded) -> None:
    file = write_task(
        tmp_path / "t.jsonl",
        {"question": "a", "answer": "#### 4"},
        {"question": "b", "answer": "#### 4"},
    )
    texts = ["5?</think>4", "4</think>5", "4, for ever", r"</think>\boxed{4.0} of 9"]
    done: list[int] = []
    session, model = scripted(loaded, texts)
    score = run_task(file, model, None, COLD, done.append)
    assert (score.file, score.questions, score.seeds) == ("t.jsonl", 2, 2)
    assert score.artifact_accuracy == 0.5  # texts 0 and 3
    assert score.artifact_stderr == 0.0
    assert score.reference_accuracy is None
    assert sum(done) == 4
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    rendered = tokenizer.decode(session.prompts[0])
    assert rendered.startswith("user: a\nPlease reason")
    assert rendered.endswith("assistant:<think>\n")
    assert "system" not in rendered


def test_the_reference_answers_the_same_questions(tmp_path: Path, loaded: Loaded) -> None:
    file = write_task(tmp_path / "t.jsonl", {"prompt": "a", "answer": "4"})
    mine, theirs = (scripted(loaded, [f"</think>{n}"] * 2) for n in (5, 4))
    score = run_task(file, mine[1], theirs[1], COLD)
    assert (score.artifact_accuracy, score.reference_accuracy) == (0.0, 1.0)
    assert mine[0].prompts == theirs[0].prompts


@pytest.mark.parametrize(
    "wrong",
    [{"questions": 0}, {"seeds": 0}, {"max_tokens": 0}],
)
def test_options_out_of_range(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError):
        TaskOptions(**wrong)


def test_gates_of_accuracy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model without training answers nothing rightly; nor does its reference."""
    model = write_checkpoint(tmp_path / "m")
    exported(model, tmp_path / "m.dsq")
    task = write_task(tmp_path / "t.jsonl", {"question": "How many?", "answer": "#### 987654"})
    asked = ["verify", tmp_path / "m.dsq", "--reference", model, "--no-layers"]
    few = ["--task", task, "--task-tokens", 4, "--task-seeds", 1]
    for limit, code in (
        (["--min-accuracy", 0], 0),
        (["--min-accuracy", 0.5], 1),
        (["--max-accuracy-drop", 0], 0),
        (["--min-accuracy", 1.5], 2),
    ):
        done = call_main(monkeypatch, capsys, *asked, *few, *limit)
        assert done.code == code, done.err
    assert_refused(call_main(monkeypatch, capsys, *asked, "--min-accuracy", 0.5), 2, "--task")
    failed = call_main(monkeypatch, capsys, *asked, *few, "--min-accuracy", 0.5)
    assert "the reference itself reaches 0" in failed.err
