"""Choices: the layouts that people have, and the likelihoods that decide."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from reference_models import tiny_checkpoint, tiny_model
from small_models import write_side_files

from dsconv.errors import InputError
from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.sessions.load import load
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.verify.tasks.answers import equivalent
from dsconv.runtime.verify.tasks.ask import TaskOptions, likelihood_request
from dsconv.runtime.verify.tasks.choices import Choice
from dsconv.runtime.verify.tasks.questions import read_task
from dsconv.runtime.verify.tasks.run import questions_of, run_task

QUESTION, TEXTS = "What falls?", ("snow", "sky", "stones", "nothing")
LINES: dict[str, dict[str, Any]] = {
    "letters": {"question": QUESTION, "A": "snow", "B": "sky", "C": "stones", "D": "nothing"}
    | {"answer": "C", "id": 3, "explanation": ""},
    "capitals": {"Question": QUESTION, "A": "snow", "B": "sky", "C": "stones", "D": "nothing"}
    | {"Answer": "C"},
    "list, index": {"question": QUESTION, "choices": list(TEXTS), "answer": 2, "subject": "all"},
    "list, letter": {"question": QUESTION, "options": list(TEXTS), "answer": "C"},
    "list, text": {"question": QUESTION, "choices": list(TEXTS), "answer": "stones"},
    "arc": {
        "question": QUESTION,
        "choices": {"text": list(TEXTS), "label": ["1", "2", "3", "4"]},
        "answerKey": "3",
    },
    "arc, number": {
        "question": QUESTION,
        "choices": {"text": list(TEXTS), "label": ["1", "2", "3", "4"]},
        "answerKey": 3,
    },
    "arc's own": {
        "id": "x",
        "question": {
            "stem": QUESTION,
            "choices": [
                {"text": text, "label": label} for text, label in zip(TEXTS, "ABCD", strict=True)
            ],
        },
        "answerKey": "C",
    },
    "object": {
        "question": QUESTION,
        "options": dict(zip("ABCD", TEXTS, strict=True)),
        "answer": "C",
    },
}


@pytest.mark.parametrize("form", LINES)
def test_layouts(form: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps(LINES[form]) + "\n")
    (question,) = read_task(tmp_path / "t.jsonl", 5)
    assert question.choice == Choice(QUESTION, TEXTS, 2)
    assert question.choice.context == (
        "What falls?\nA. snow\nB. sky\nC. stones\nD. nothing\nAnswer:"
    )
    assert question.choice.worked.endswith("Answer: C")


def test_tables(tmp_path: Path) -> None:
    plain = tmp_path / "abstract_algebra_test.csv"
    plain.write_text('"What, then?",1,2,3,4,B\nAnd now?,5,6,7,8,D\n')
    first, second = read_task(plain, 10)
    assert first.choice == Choice("What, then?", ("1", "2", "3", "4"), 1)
    assert (second.subject, second.choice and second.choice.right) == ("abstract_algebra", 3)
    named = tmp_path / "val.csv"
    named.write_text(
        "id,question,A,B,C,D,answer,explanation\n0,下列哪个？,甲,乙,丙,丁,C,因为\n", "utf-8"
    )
    (question,) = read_task(named, 10)
    assert question.choice is not None
    assert question.choice.context.endswith("D. 丁\n答案：")
    kept_back = tmp_path / "test.csv"
    kept_back.write_text("id,question,A,B,C,D\n0,q,1,2,3,4\n1,q,1,2,3,4\n")
    with pytest.raises(InputError, match="no answer"):
        read_task(kept_back, 10)
    odd = tmp_path / "odd.csv"
    odd.write_text("a,b,c\n1,2,3\n")
    with pytest.raises(InputError, match="without a header"):
        read_task(odd, 10)


def test_tables_as_programs_write_them(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_bytes(b"\xef\xbb\xbfQuestion;A;B;C;D;Answer\r\nq;1;2;3;4;D\r\n")
    assert read_task(table, 10)[0].choice == Choice("q", ("1", "2", "3", "4"), 3)
    table.write_text("Which?,input,output,x,y,A\nq,1,2,3,4,D\n")  # no header
    assert [q.choice and q.choice.question for q in read_task(table, 10)] == ["Which?", "q"]
    table.write_text("question,A,B,answer\nfirst, second,1,2,B\nthird,1,2,B\n")
    (question,) = read_task(table, 10)  # the other one has a comma too many
    assert question.choice == Choice("third", ("1", "2"), 1)


def test_what_a_question_is_about_stands_before_it(tmp_path: Path) -> None:
    rows = [
        {"article": "It was Ann.", "question": "Who?", "options": ["Bo", "Ann"], "answer": "B"},
        {"passage": "It was Ann.", "question": "Who?", "answer": "Ann"},
    ]
    file = tmp_path / "t.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    choice, text = read_task(file, 10)
    assert choice.choice == Choice("It was Ann.\n\nWho?", ("Bo", "Ann"), 1)
    assert text.prompt.startswith("It was Ann.\n\nWho?")
    assert text.worked.startswith("Question: It was Ann.\n\nWho?")


def test_answers_counted_from_one_are_refused(tmp_path: Path) -> None:
    """Those of the other rows would be read as the next choice."""
    file = tmp_path / "t.jsonl"
    rows = [{"question": "q", "choices": ["x", "y"], "answer": count} for count in (1, 2, 1, 1)]
    file.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(InputError, match=r"line 2: .*counted from 0"):
        read_task(file, 10)
    (tmp_path / "t.csv").write_text("question,A,B,answer\nq,x,y,1\nq,x,y,2\n")
    with pytest.raises(InputError, match=r"line 3: .*counted from 0"):
        read_task(tmp_path / "t.csv", 10)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "choices": ["1", "2", "0"], "answer": "1"}, "another's number"),
        ({"question": "q", "choices": ["x", "y"], "answer": ""}, "kept back"),
        ({"question": "q", "answer": None}, "kept back"),
        ({"question": "q", "image": "x.png", "answer": "5"}, "'image'"),
        ({"question": "q", "choices": ["x", "y"], "answer": "AB"}, "none of the choices"),
    ],
)
def test_what_cannot_be_judged_is_refused(tmp_path: Path, row: Any, words: str) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(InputError, match=words):
        read_task(file, 10)


def test_endings_are_compared_per_byte() -> None:
    choice = Choice("The sun", ("rises.", "is a fish that sings."), 0, is_ending=True)
    assert choice.continuations == (" rises.", " is a fish that sings.")
    assert choice.context == "The sun"


def test_likelihoods_are_those_of_transformers(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "llama", vocab_size=264)
    write_side_files(tmp_path / "m")
    loaded = load(str(tmp_path / "m"))
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    found: dict[int, float] = {}
    pairs = [("Say: ", "yes"), ("Say: ", "no, never"), ("Something else", " A")]
    requests = [
        likelihood_request(tokenizer, context, text, found, index)
        for index, (context, text) in enumerate(pairs)
    ]
    run_all(open_batch(loaded), requests)
    model = tiny_model("llama", vocab_size=264)
    for index, (context, text) in enumerate(pairs):
        start, whole = (tokenizer.encode_prompt(t) for t in (context, context + text))
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([whole])).logits[0].double(), -1)
        wanted = sum(float(scores[i - 1, whole[i]]) for i in range(len(start), len(whole)))
        assert found[index] == pytest.approx(wanted, abs=1e-3)


def test_a_task_of_choices(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "llama", vocab_size=264)
    write_side_files(tmp_path / "m")
    loaded = load(str(tmp_path / "m"))
    file = tmp_path / "t.jsonl"
    rows = [
        {**LINES["list, index"], "answer": i % 4, "question": f"q{i}", "subject": "ab"[i % 2]}
        for i in range(12)
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    options = TaskOptions(questions=10, shots=2)
    score = run_task(file, loaded, loaded, options)
    assert (score.questions, score.seeds) == (10, 1)
    assert score.artifact_accuracy == score.reference_accuracy
    assert set(score.subjects) == {"a", "b"}
    assert score.paired is not None
    assert (score.paired.worse, score.paired.better) == (0, 0)
    questions, examples = questions_of(file, options)
    assert [q.choice and q.choice.question for q in questions][:2] == ["q2", "q3"]
    assert len(examples[0]) == 2
    with pytest.raises(InputError, match="12 questions, 12 are wanted"):
        questions_of(file, TaskOptions(questions=10, shots=12))


@pytest.mark.parametrize(
    ("given", "right", "same"),
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac{2}{4}", r"\frac12", True),
        (r"(1,2)\cup(3,4)", r"(1,2) \cup (3,4)", True),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("x+1", "1+x", True),
        ("east", "East", True),
        ("C", "(C)", True),
        ("(1,2)", "[1,2]", False),
        (r"\{1,2\}", r"\{2,1\}", True),
        (r"x\in[-2,7]", "[-2,7]", True),
        ("7", "8", False),
        (None, "8", False),
        (r"\frac{1}{", "1", False),
    ],
)
def test_values_are_compared(given: str | None, right: str, same: bool) -> None:
    assert equivalent(given, right) is same


def test_values_are_compared_in_any_thread() -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(equivalent, r"\frac{1}{2}", "0.5").result()


def test_examples_are_of_the_subject_and_never_the_question(tmp_path: Path) -> None:
    def write(name: str, asked: list[tuple[str, str]]) -> Path:
        rows = [
            {**LINES["list, index"], "question": text, "subject": subject}
            for text, subject in asked
        ]
        (tmp_path / name).write_text("\n".join(map(json.dumps, rows)))
        return tmp_path / name

    test = write("test.jsonl", [("t1", "law"), ("d3", "law"), ("t2", "art"), ("t1", "law")])
    dev = write("dev.jsonl", [("d1", "art"), ("d2", "law"), ("d3", "law"), ("d4", "law")])
    names = [
        [example.choice and example.choice.question for example in examples]
        for examples in questions_of(test, TaskOptions(shots=2), dev)[1]
    ]
    assert names == [["d2", "d3"], ["d2", "d4"], ["d1", "d2"], ["d2", "d3"]]
    asked, _ = questions_of(test, TaskOptions(shots=1))  # its first row comes again
    assert [q.choice and q.choice.question for q in asked] == ["d3", "t2"]
    written = tmp_path / "written.jsonl"
    written.write_text('{"question": "a", "answer": "1"}\n')
    with pytest.raises(InputError, match="0 questions, 1 are wanted"):
        questions_of(test, TaskOptions(shots=1), written)
